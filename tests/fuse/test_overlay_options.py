"""The options of snapfs-overlay, read and refused."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.fuse import mounts, optionnames
from snapfs.fuse.attributes import FOREVER_S
from snapfs.fuse.options import IdRange, OverlayOptions, parse
from snapfs.model import InvalidArgument, NotImplementedYet
from snapfs.overlay import Atime


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name in ("a", "b", "u", "w", "c:d", "e,f", "g\\h"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_layers_are_read_in_order_and_made_absolute(here: Path) -> None:
    options = parse(["lowerdir=a:b,upperdir=u,workdir=w"])
    assert options.lowers == (here / "a", here / "b")
    assert (options.upper, options.work) == (here / "u", here / "w")
    assert options.mount_flags == mounts.MS_NODEV | mounts.MS_NOATIME


def test_several_arguments_add_up(here: Path) -> None:
    assert parse(["lowerdir=a", "upperdir=u,workdir=w"]).upper == here / "u"


def test_escapes_make_separators_plain(here: Path) -> None:
    options = parse([r"lowerdir=c\:d:e\,f:g\\h:e\054f"])
    assert [path.name for path in options.lowers] == ["c:d", "e,f", "g\\h", "e,f"]


def test_missing_upper_is_read_only(here: Path) -> None:
    assert parse(["lowerdir=a"]).mount_flags & mounts.MS_RDONLY


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("upperdir=u,workdir=w", "lowerdir is missing"),
        ("lowerdir=a,upperdir=u", "workdir is missing"),
        ("lowerdir=a,upperdir=u,workdir=u", "lie in each other; put them side by side"),
        ("lowerdir=a,upperdir=.,workdir=w", "lie in each other; put them side by side"),
        ("lowerdir=a,upperdir=u,workdir=.", "lie in each other; put them side by side"),
        ("lowerdir=a:u,upperdir=u,workdir=w", "upperdir '.*u' is a lowerdir too"),
        ("lowerdir=", "empty path"),
        ("lowerdir=a::b", "empty path"),
        ("lowerdir=a:", "empty path"),
        ("lowerdir=a,upperdir=", "upperdir is empty"),
        ("lowerdir=nowhere", "'.*nowhere' is not a directory"),
        ("lowerdir=a,lowerdri=b", "'lowerdri' is not known; did you mean 'lowerdir'"),
        ("lowerdir=a,qqqq", "'qqqq' is not known; see snapfs-overlay --help"),
        ("lowerdir=a,timeout=soon", "timeout 'soon' is not a number"),
        ("lowerdir=a,timeout=-1", "timeout '-1' is not a number"),
        ("lowerdir=a,timeout=nan", "timeout 'nan' is not a number"),
        ("lowerdir=a,fsync=2", "fsync '2': choose one of 0, 1"),
        ("lowerdir=a,redirect_dir=maybe", "choose one of on, off"),
        ("lowerdir=a,uidmapping=1:2", "is not ID:MAPPED-ID:LENGTH"),
        ("lowerdir=a,uidmapping=", "is not ID:MAPPED-ID:LENGTH"),
        ("lowerdir=a,gidmapping=x:y:z", "is not ID:MAPPED-ID:LENGTH"),
        ("lowerdir=a,squash_to_uid=root", "squash_to_uid 'root' is not a number"),
    ],
)
def test_bad_options_are_refused_with_the_way_out(here: Path, text: str, words: str) -> None:
    with pytest.raises(InvalidArgument, match=words):
        parse([text])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("xattr_permissions=1", "run as root"),
        ("plugins=/x.so", "cannot be loaded"),
        ("userxattr", "root's trusted.overlay. are"),
        ("nfs_export=on", "no file handles"),
        ("verity=require", "not checked"),
        ("uid=1000", "use squash_to_uid or uidmapping"),
        ("gid=1000", "use squash_to_gid"),
        ("umask=022", "as they are stored"),
        ("blkdev", "no block device"),
        ("datadir=a", "use lowerdir"),
        ("remount,ro", "unmount it and mount it again"),
    ],
)
def test_what_would_change_the_layers_is_refused_by_name(here: Path, text: str, words: str) -> None:
    name = re.split("[=,]", text)[0]
    with pytest.raises(NotImplementedYet, match=f"^{name}: .*{words}"):
        parse([f"lowerdir=a,{text}"])


def test_what_is_refused_may_be_switched_off(here: Path) -> None:
    off = "xattr_permissions=0,plugins=,nfs_export=off,verity=off"
    assert parse([f"lowerdir=a,{off}"]) == parse(["lowerdir=a"])


def test_every_option_of_debian_s_fuse_overlayfs_is_known() -> None:
    """The names in its binary: those with a value, and the plain ones after them."""
    program = Path("/usr/bin/fuse-overlayfs").read_bytes()
    table = program[program.index(b"redirect_dir=%s") : program.index(b"noacl\0") + 6]
    names = {it.partition(b"=")[0].decode() for it in table.split(b"\0") if it}
    assert {"redirect_dir", "fast_ino", "squash_to_gid", "volatile", "noacl"} <= names
    assert {it for it in names if it.isidentifier()} <= optionnames.known()


def test_an_unknown_option_may_be_left_out(here: Path) -> None:
    assert parse(["lowerdir=a,qqqq=1"], sloppy=True) == parse(["lowerdir=a"])


def test_security_contexts_count_where_there_is_a_policy(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    context = 'context="system_u:object_r:container_file_t:s0:c1,c2"'
    monkeypatch.setattr("snapfs.fuse.options._SELINUX", here / "none")
    assert parse([f"lowerdir=a,{context},ro"]) == parse(["lowerdir=a,ro"])
    monkeypatch.setattr("snapfs.fuse.options._SELINUX", here)
    assert parse([f"lowerdir=a,{context},ro"]).security == (context,)


def test_who_may_look_at_it(here: Path) -> None:
    assert parse(["lowerdir=a"]).allows_others
    assert not parse(["lowerdir=a,allow_root"]).allows_others


def test_what_only_tunes_fuse_overlayfs_is_ignored(here: Path) -> None:
    plain = parse(["lowerdir=a"])
    tuned = (
        "clone_fd,max_idle_threads=3,threaded=1,fast_ino=1,writeback=0,x-systemd.after=a,_netdev"
    )
    assert parse([f"lowerdir=a,{tuned},xattr_permissions=0,plugins=,,"]) == plain


def test_mount_flags_follow_their_options(here: Path) -> None:
    options = parse(["lowerdir=a,upperdir=u,workdir=w,nosuid,dev,noexec,atime,ro,sync"])
    assert options.mount_flags == (
        mounts.MS_NOSUID | mounts.MS_NOEXEC | mounts.MS_RDONLY | mounts.MS_SYNCHRONOUS
    )


def test_times_of_access_are_the_last_that_was_asked_for(here: Path) -> None:
    plain = parse(["lowerdir=a"])
    assert (plain.mount_flags & mounts.MS_NOATIME, plain.atime) == (mounts.MS_NOATIME, None)
    strict = parse(["lowerdir=a,noatime,relatime,strictatime"])
    assert strict.mount_flags == mounts.MS_NODEV | mounts.MS_RDONLY | mounts.MS_STRICTATIME
    assert strict.atime is Atime.STRICTATIME
    assert parse(["lowerdir=a,strictatime,atime"]).atime is Atime.RELATIME


def test_behaviour_options(here: Path) -> None:
    options = parse(
        ["lowerdir=a,timeout=1.5,volatile,noacl,noxattrs=1,static_nlink,redirect_dir=on,debug"]
    )
    assert (options.timeout_s, options.durable, options.acl) == (1.5, False, False)
    assert (options.xattrs, options.static_nlink, options.redirects) == (False, True, True)
    assert options.debug
    plain = parse(["lowerdir=a"])
    assert (plain.timeout_s, plain.durable, plain.redirects) == (FOREVER_S, True, False)


def test_owners_are_squashed_and_mapped(here: Path) -> None:
    options = parse(["lowerdir=a,squash_to_root,squash_to_gid=5"])
    assert (options.squash_uid, options.squash_gid) == (0, 5)
    mapped = parse([r"lowerdir=a,uidmapping=:0:1000:1:1:110000:65536,gidmapping=0:7:1\,1:8:1"])
    assert mapped.uid_ranges == (IdRange(0, 1000, 1), IdRange(1, 110000, 65536))
    assert mapped.gid_ranges == (IdRange(0, 7, 1), IdRange(1, 8, 1))


@given(st.text(alphabet="lowerdir=ab:,\\x07 uptime", max_size=40))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_text_is_read_or_refused(here: Path, text: str) -> None:
    with suppress(InvalidArgument, NotImplementedYet):
        assert isinstance(parse([text]), OverlayOptions)
