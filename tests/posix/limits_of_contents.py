"""What is in files: times, sizes, locks, and what opens."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import socket
import stat
import struct
import time
from collections.abc import Callable
from itertools import product
from pathlib import Path

from tests.posix.limits import (
    KINDS,
    NOW,
    OMIT,
    Saying,
    call,
    links_of,
    mode,
    one_of_each,
    openat2,
    opened,
    program,
    rename2,
    size_of,
    times,
)


@program(one_of_each)
def times_at_the_limits(say: Saying) -> None:
    for name in KINDS:
        for seconds in (
            -(2**31) - 1,
            -(2**31),
            -1,
            0,
            2**31 - 1,
            2**31,
            2**32,
            2**33,
            15032385535,
            15032385536,
            2**34 - 1,
            2**34,
            2**40,
            -(2**34),
            2**62,
        ):
            spec = struct.pack("<4q", seconds, 999_999_999, seconds, 1)
            say(f"{name} {seconds}", call, "utimensat", -100, name.encode(), spec, 0x100)
            say("is", times, name)
    for one, two in product((0, -1, 10**9 - 1, 10**9, NOW, OMIT), repeat=2):
        os.utime("file", ns=(10**9 * 7, 10**9 * 7))
        say(
            f"nanoseconds {one} {two}",
            call,
            "utimensat",
            -100,
            b"file",
            struct.pack("<4q", 3, one, 4, two),
            0,
        )
        say("is", rough_times, "file")
    say("flags", call, "utimensat", -100, b"file", None, 0x8000)
    say(
        "omit nothing there",
        call,
        "utimensat",
        -100,
        b"none",
        struct.pack("<4q", 0, OMIT, 0, OMIT),
        0,
    )
    say("none", call, "utimensat", -100, b"none", None, 0)
    fd = os.open("file", os.O_RDONLY)
    say("by descriptor", os.utime, fd, ns=(11, 12))
    say("is", times, "file")
    ctime = os.stat("file").st_ctime_ns
    say("omit", call, "utimensat", -100, b"file", struct.pack("<4q", 0, OMIT, 0, OMIT), 0)
    say("ctime same", lambda: os.stat("file").st_ctime_ns == ctime)


def rough_times(path: str) -> list[object]:
    return [it if it < 10**10 else "now" for it in times(path)]


def _rooms() -> None:
    for name in ("from", "to"):
        os.mkdir(name)
    for name in ("a", "b", "c", "d"):
        Path(f"from/{name}").write_text(name)
    os.mkdir("from/sub")


@program(_rooms)
def times_that_changes_leave(say: Saying) -> None:

    def changed(paths: tuple[str, ...], step: Callable[[], object]) -> str:
        for path in paths:
            os.path.lexists(path) and os.utime(path, ns=(1, 1), follow_symlinks=False)
        before = [os.lstat(it) if os.path.lexists(it) else None for it in paths]
        time.sleep(0.012)
        step()
        after = [os.lstat(it) if os.path.lexists(it) else None for it in paths]
        return str(
            [
                None
                if a is None or b is None
                else "".join(
                    k
                    for k, f in (("a", "st_atime_ns"), ("m", "st_mtime_ns"), ("c", "st_ctime_ns"))
                    if getattr(a, f) != getattr(b, f)
                )
                for a, b in zip(before, after, strict=True)
            ]
        )

    both = ("from", "to")
    steps = {
        "rename": (("from", "to"), lambda: os.rename("from/a", "to/a")),
        "rename here": (("from", "from/b"), lambda: os.rename("from/b", "from/b2")),
        "rename over": (("from", "to"), lambda: os.rename("from/b2", "to/a")),
        "exchange": (("from", "to", "from/c", "to/a"), lambda: rename2("from/c", "to/a", 2)),
        "link": (("from", "to", "from/c"), lambda: os.link("from/c", "to/l")),
        "unlink": (("from", "to", "to/l"), lambda: os.unlink("from/c")),
        "mkdir": (both, lambda: os.mkdir("to/new")),
        "rmdir": (both, lambda: os.rmdir("to/new")),
        "symlink": (both, lambda: os.symlink("x", "to/s")),
        "mkfifo": (both, lambda: os.mkfifo("to/p")),
        "move dir": (("from", "to", "from/sub"), lambda: os.rename("from/sub", "to/sub")),
        "dir moved": (("to/sub",), lambda: os.rename("to/sub", "from/sub")),
        "chmod": (("from/d", "from"), lambda: os.chmod("from/d", 0o611)),
        "chmod same": (("from/d", "from"), lambda: os.chmod("from/d", 0o611)),
        "chown": (("from/d", "from"), lambda: os.chown("from/d", 1, 1)),
        "xattr": (("from/d", "from"), lambda: os.setxattr("from/d", "user.x", b"")),
        "rm xattr": (("from/d", "from"), lambda: os.removexattr("from/d", "user.x")),
        "truncate same": (("from/d",), lambda: os.truncate("from/d", 1)),
        "truncate": (("from/d",), lambda: os.truncate("from/d", 5)),
        "O_TRUNC": (("from/d", "from"), lambda: opened("from/d", os.O_WRONLY | os.O_TRUNC)),
        "O_TRUNC of empty": (
            ("from/d", "from"),
            lambda: opened("from/d", os.O_WRONLY | os.O_TRUNC),
        ),
        "O_CREAT of old": (("from/d", "from"), lambda: opened("from/d", os.O_WRONLY | os.O_CREAT)),
        "open for writing": (("from/d", "from"), lambda: opened("from/d", os.O_WRONLY)),
        "write": (("from/d", "from"), lambda: Path("from/d").write_text("x")),
        "write nothing": (("from/d",), lambda: _pwrite("from/d", b"", 0)),
        "pwrite": (("from/d",), lambda: _pwrite("from/d", b"x", 0)),
        "fallocate": (
            ("from/d",),
            lambda: _with("from/d", lambda fd: os.posix_fallocate(fd, 0, 9000)),
        ),
        "punch": (
            ("from/d",),
            lambda: _with(
                "from/d", lambda fd: call("fallocate", fd, 3, ctypes.c_long(0), ctypes.c_long(4096))
            ),
        ),
        "mapped": (("from/d",), lambda: _with("from/d", _map_write)),
        "list": (("from", "to"), lambda: os.listdir("to")),
        "read": (("from/d",), lambda: Path("from/d").read_bytes()),
        "readlink": (("to/s", "to"), lambda: os.readlink("to/s")),
    }
    for what, (paths, step) in steps.items():
        say(what, changed, paths, step)


def _with(path: str, step: Callable[[int], object]) -> None:
    fd = os.open(path, os.O_RDWR)
    try:
        step(fd)
    finally:
        os.close(fd)


def _pwrite(path: str, data: bytes, at: int) -> None:
    _with(path, lambda fd: os.pwrite(fd, data, at))


def _map_write(fd: int) -> None:
    with mmap.mmap(fd, 1) as memory:
        memory[0] = 65
        memory.flush()


@program(one_of_each)
def sizes(say: Saying) -> None:
    for size in (
        -1,
        0,
        1,
        4096,
        2**31 - 1,
        2**31,
        2**32,
        2**34,
        2**34 + 1,
        2**43,
        2**44 - 4096,
        2**44 - 1,
        2**44,
        2**45,
        2**62,
        2**63 - 1,
    ):
        say(f"truncate {size}", os.truncate, "file", size)
        say("is", size_of, "file")
    os.truncate("file", 0)
    fd = os.open("file", os.O_RDWR)
    for at in (
        -1,
        0,
        4095,
        2**31 - 1,
        2**32,
        2**34,
        2**44 - 4097,
        2**44 - 4096,
        2**44 - 1,
        2**44,
        2**62,
        2**63 - 2,
        2**63 - 1,
    ):
        say(f"pwrite {at}", os.pwrite, fd, b"xy", at)
        say("size", size_of, fd)
        say("pread", os.pread, fd, 3, at)
        if at >= 2**44 - 4097:  # a seek beyond what the file system holds is refused there only
            os.ftruncate(fd, 0)
            continue
        say("seek", os.lseek, fd, at, os.SEEK_SET)
        say("write", os.write, fd, b"z")
        say("seek end", os.lseek, fd, 5, os.SEEK_END)
        say("seek data", lambda: os.lseek(fd, at, os.SEEK_DATA) == at)
        say("seek hole", lambda: os.lseek(fd, at, os.SEEK_HOLE) >= at)
        say("ftruncate", os.ftruncate, fd, 0)
    say("seek", os.lseek, fd, -1, os.SEEK_SET)
    say("seek", os.lseek, fd, -1, os.SEEK_CUR)
    say("seek data of empty", os.lseek, fd, 0, os.SEEK_DATA)
    say("seek how", call, "lseek", fd, ctypes.c_long(0), 9)
    for modes in (0, 1, 2, 3, 0x10, 0x11, 0x13):
        for at, size in (
            (0, 0),
            (0, 4096),
            (-1, 4096),
            (4096, -1),
            (2**44, 4096),
            (2**62, 2**62),
            (2**44 - 4096, 8192),
            (100, 10),
        ):
            say(
                f"fallocate {modes:x} {at} {size}",
                call,
                "fallocate",
                fd,
                modes,
                ctypes.c_long(at),
                ctypes.c_long(size),
            )
            say("size", size_of, fd)
    for name in KINDS:
        if name != "link" and name != "socket":
            with _Fd(name) as other:
                say(
                    f"fallocate {name}",
                    call,
                    "fallocate",
                    other,
                    0,
                    ctypes.c_long(0),
                    ctypes.c_long(4096),
                )
                say(f"ftruncate {name}", os.ftruncate, other, 3)
                say(f"fsync {name}", os.fsync, other)
                say(f"mmap {name}", lambda: mmap.mmap(other, 1).close())
                say("read", os.read, other, 0)
    read, write, append = (
        os.open("file", it) for it in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR | os.O_APPEND)
    )
    say("write to reader", os.write, read, b"x")
    say("read of writer", os.read, write, 1)
    say("ftruncate of reader", os.ftruncate, read, 0)
    say("fallocate of reader", call, "fallocate", read, 0, ctypes.c_long(0), ctypes.c_long(1))
    os.ftruncate(write, 0)
    os.write(append, b"12345")
    say("pwrite of appender", os.pwrite, append, b"AB", 0)
    say("is", os.pread, append, 9, 0)
    say(
        "map writer of reader", lambda: mmap.mmap(read, 1, mmap.MAP_SHARED, mmap.PROT_WRITE).close()
    )
    say("map writer", lambda: mmap.mmap(write, 1, mmap.MAP_SHARED, mmap.PROT_WRITE).close())
    say("map private", lambda: mmap.mmap(read, 1, mmap.MAP_PRIVATE, mmap.PROT_WRITE).close())
    say("copy to appender", os.copy_file_range, read, append, 2)
    say("copy from writer", os.copy_file_range, write, write, 2)
    say("copy onto itself", os.copy_file_range, append, write, 4, 0, 1)
    both = os.open("file", os.O_RDWR)
    say("overlap", os.copy_file_range, both, both, 4, 0, 1)
    say("behind", os.copy_file_range, both, both, 4, 0, 100)
    say("behind the end", os.copy_file_range, both, both, 4, 2**40, 0)
    dfd = os.open("dir", os.O_RDONLY)
    say("from dir", os.copy_file_range, dfd, both, 4)
    say("read dir", os.read, dfd, 4)
    say("sendfile", os.sendfile, both, read, 0, 3)
    for flag in (os.RWF_NOWAIT, os.RWF_HIPRI, 1 << 20):
        say(f"preadv2 {flag}", os.preadv, both, [bytearray(2)], 0, flag)
    for flag in (os.RWF_DSYNC, os.RWF_SYNC, os.RWF_APPEND, os.RWF_HIPRI, 1 << 20):
        say(f"pwritev2 {flag}", os.pwritev, both, [b"q"], 0, flag)
    say("is", size_of, both)
    for advice in range(7):
        say(f"fadvise {advice}", os.posix_fadvise, both, 0, 100, advice)
    say("readahead", call, "readahead", both, ctypes.c_long(0), ctypes.c_size_t(100))
    say("sync_file_range", call, "sync_file_range", both, ctypes.c_long(0), ctypes.c_long(0), 7)
    say("sync_file_range", call, "sync_file_range", both, ctypes.c_long(-1), ctypes.c_long(0), 7)


class _Fd:
    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> int:
        flags = os.O_RDONLY if self.name == "dir" else os.O_RDWR
        self.fd = os.open(self.name, flags | os.O_NONBLOCK)
        return self.fd

    def __exit__(self, *exc: object) -> None:
        os.close(self.fd)


@program(one_of_each)
def locks_and_controls(say: Saying) -> None:
    read, write, both = (os.open("file", it) for it in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR))

    def lock(kind: int, start: int = 0) -> bytes:
        return struct.pack("hhqqi", kind, 0, start, 0, 0)

    for what, fd in (("reader", read), ("writer", write), ("both", both)):
        for how in (0, 1, 2, 7):
            say(f"{what} {how}", lambda: fcntl.fcntl(fd, fcntl.F_SETLK, lock(how)) and None)
            say("odd", lambda: fcntl.fcntl(fd, fcntl.F_SETLK, lock(how, -1)) and None)
            say("ofd", lambda: fcntl.fcntl(fd, 37, lock(how)) and None)
        for how in (1, 2, 8, 1 | 4, 2 | 4, 9):
            say(f"flock {how}", fcntl.flock, fd, how)
        fcntl.flock(fd, 8)
        fcntl.fcntl(fd, fcntl.F_SETLK, lock(2))
        fcntl.fcntl(fd, 37, lock(2))
    for what, fd in (("reader", read), ("writer", write)):
        for kind in (fcntl.F_RDLCK, fcntl.F_WRLCK, fcntl.F_UNLCK):
            say(f"lease {what} {kind}", fcntl.fcntl, fd, fcntl.F_SETLEASE, kind)
    for fd in (write, both):
        os.close(fd)
    say("read lease", fcntl.fcntl, read, fcntl.F_SETLEASE, fcntl.F_RDLCK)
    say("is", fcntl.fcntl, read, fcntl.F_GETLEASE)
    say("gone", fcntl.fcntl, read, fcntl.F_SETLEASE, fcntl.F_UNLCK)
    dfd = os.open("dir", os.O_RDONLY)
    say("dnotify", fcntl.fcntl, dfd, fcntl.F_NOTIFY, 0x80000004)
    say("dnotify off", fcntl.fcntl, dfd, fcntl.F_NOTIFY, 0)
    say("seals", fcntl.fcntl, read, 1034)
    say("hint", lambda: fcntl.fcntl(read, 1036, struct.pack("<Q", 2)) and None)
    say("flags", fcntl.fcntl, read, fcntl.F_SETFL, os.O_APPEND | os.O_NONBLOCK)
    say("direct", fcntl.fcntl, read, fcntl.F_SETFL, os.O_DIRECT)
    fcntl.fcntl(read, fcntl.F_SETFL, 0)
    for what, number in (
        ("FIONREAD", 0x541B),
        ("FIGETBSZ", 2),
        ("TCGETS", 0x5401),
        ("FIOQSIZE", 0x5460),
        ("FS_IOC_GETFLAGS", 0x80086601),
        ("FS_IOC_FSGETXATTR", 0x801C581F),
        ("FIFREEZE none", 0xC0045877 ^ 0xFFFF),
        ("BLKGETSIZE", 0x1260),
        ("FS_IOC_GETFSUUID", 0x80111500),
        ("FS_IOC_GETFSLABEL", 0x81009431),
    ):
        for fd_what, fd in (("file", read), ("dir", dfd)):

            def ask() -> str:
                buffer = bytearray(512)
                fcntl.ioctl(fd, number, buffer)
                return "answered"

            say(f"{what} {fd_what}", ask)
    handle = ctypes.create_string_buffer(136)

    def named(path: str, flags: int) -> str:
        struct.pack_into("<I", handle, 0, 128)
        mount = ctypes.c_int()
        call("name_to_handle_at", -100, path.encode(), handle, ctypes.byref(mount), flags)
        return "named"

    say("handle", named, "file", 0)
    say("handle fid", named, "file", 0x200)
    for mask in (0, 0x7FF, 0xFFF, 0x1000, 0x2000, 0x80000000):

        def statx() -> str:
            found = ctypes.create_string_buffer(256)
            call("statx", -100, b"file", 0, mask, found)
            links, uid, gid, bits = struct.unpack_from("<IIIH", found, 16)
            return f"{links} {uid} {gid} {bits:o} {struct.unpack_from('<Q', found, 40)[0]}"

        say(f"statx {mask:x}", statx)
    say("statx flags", call, "statx", -100, b"file", 0x6000, 0x7FF, handle)


@program(one_of_each)
def nameless(say: Saying) -> None:
    for flags in (
        os.O_TMPFILE | os.O_RDONLY,
        os.O_TMPFILE | os.O_WRONLY,
        os.O_TMPFILE | os.O_RDWR | os.O_EXCL,
        os.O_TMPFILE | os.O_RDWR | os.O_CREAT,
    ):
        for name in ("dir", "file", "none", "."):
            say(f"tmpfile {flags:o} {name}", opened, name, flags)
    fd = os.open("dir", os.O_TMPFILE | os.O_RDWR | os.O_EXCL)
    say("link exclusive", call, "linkat", fd, b"", -100, b"tmp", 0x1000)
    fd = os.open("dir", os.O_TMPFILE | os.O_RDWR, 0o6755)
    say("nameless", lambda: (oct(os.fstat(fd).st_mode), os.fstat(fd).st_nlink))
    say("link", call, "linkat", fd, b"", -100, b"tmp", 0x1000)
    say("again", call, "linkat", fd, b"", -100, b"tmp2", 0x1000)
    say("count", links_of, fd)


@program(one_of_each)
def opens(say: Saying) -> None:
    for flags in (
        os.O_DIRECT,
        os.O_SYNC,
        os.O_DSYNC,
        os.O_NOATIME,
        os.O_ASYNC,
        os.O_APPEND | os.O_TRUNC,
    ):
        for how in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
            say(f"{flags:o} {how}", opened, "file", flags | how)
    say("3", opened, "file", 3)
    say("size", size_of, "file")
    for resolve in (0, 1, 2, 4, 8, 0x10, 0x40):
        for path in ("file", "link", "dir/../file", "/etc/passwd", "none"):
            say(f"openat2 {resolve:x} {path}", openat2, path, 0, resolve)
    say("openat2 mode", openat2, "file", 0o600, 0)
    os.chmod("file", 0o644)
    for name in KINDS:

        def run() -> str:
            child = os.fork()
            if not child:
                number = 0
                try:
                    os.execv(f"./{name}", [name])
                except OSError as error:
                    number = error.errno or 1
                os._exit(number)
            return os.strerror(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))

        say(f"exec {name}", run)
        if name in ("file", "dir", "fifo", "null"):
            os.chmod(name, 0o755)
            say(f"exec {name} with x", run)
    say("fifo without reader", opened, "fifo", os.O_WRONLY | os.O_NONBLOCK)
    say("fifo both", opened, "fifo", os.O_RDWR)
    say("socket", opened, "socket", os.O_RDWR)
    say("bind", _bind, "socket")
    say("bind new", _bind, "socket2")
    say("is", mode, "socket2")
    say("connect to file", _connect, "file")
    say("connect to dead", _connect, "socket2")
    say("connect to none", _connect, "socket3")
    say("swapon", call, "swapon", b"file", 0)
    say("mount on file", stat.S_ISREG, os.stat("file").st_mode)


def _bind(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.bind(path)


def _connect(path: str) -> None:
    with socket.socket(socket.AF_UNIX) as it:
        it.connect(path)
