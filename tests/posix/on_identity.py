"""Which file is which: numbers, links, descriptors that outlive a change."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import select
import shutil
import stat
import struct
import subprocess
from pathlib import Path

from tests.posix.checks import Case, as_user, check, fails, files, opened
from tests.support.lanes import drop_dentries

AREA = "Identity"
PROGRAM = "/usr/bin/cat"


def linked(directory: Path) -> None:
    files("a")(directory)
    (directory / "d").mkdir()
    os.link(directory / "a", directory / "b")
    os.link(directory / "a", directory / "d/c")


def program(directory: Path) -> None:
    shutil.copy(PROGRAM, directory / "program")


def numbers(top: Path) -> dict[str, int]:
    found = {str(it.relative_to(top)): it.lstat().st_ino for it in top.rglob("*")}
    return {"": top.lstat().st_ino, **found}


@check(AREA, "names of a hard link stay one file when one of them is written", lower=linked)
def _(it: Case) -> None:
    (it / "a").write_text("written")
    assert (it / "b").read_text() == (it / "d/c").read_text() == "written"
    assert len({(it / name).stat().st_ino for name in ("a", "b", "d/c")}) == 1


@check(AREA, "st_nlink counts all names, through copy-up, link, unlink and remount", lower=linked)
def _(it: Case) -> None:
    assert (it / "a").stat().st_nlink == 3
    (it / "b").chmod(0o600)
    assert (it / "a").stat().st_nlink == 3
    (it / "d/c").unlink()
    os.link(it / "a", it / "e")
    os.link(it / "a", it / "f")
    assert [(it / name).stat().st_nlink for name in "abef"] == [4] * 4
    it.ground.remount()
    assert [(it / name).stat().st_nlink for name in "abef"] == [4] * 4


def small_tree(directory: Path) -> None:
    files("f", "d/g", "d/s/h", "l")(directory)
    os.link(directory / "l", directory / "d/m")


@check(AREA, "st_ino stays when files and directories are copied up", lower=files("f", "d/g"))
def _(it: Case) -> None:
    before = numbers(it.here)
    for path in it.here.rglob("*"):
        path.chmod(0o700)
    assert numbers(it.here) == before


@check(AREA, "st_ino stays when the kernel forgets and looks up again", lower=small_tree)
def _(it: Case) -> None:
    (it / "d/s/h").write_text("h")
    before = numbers(it.here)
    drop_dentries()
    assert numbers(it.here) == before


@check(AREA, "st_ino stays over a remount", lower=small_tree)
def _(it: Case) -> None:
    for name in ("f", "d/g", "l"):
        (it / name).write_text(name)
    (it / "new").mkdir()
    (it / "d/s").chmod(0o700)
    before = numbers(it.here)
    it.ground.remount()
    assert numbers(it.here) == before


@check(
    AREA, "files and their numbers are there again after a crash of the server", lower=small_tree
)
def _(it: Case) -> None:
    (it / "d/s/h").write_text("h")
    before = numbers(it.here)
    it.ground.crash()
    try:
        assert numbers(it.here) == before
        (it / "after").write_text("after")
    except BaseException:
        it.ground.remount()
        raise


@check(AREA, "a moved directory keeps its number and those in it", lower=small_tree)
def _(it: Case) -> None:
    before = numbers(it / "d")
    os.rename(it / "d", it / "moved")
    assert numbers(it / "moved") == before
    it.ground.remount()
    assert numbers(it / "moved") == before


@check(AREA, "all files have one st_dev, directories and files, upper and lower", lower=small_tree)
def _(it: Case) -> None:
    (it / "new").write_text("new")
    (it / "f").write_text("f")
    assert len({path.lstat().st_dev for path in (it.here, *it.here.rglob("*"))}) == 1


@check(AREA, "no two files have the same number", lower=small_tree)
def _(it: Case) -> None:
    for name in ("x", "y"):
        (it / name).write_text(name)
    (it / "f").write_text("f")
    found = numbers(it.here)
    del found["d/m"]
    assert len(set(found.values())) == len(found)


@check(AREA, "a listing gives the numbers that stat gives", lower=small_tree)
def _(it: Case) -> None:
    (it / "f").write_text("f")
    (it / "new").write_text("new")
    (it / "d").chmod(0o700)
    drop_dentries()
    with os.scandir(it.here) as entries:
        listed = {entry.name: entry.inode() for entry in entries}
    assert listed == {name: (it / name).lstat().st_ino for name in listed}


AREA = "Open files"


@check(
    AREA, "a descriptor opened before a copy-up reads what is written after it", lower=files("f")
)
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        (it / "f").write_text("written")
        assert os.pread(fd, 100, 0) == b"written"


@check(AREA, "fstat of it tells the copy's size, time and number", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        (it / "f").write_text("longer than before")
        os.utime(it / "f", ns=(5, 7))
        seen, there = os.fstat(fd), os.stat(it / "f")
        assert (seen.st_ino, seen.st_size, seen.st_mtime_ns) == (
            *(there.st_ino, there.st_size, there.st_mtime_ns),
        )


@check(AREA, "fchmod and fchown by it change the file of that name", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        os.fchmod(fd, 0o600)
        os.fchown(fd, 7, 8)
        found = os.stat(it / "f")
    assert (stat.S_IMODE(found.st_mode), found.st_uid, found.st_gid) == (0o600, 7, 8)


@check(AREA, "it is opened again by /proc/self/fd to read", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        (it / "f").chmod(0o600)
        with opened(Path(f"/proc/self/fd/{fd}")) as again:
            assert os.pread(again, 100, 0) == b"f"


@check(AREA, "it is opened again by /proc/self/fd to write", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        (it / "f").chmod(0o600)
        with opened(Path(f"/proc/self/fd/{fd}"), os.O_WRONLY) as again:
            os.pwrite(again, b"written", 0)
    assert (it / "f").read_text() == "written"


@check(
    AREA, "a lower program that runs starts itself again, also when it is upgraded", lower=program
)
def _(it: Case) -> None:
    with subprocess.Popen([it / "program"], stdin=subprocess.PIPE) as running:
        itself = Path(f"/proc/{running.pid}/exe")
        (it / "program").chmod(0o755)
        subprocess.run([itself, "/dev/null"], check=True)
        shutil.copy(PROGRAM, it / "new")
        (it / "new").rename(it / "program")
        subprocess.run([itself, "/dev/null"], check=True)


@check(AREA, "a mapping made before a copy-up shows what is written after it", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as fd, mmap.mmap(fd, 1, mmap.MAP_SHARED, mmap.PROT_READ) as memory:
        assert memory[0] == ord("f")
        with opened(it / "f", os.O_WRONLY) as writer:
            os.pwrite(writer, b"x", 0)
        assert memory[0] == ord("x")


@check(
    AREA, "a lock taken before a copy-up holds against those who open after it", lower=files("f")
)
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        fcntl.flock(fd, fcntl.LOCK_EX)
        (it / "f").chmod(0o600)
        with opened(it / "f", os.O_RDWR) as other:
            fails(11, lambda: fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB))


@check(AREA, "POSIX locks exclude other processes", lower=files("f"))
def _(it: Case) -> None:
    def attempt() -> None:
        with opened("f", os.O_RDWR) as other:  # type: ignore[arg-type]
            fcntl.lockf(other, fcntl.LOCK_EX | fcntl.LOCK_NB)

    (it / "f").chmod(0o666)
    with opened(it / "f", os.O_RDWR) as fd:
        fcntl.lockf(fd, fcntl.LOCK_EX)
        fails(11, lambda: as_user(it.here, 1000, attempt))


@check(AREA, "a removed file is usable until it is closed, with no links", lower=files("f", "g"))
def _(it: Case) -> None:
    with opened(it / "f", os.O_RDWR) as upper, opened(it / "g") as lower:
        os.unlink(it / "f")
        os.unlink(it / "g")
        os.pwrite(upper, b"still", 0)
        assert (os.pread(upper, 9, 0), os.pread(lower, 9, 0)) == (b"still", b"g")
        assert (os.fstat(upper).st_nlink, os.fstat(lower).st_nlink) == (0, 0)


@check(AREA, "a file that replaces an open one leaves that as it was", lower=files("f", "g"))
def _(it: Case) -> None:
    with opened(it / "f") as fd:
        os.rename(it / "g", it / "f")
        assert os.pread(fd, 9, 0) == b"f"
        assert (it / "f").read_text() == "g"


@check(AREA, "writes through a shared mapping are seen by read, and stay", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f", os.O_RDWR) as fd, mmap.mmap(fd, 1) as memory:
        memory[0] = ord("m")
        assert os.pread(fd, 1, 0) == b"m"
    it.ground.remount()
    assert (it / "f").read_text() == "m"


@check(AREA, "a working directory that is removed says ENOENT, and one that is moved goes on")
def _(it: Case) -> None:
    (it / "gone").mkdir()
    (it / "moved").mkdir()

    def step(name: str, new: str | None) -> None:
        os.chdir(it / name)
        try:
            os.rename(it / name, it / new) if new else os.rmdir(it / name)
            Path("file").touch()
        finally:
            os.chdir("/")

    fails(2, lambda: step("gone", None))
    step("moved", "there")
    assert (it / "there/file").exists()


class _Inotify:
    """Events of one directory."""

    def __init__(self, directory: Path) -> None:
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_CLOEXEC | os.O_NONBLOCK)
        assert self._libc.inotify_add_watch(self.fd, bytes(directory), 0xFCE) >= 0

    def names(self) -> set[tuple[int, str]]:
        found = set()
        while select.select([self.fd], [], [], 0.2)[0]:
            block, at = os.read(self.fd, 65536), 0
            while at < len(block):
                _, mask, _, size = struct.unpack_from("iIII", block, at)
                found.add((mask & 0xFFF, block[at + 16 : at + 16 + size].rstrip(b"\0").decode()))
                at += 16 + size
        return found


@check(
    AREA, "inotify tells what others do in the same mount, copy-ups included", lower=files("f", "g")
)
def _(it: Case) -> None:
    watch = _Inotify(it.here)
    try:
        (it / "f").write_text("written")
        (it / "new").touch()
        os.rename(it / "new", it / "moved")
        (it / "g").unlink()
        found = watch.names()
    finally:
        os.close(watch.fd)
    wanted = {(2, "f"), (8, "f"), (0x100, "new"), (0x40, "new"), (0x80, "moved"), (0x200, "g")}
    assert wanted <= found, wanted - found
