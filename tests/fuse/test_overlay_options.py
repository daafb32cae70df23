"""The options of snapfs-overlay, read and refused."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.fuse import mounts
from snapfs.fuse.attributes import FOREVER_S
from snapfs.fuse.options import IdRange, OverlayOptions, parse
from snapfs.model import InvalidArgument, NotImplementedYet


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


@pytest.mark.parametrize("text", ["xattr_permissions=1", "plugins=/x.so"])
def test_what_would_change_the_layers_is_not_ignored(here: Path, text: str) -> None:
    with pytest.raises(NotImplementedYet):
        parse([f"lowerdir=a,{text}"])


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
    with suppress(InvalidArgument):
        assert isinstance(parse([text]), OverlayOptions)
