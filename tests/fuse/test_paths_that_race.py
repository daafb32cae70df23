"""Through the merged mount nothing outside a snapshot is reached, however paths change."""

from __future__ import annotations

import ctypes
import errno
import os
import random
import stat
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, eventually, running
from tests.support.outside import outside_of, put_back, swapping

pytestmark = [pytest.mark.root, pytest.mark.plain, pytest.mark.fuse]

ROUNDS = 300
LONGEST_S = 0.001
"""Of the directory at its name."""
SECRET = b"secret"
_OPENAT2, _NO_SYMLINKS = 437, 0x04
_libc = ctypes.CDLL(None, use_errno=True)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(tmp_path) as started:
        yield started


@pytest.fixture
def mount(daemon: RunningDaemon, tmp_path: Path) -> Iterator[Path]:
    """An active snapshot over a layer, mounted; another beside it has a secret."""
    target = tmp_path / "mnt"
    target.mkdir()
    for key in ("a", "other"):
        daemon.run("snapshot", "prepare", key)
        daemon.run("mount", key, target)
        (target / "dir").mkdir()
        (target / "dir" / "file").write_bytes(SECRET if key == "other" else b"plain")
        (target / "lower").write_bytes(b"lower")
        daemon.run("umount", target)
    daemon.run("snapshot", "commit", "a", "base")
    daemon.run("snapshot", "prepare", "--parent", "base", "work")
    daemon.run("mount", "work", target)
    yield target
    daemon.run("umount", target)


def layer(daemon: RunningDaemon, name: str) -> Path:
    return Path(daemon.json("snapshot", "info", name)["layer"])


def open_without_links(path: Path, flags: int) -> int:
    """Open a path of which no part may be a symbolic link: the kernel itself follows none."""
    how = struct.pack("QQQ", flags | os.O_CLOEXEC, 0o600 if flags & os.O_CREAT else 0, _NO_SYMLINKS)
    fd = int(_libc.syscall(_OPENAT2, -100, os.fsencode(path), how, len(how)))
    if fd < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), path)
    return fd


def swap(mount: Path, outside: Path, stop: threading.Event, failed: list[OSError]) -> None:
    """Let `dir` be a directory, a link that leads outside, and nothing, in turn."""
    while not stop.is_set() and not failed:
        try:
            (mount / "dir").rename(mount / "away")
            (mount / "dir").symlink_to(outside)
            (mount / "dir").unlink()
            (mount / "away").rename(mount / "dir")
        except OSError as error:
            failed.append(error)
        else:
            time.sleep(random.random() * LONGEST_S)  # some requests are to find it


def test_a_directory_that_becomes_a_link_leads_no_request_outside(
    daemon: RunningDaemon, mount: Path
) -> None:
    outside = layer(daemon, "other") / "dir"
    before = {it.name: it.read_bytes() for it in outside.iterdir()}
    stop = threading.Event()
    failed: list[OSError] = []
    swapping = threading.Thread(target=swap, args=(mount, outside, stop, failed))
    swapping.start()
    done = 0
    try:
        for number in range(ROUNDS):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_WRONLY | os.O_CREAT | os.O_EXCL):
                name = "file" if not flags & os.O_CREAT else f"new{number}"
                with suppress(OSError):
                    fd = open_without_links(mount / "dir" / name, flags)
                    done += 1
                    if flags == os.O_RDONLY:
                        assert os.read(fd, 100) != SECRET
                    else:
                        os.pwrite(fd, b"mine!!", 0)
                    os.close(fd)
            with suppress(OSError):
                os.link(mount / "lower", mount / "dir" / f"link{number}")
    finally:
        stop.set()
        swapping.join()
    assert failed == []
    assert done > 0
    assert {it.name: it.read_bytes() for it in outside.iterdir()} == before
    assert (layer(daemon, "base") / "dir" / "file").read_bytes() == b"plain"
    assert (layer(daemon, "base") / "lower").read_bytes() == b"lower"
    assert daemon.json("status")["lanes"][0]["restarts"] == 0


def test_what_the_service_reads_while_a_container_swaps_directories_is_in_the_layer(
    daemon: RunningDaemon, tmp_path: Path
) -> None:
    daemon.run("volume", "create", "db", "--mount")
    place = daemon.state / "volumes" / "db"
    (place / "dir" / "sub").mkdir(parents=True)
    for number in range(20):
        (place / "dir" / "sub" / "file").write_bytes(b"of the volume")
        (place / "dir" / f"file{number}").write_bytes(b"of the volume")
    with outside_of(tmp_path) as outside:
        for number in range(5):
            with swapping(place, outside.path):
                daemon.run("volume", "snapshot", "db", "-m", f"number {number}")
                for it in daemon.json("snapshot", "list"):
                    daemon.run("snapshot", "diff", it["name"], check=False)  # it changes
                daemon.run("volume", "list")
            if (place / "dir").is_symlink():
                put_back(place)
            (place / "dir" / "file1").write_bytes(b"another %d" % number)
            (place / "dir" / "sub" / "file").write_bytes(b"another %d" % number)
        for it in daemon.json("snapshot", "list"):
            for directory, _, names in os.walk(it["layer"]):
                paths = [Path(directory, name) for name in names]
                for found in (it for it in paths if stat.S_ISREG(it.lstat().st_mode)):
                    assert found.read_bytes().startswith((b"of the volume", b"another"))
        daemon.run("volume", "umount", "db")

    def removed() -> bool:
        """A container that another test starts meanwhile has the mount in its namespace a while."""
        return daemon.run("volume", "remove", "--history", "db", check=False).exit_code == 0

    eventually(removed, what="the end of the volume")
    assert daemon.run("fsck").exit_code == 0


def test_the_mounts_own_attributes_are_out_of_reach(daemon: RunningDaemon, mount: Path) -> None:
    (mount / "lower").write_bytes(b"upper")
    (mount / "dir" / "file").unlink()
    for path in (mount, mount / "dir", mount / "lower"):
        assert [it for it in os.listxattr(path) if it.startswith("trusted.overlay")] == []
        with pytest.raises(OSError) as refused:
            os.getxattr(path, "trusted.overlay.opaque")
        assert refused.value.errno == errno.ENODATA
        os.setxattr(path, "trusted.overlay.redirect", b"/../../etc")
        os.setxattr(path, "trusted.overlay.opaque", b"y")
    assert (mount / "lower").read_bytes() == b"upper"
    stored = layer(daemon, "work") / "dir"
    assert os.getxattr(stored, "trusted.overlay.overlay.redirect") == b"/../../etc"
    with pytest.raises(OSError):
        os.getxattr(stored, "trusted.overlay.redirect")


def test_an_ordinary_user_has_an_ordinary_users_rights(mount: Path) -> None:
    (mount / "private").write_bytes(SECRET)
    (mount / "private").chmod(0o600)
    (mount / "shared").mkdir()
    (mount / "shared").chmod(0o1777)
    (mount / "shared" / "roots").write_bytes(b"roots")
    done = subprocess.run(
        [sys.executable, "-c", AS_NOBODY, str(mount)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["EACCES"] * 3 + ["EPERM"] * 5 + ["made"]
    assert (mount / "shared" / "made").stat().st_uid == 65534
    assert not (mount / "shared" / "made").stat().st_mode & stat.S_ISUID


AS_NOBODY = """
import errno, os, stat, sys
top = os.open(sys.argv[1], os.O_PATH)
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
os.fchdir(top)

def said(call, *arguments, **named):
    try:
        call(*arguments, **named)
        print("done")
    except OSError as error:
        print(errno.errorcode[error.errno])

said(open, "private")
said(open, "new", "w")
said(os.rename, "private", "shared/taken")
said(os.unlink, "shared/roots")
said(os.chmod, "lower", 0o777)
said(os.chown, "shared/roots", 65534, -1)
said(os.setxattr, "shared", "trusted.overlay.opaque", b"y")
said(os.mknod, "shared/device", stat.S_IFCHR | 0o666, os.makedev(1, 1))
with open("shared/made", "w") as file:
    os.fchmod(file.fileno(), 0o4755)
    os.write(file.fileno(), b"x")
print("made")
"""
