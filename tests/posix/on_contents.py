"""What is in files and when it changed; files that are no files; errors that programs rely on."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import os
import shutil
import socket
import stat
import struct
import subprocess
import time
from pathlib import Path

from tests.posix.checks import Case, as_user, check, fails, files, opened
from tests.posix.on_directories import rename
from tests.support.lanes import bind_mount

AREA = "Times"
_libc = ctypes.CDLL(None, use_errno=True)
YEAR_NS = 365 * 86400 * 10**9
HOUR_NS = 3600 * 10**9


@check(AREA, "nanoseconds, times after 2038 and before 1970", lower=files("f"))
def _(it: Case) -> None:
    for ns in (1_234_567_890_123_456_789, 230 * YEAR_NS + 1, -YEAR_NS + 7):
        os.utime(it / "f", ns=(ns, ns + 1))
        it.ground.remount()
        found = os.stat(it / "f")
        assert (found.st_atime_ns, found.st_mtime_ns) == (ns, ns + 1)


def dated(directory: Path) -> None:
    files("d/f")(directory)
    for name in ("d/f", "d"):
        os.utime(directory / name, ns=(230 * YEAR_NS + 5, 230 * YEAR_NS + 3))


@check(AREA, "a copy-up changes neither the file's times nor its directory's", lower=dated)
def _(it: Case) -> None:
    (it / "d/f").chmod(0o600)
    for name in ("d/f", "d"):
        assert os.stat(it / name).st_mtime_ns == 230 * YEAR_NS + 3
    assert os.stat(it / "d/f").st_atime_ns == 230 * YEAR_NS + 5


@check(
    AREA, "making, moving and removing names changes the directory's times", lower=files("f", "d/g")
)
def _(it: Case) -> None:
    for step in (
        lambda: (it / "new").touch(),
        lambda: (it / "f").unlink(),
        lambda: os.rename(it / "new", it / "moved"),
        lambda: (it / "sub").mkdir(),
        lambda: os.rename(it / "sub", it / "other"),
    ):
        os.utime(it.here, ns=(1, 1))
        step()
        assert it.here.stat().st_mtime_ns > YEAR_NS


@check(AREA, "mtime follows writes, ctime follows chmod, link and rename", lower=files("f"))
def _(it: Case) -> None:
    os.utime(it / "f", ns=(1, 1))
    before = os.stat(it / "f").st_ctime_ns
    time.sleep(0.02)
    (it / "f").chmod(0o600)
    first = os.stat(it / "f").st_ctime_ns
    time.sleep(0.02)
    os.link(it / "f", it / "g")
    second = os.stat(it / "f").st_ctime_ns
    assert before < first < second
    assert os.stat(it / "f").st_mtime_ns == 1
    with opened(it / "f", os.O_WRONLY) as fd:
        os.write(fd, b"x")
    assert os.stat(it / "f").st_mtime_ns > YEAR_NS


def _atime_after_a_read(it: Case, option: str, atime_ns: int, mtime_ns: int) -> int:
    with bind_mount(it.here, it.ground.path.parent / "bound") as bound:
        subprocess.run(["mount", "-o", f"remount,bind,{option}", bound], check=True)
        (bound / "f").write_text("f" * 5000)
        os.utime(bound / "f", ns=(atime_ns, mtime_ns))
        subprocess.run(["cat", bound / "f"], check=True, stdout=subprocess.DEVNULL)
        return os.stat(bound / "f").st_atime_ns


@check(AREA, "relatime: a read updates an atime that is older than mtime")
def _(it: Case) -> None:
    assert _atime_after_a_read(it, "relatime", YEAR_NS, 2 * YEAR_NS) > 2 * YEAR_NS


@check(AREA, "relatime: and leaves one that is younger")
def _(it: Case) -> None:
    later = time.time_ns() + HOUR_NS
    assert _atime_after_a_read(it, "relatime", later, YEAR_NS) == later


@check(AREA, "noatime: a read changes nothing")
def _(it: Case) -> None:
    assert _atime_after_a_read(it, "noatime", YEAR_NS, 2 * YEAR_NS) == YEAR_NS


@check(AREA, "strictatime: each read updates")
def _(it: Case) -> None:
    later = time.time_ns() + HOUR_NS
    assert YEAR_NS < _atime_after_a_read(it, "strictatime", later, YEAR_NS) < later


@check(AREA, "reading a lower file copies nothing up", lower=files("f"))
def _(it: Case) -> None:
    before = os.stat(it / "f")
    assert (it / "f").read_text() == "f"
    after = os.stat(it / "f")
    assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)


AREA = "Contents"


def sparse(directory: Path) -> None:
    with (directory / "f").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")


@check(AREA, "a sparse file stays sparse in a copy-up", lower=sparse)
def _(it: Case) -> None:
    with (it / "f").open("r+b") as file:
        file.write(b"x")
    found = os.stat(it / "f")
    assert found.st_size == 64 << 20
    assert found.st_blocks * 512 < 1 << 20


@check(AREA, "SEEK_DATA and SEEK_HOLE find the data, before and after a copy-up", lower=sparse)
def _(it: Case) -> None:
    for flags in (os.O_RDONLY, os.O_RDWR):
        with opened(it / "f", flags) as fd:
            assert os.lseek(fd, 0, os.SEEK_DATA) == 32 << 20
            assert os.lseek(fd, 32 << 20, os.SEEK_HOLE) < 33 << 20


@check(AREA, "fallocate: allocate, keep size, punch holes, zero", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f", os.O_RDWR) as fd:
        os.posix_fallocate(fd, 0, 1 << 20)
        assert os.fstat(fd).st_size == 1 << 20
        for mode, size in ((1, 2 << 20), (3, 1 << 20), (0x10, 4096)):
            fallocate = _libc.fallocate
            args = (fd, mode, ctypes.c_long(0), ctypes.c_long(size))
            assert fallocate(*args) == 0, os.strerror(ctypes.get_errno())
        assert os.fstat(fd).st_size == 1 << 20


@check(AREA, "copy_file_range", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f") as source, opened(it / "g", os.O_CREAT | os.O_RDWR) as target:
        assert os.copy_file_range(source, target, 100) == 1
    assert (it / "g").read_text() == "f"


@check(AREA, "O_TMPFILE, and a name for it later")
def _(it: Case) -> None:
    with opened(it.here, os.O_TMPFILE | os.O_RDWR, 0o640) as fd:
        os.write(fd, b"nameless")
        assert not os.listdir(it.here)
        with opened(it.here, os.O_PATH) as here:  # without a descriptor it would link the link
            os.link(f"/proc/self/fd/{fd}", "named", dst_dir_fd=here, follow_symlinks=True)
    assert (it / "named").read_text() == "nameless"


@check(AREA, "O_APPEND of two writers loses nothing", lower=files("f"))
def _(it: Case) -> None:
    flags = os.O_WRONLY | os.O_APPEND
    with opened(it / "f", flags) as one, opened(it / "f", flags) as other:
        for _ in range(50):
            os.write(one, b"1" * 10)
            os.write(other, b"2" * 10)
    text = (it / "f").read_text()
    assert (len(text), text.count("1"), text.count("2")) == (1001, 500, 500)


@check(AREA, "O_TRUNC, truncate and ftruncate of lower files", lower=files("f", "g", "h"))
def _(it: Case) -> None:
    with opened(it / "f", os.O_WRONLY | os.O_TRUNC) as fd:
        os.write(fd, b"n")
    os.truncate(it / "g", 0)
    with opened(it / "h", os.O_RDWR) as fd:
        os.ftruncate(fd, 1000)
        assert os.pread(fd, 2, 0) == b"h\0"
    assert [(it / name).stat().st_size for name in "fgh"] == [1, 0, 1000]


@check(AREA, "O_DIRECT", lower=lambda top: (top / "f").write_bytes(b"x" * 8192) and None)
def _(it: Case) -> None:
    import mmap

    with mmap.mmap(-1, 4096) as block, opened(it / "f", os.O_RDWR | os.O_DIRECT) as fd:
        assert os.preadv(fd, [block], 4096) == 4096
        block[:2] = b"yy"
        assert os.pwritev(fd, [block], 0) == 4096
    assert (it / "f").read_bytes()[:3] == b"yyx"


@check(AREA, "fsync of files and directories, syncfs", lower=files("f"))
def _(it: Case) -> None:
    for path, flags in ((it / "f", os.O_RDWR), (it.here, os.O_RDONLY)):
        with opened(path, flags) as fd:
            os.fsync(fd)
            os.fdatasync(fd)
            assert _libc.syncfs(fd) == 0


class _Statx(ctypes.Structure):
    _fields_ = [("mask", ctypes.c_uint32), ("rest", ctypes.c_uint8 * 252)]


@check(AREA, "statx tells the time of birth", lower=files("f"))
def _(it: Case) -> None:
    for name in ("f", "new"):
        (it / name).touch()
        found = _Statx()
        assert _libc.statx(-100, bytes(it / name), 0, 0x800, ctypes.byref(found)) == 0
        assert found.mask & 0x800


@check(AREA, "lsattr and chattr (FS_IOC_GETFLAGS, SETFLAGS)", lower=files("f"))
def _(it: Case) -> None:
    with opened(it / "f", os.O_RDWR) as fd:
        flags = struct.unpack("I", fcntl.ioctl(fd, 0x80086601, b"\0" * 4))[0]
        fcntl.ioctl(fd, 0x40086602, struct.pack("I", flags | 0x80))
        assert struct.unpack("I", fcntl.ioctl(fd, 0x80086601, b"\0" * 4))[0] & 0x80


def special(directory: Path) -> None:
    os.mkfifo(directory / "fifo", 0o640)
    os.mknod(directory / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(directory / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    with socket.socket(socket.AF_UNIX) as there:
        there.bind(str(directory / "socket"))


@check(AREA, "lower fifos, sockets and devices are shown and copied up as such", lower=special)
def _(it: Case) -> None:
    for name, kind, device in (
        ("fifo", stat.S_IFIFO, 0),
        ("null", stat.S_IFCHR, os.makedev(1, 3)),
        ("disk", stat.S_IFBLK, os.makedev(259, 70000)),
        ("socket", stat.S_IFSOCK, 0),
    ):
        for mode in (None, 0o622):
            if mode is not None:
                (it / name).chmod(mode)
            found = (it / name).lstat()
            assert (stat.S_IFMT(found.st_mode), found.st_rdev) == (kind, device)


@check(AREA, "fifos pass data, sockets connect, devices work")
def _(it: Case) -> None:
    os.mkfifo(it / "fifo")
    with opened(it / "fifo", os.O_RDWR) as fd:
        os.write(fd, b"through")
        assert os.read(fd, 9) == b"through"
    os.chdir(it.here)  # a socket's path is short
    try:
        with socket.socket(socket.AF_UNIX) as server, socket.socket(socket.AF_UNIX) as client:
            server.bind("socket")
            server.listen()
            client.connect("socket")
    finally:
        os.chdir("/")
    os.mknod(it / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    with opened(it / "zero") as fd:
        assert os.read(fd, 4) == b"\0" * 4


@check(AREA, "rename: NOREPLACE, EXCHANGE", lower=files("f", "g", "h"))
def _(it: Case) -> None:
    fails(errno.EEXIST, lambda: rename(it / "f", it / "g", 1))
    rename(it / "f", it / "new", 1)
    rename(it / "new", it / "g", 2)
    rename(it / "g", it / "h", 2)
    assert [(it / name).read_text() for name in ("new", "g", "h")] == ["g", "h", "f"]


AREA = "Errors"


@check(
    AREA,
    "ENOTEMPTY: rmdir and rename over a directory that shows entries",
    lower=files("d/f", "e/g"),
)
def _(it: Case) -> None:
    fails(errno.ENOTEMPTY, lambda: os.rmdir(it / "d"))
    (it / "new").mkdir()
    fails(errno.ENOTEMPTY, lambda: os.rename(it / "new", it / "e"))
    (it / "d/f").unlink()
    os.rmdir(it / "d")


@check(AREA, "EISDIR, ENOTDIR: files for directories and the other way", lower=files("d/f", "f"))
def _(it: Case) -> None:
    fails(errno.EISDIR, lambda: os.close(os.open(it / "d", os.O_WRONLY)))
    fails(errno.EISDIR, lambda: os.unlink(it / "d"))
    fails(errno.EISDIR, lambda: os.rename(it / "f", it / "d"))
    fails(errno.ENOTDIR, lambda: os.rename(it / "d", it / "f"))
    fails(errno.ENOTDIR, lambda: os.rmdir(it / "f"))
    fails(errno.ENOTDIR, lambda: os.stat(it / "f/x"))
    fails(errno.ENOTDIR, lambda: os.close(os.open(it / "f", os.O_DIRECTORY)))


@check(AREA, "EXDEV: rename and link between two of them", lower=files("f"))
def _(it: Case) -> None:
    other = it.ground.other / it.name
    fails(errno.EXDEV, lambda: os.rename(it / "f", other / "g"))
    fails(errno.EXDEV, lambda: os.link(it / "f", other / "g"))


@check(AREA, "EROFS: every change of what is read-only", lower=files("f", "d/g"))
def _(it: Case) -> None:
    here = it.ground.readonly / it.name
    for step in (
        lambda: os.close(os.open(here / "f", os.O_WRONLY)),
        lambda: os.close(os.open(here / "new", os.O_CREAT | os.O_WRONLY)),
        lambda: os.mkdir(here / "new"),
        lambda: os.unlink(here / "f"),
        lambda: os.rmdir(here / "d"),
        lambda: os.rename(here / "f", here / "g"),
        lambda: os.chmod(here / "f", 0o600),
        lambda: os.chown(here / "f", 1, 1),
        lambda: os.truncate(here / "f", 0),
        lambda: os.utime(here / "f"),
        lambda: os.setxattr(here / "f", "user.u", b""),
        lambda: os.symlink("x", here / "l"),
        lambda: os.link(here / "f", here / "l"),
        lambda: os.mkfifo(here / "p"),
    ):
        fails(errno.EROFS, step)
    assert (here / "d/g").read_text() == "d/g"


def program(directory: Path) -> None:
    shutil.copy("/bin/sleep", directory / "sleep")
    shutil.copy("/bin/true", directory / "true")


@check(AREA, "ETXTBSY: writing a program that runs, running one that is written", lower=program)
def _(it: Case) -> None:
    (it / "sleep").chmod(0o700)  # copies up
    running = subprocess.Popen([it / "sleep", "60"])
    try:
        fails(errno.ETXTBSY, lambda: os.close(os.open(it / "sleep", os.O_WRONLY)))
    finally:
        running.kill()
        running.wait()
    with opened(it / "true", os.O_WRONLY):
        fails(errno.ETXTBSY, lambda: subprocess.run([it / "true"], check=False))
    assert subprocess.run([it / "true"], check=False).returncode == 0


@check(AREA, "ETXTBSY: writing a lower program that runs", lower=program)
def _(it: Case) -> None:
    running = subprocess.Popen([it / "sleep", "60"])
    try:
        fails(errno.ETXTBSY, lambda: os.close(os.open(it / "sleep", os.O_WRONLY)))
    finally:
        running.kill()
        running.wait()


@check(AREA, "EEXIST, ENOENT, EINVAL where they belong", lower=files("f", "d/e/g"))
def _(it: Case) -> None:
    fails(errno.EEXIST, lambda: os.mkdir(it / "f"))
    fails(errno.EEXIST, lambda: os.symlink("x", it / "f"))
    fails(errno.EEXIST, lambda: os.link(it / "f", it / "d/e/g"))
    fails(errno.EEXIST, lambda: os.close(os.open(it / "f", os.O_CREAT | os.O_EXCL)))
    fails(errno.ENOENT, lambda: os.unlink(it / "none"))
    fails(errno.ENOENT, lambda: os.rename(it / "none", it / "f"))
    fails(errno.EINVAL, lambda: os.rename(it / "d", it / "d/e/new"))
    fails(errno.ENOTEMPTY, lambda: os.rename(it / "d/e", it / "d"))
    fails(errno.EPERM, lambda: os.link(it / "d", it / "new"))
    fails(errno.EINVAL, lambda: os.truncate(it / "f", -1))
    fails(errno.EINVAL, lambda: os.readlink(it / "f"))


def many_links(directory: Path) -> None:
    (directory / "f").touch()
    (directory / "d").mkdir()
    os.link(directory / "f", directory / "one")
    count = 0
    try:
        while count < 70_000:
            os.link(directory / "f", directory / f"d/{count}")
            count += 1
    except OSError as error:
        if error.errno != errno.EMLINK:
            raise


@check(AREA, "EMLINK: one link too many", upper=many_links)
def _(it: Case) -> None:
    fails(errno.EMLINK, lambda: os.link(it / "f", it / "more"))
    (it / "one").unlink()  # not in the directory of all others, which takes long to read
    os.link(it / "f", it / "more")


@check(AREA, "ENXIO: opening a socket, and a fifo that nobody reads", lower=special)
def _(it: Case) -> None:
    fails(errno.ENXIO, lambda: os.close(os.open(it / "socket", os.O_RDONLY)))
    fails(errno.ENXIO, lambda: os.close(os.open(it / "fifo", os.O_WRONLY | os.O_NONBLOCK)))


@check(AREA, "attributes: ENODATA, ERANGE, E2BIG", lower=files("f"))
def _(it: Case) -> None:
    os.setxattr(it / "f", "user.u", b"v" * 100)
    fails(errno.ENODATA, lambda: os.getxattr(it / "f", "user.no"))
    fails(errno.ENODATA, lambda: os.removexattr(it / "f", "user.no"))
    fails(errno.E2BIG, lambda: os.setxattr(it / "f", "user.b", b"v" * 65537))
    buffer = ctypes.create_string_buffer(10)
    assert _libc.getxattr(bytes(it / "f"), b"user.u", buffer, 10) == -1
    assert ctypes.get_errno() == errno.ERANGE


@check(AREA, "EACCES: no way through a directory without x", lower=files("d/f"))
def _(it: Case) -> None:
    (it / "d").chmod(0o644)
    fails(errno.EACCES, lambda: as_user(it.here, 1000, lambda: os.stat("d/f")))


@check(AREA, "EFBIG with SIGXFSZ ignored: files end at RLIMIT_FSIZE", lower=files("f"))
def _(it: Case) -> None:
    import resource

    def step() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        with opened("f", os.O_WRONLY) as fd:  # type: ignore[arg-type]
            os.pwrite(fd, b"x", 4096)

    (it / "f").chmod(0o666)
    fails(errno.EFBIG, lambda: as_user(it.here, 1000, step))
