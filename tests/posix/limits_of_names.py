"""Names: their lengths, loops of links, types in each other's place, moves, links, listings."""

from __future__ import annotations

import ctypes
import os
import stat
from itertools import product
from pathlib import Path

from tests.posix.limits import (
    KINDS,
    Saying,
    call,
    libc,
    links_of,
    mode,
    one_of_each,
    opened,
    program,
    rename2,
    size_of,
)


def many(name: str, count: int) -> str:
    return "/".join([name] * count)


@program(one_of_each)
def lengths(say: Saying) -> None:
    for size in (1, 254, 255, 256, 300, 4095):
        name = "n" * size
        say(f"open {size}", opened, name, os.O_CREAT | os.O_WRONLY)
        say("stat", lambda: size_of(name))
        say("absent", size_of, "x" * size)
        say("link", os.link, "file", name[:-1] + "l")
        say("unlink", os.unlink, name[:-1] + "l")
        say("rename", os.rename, name, name[:-1] + "m")
        say("unlink", os.unlink, name[:-1] + "m")
        for what, make in (
            ("mkdir", os.mkdir),
            ("mkfifo", os.mkfifo),
            ("symlink", lambda n: os.symlink("x", n)),
            ("mknod", lambda n: os.mknod(n, 0o100600)),
        ):
            say(what, make, name)
            say("gone", lambda: os.rmdir(name) if what == "mkdir" else os.unlink(name))
        say("rmdir", os.rmdir, name)
        say("chmod", os.chmod, name, 0o600)
        say("setxattr", os.setxattr, name, "user.a", b"")
    os.mkdir("p" * 255)
    for count in (4093, 4094, 4095, 4096, 5000):
        path = "./" * (count // 2) if count % 2 == 0 else "./" * ((count - 3) // 2) + ".//"
        path = path[: count - 4] + "file"
        for what, step in (
            ("stat", os.stat),
            ("open", lambda p: opened(p, os.O_RDONLY)),
            ("mkdir", os.mkdir),
            ("unlink", lambda p: os.unlink(p + "x")),
            ("truncate", lambda p: os.truncate(p, 3)),
            ("chmod", lambda p: os.chmod(p, 0o640)),
            ("readlink", os.readlink),
            ("statfs", os.statvfs),
        ):
            say(f"{what} {len(path)}", lambda: step(path) and None)
    for size in (1, 59, 60, 255, 256, 1023, 4093, 4094, 4095, 4096, 5000):
        say(f"symlink {size}", os.symlink, "t" * size, "s")
        say("is", lambda: (len(os.readlink("s")), os.lstat("s").st_size))
        say("through", size_of, "s")
        say("gone", os.unlink, "s")
    say("symlink to nothing", os.symlink, "", "s")
    say("statvfs", lambda: os.statvfs(".").f_namemax)
    say(
        "pathconf",
        lambda: [
            os.pathconf(".", it)
            for it in (
                "PC_NAME_MAX",
                "PC_PATH_MAX",
                "PC_PIPE_BUF",
                "PC_CHOWN_RESTRICTED",
                "PC_NO_TRUNC",
            )
        ],
    )


@program(one_of_each)
def loops(say: Saying) -> None:
    os.symlink("file", "l0")
    for number in range(1, 45):
        os.symlink(f"l{number - 1}", f"l{number}")
    for number in (0, 15, 41, 44):  # what leaves the cache on the way is counted twice
        say(f"{number}", size_of, f"l{number}")
        say("open", opened, f"l{number}", os.O_WRONLY)
        say("chmod", os.chmod, f"l{number}", 0o600)
        say("truncate", os.truncate, f"l{number}", 4)
        say("nofollow", opened, f"l{number}", os.O_RDONLY | os.O_NOFOLLOW)
        say("path", opened, f"l{number}", os.O_PATH | os.O_NOFOLLOW)
        say("link", os.link, f"l{number}", "hard", follow_symlinks=True)
        say("gone", os.unlink, "hard")
        say("link itself", os.link, f"l{number}", "hard", follow_symlinks=False)
        say("is", stat.S_ISLNK, os.lstat("hard").st_mode)
        say("gone", os.unlink, "hard")
    os.symlink("b", "a")
    os.symlink("a", "b")
    os.symlink("self/x", "self")
    os.symlink(".", "here")
    for name in (
        "a",
        "self",
        "a/x",
        many("here", 15) + "/file",
        many("here", 42) + "/file",
    ):
        for what, step in (
            ("stat", lambda: size_of(name)),
            ("open", lambda: opened(name, os.O_RDONLY)),
            ("create", lambda: opened(name, os.O_WRONLY | os.O_CREAT)),
            ("exclusive", lambda: opened(name, os.O_WRONLY | os.O_CREAT | os.O_EXCL)),
            ("mkdir", lambda: os.mkdir(name)),
            ("mkdir in", lambda: os.mkdir(name + "/d")),
            ("rename", lambda: os.rename("file", name + "/y")),
            ("link", lambda: os.link("file", name + "/y")),
            ("chdir", lambda: os.chdir(name)),
        ):
            say(f"{what} {name[:12]} {len(name)}", step)
    os.symlink("nothing", "dangling")
    say("create through", opened, "dangling", os.O_WRONLY | os.O_CREAT)
    say("there", mode, "nothing")
    os.unlink("nothing")
    say("exclusive through", opened, "dangling", os.O_WRONLY | os.O_CREAT | os.O_EXCL)
    say("mkdir through", os.mkdir, "dangling")
    say("slash", os.mkdir, "dangling/")
    say("rename onto", os.rename, "fifo", "dangling")
    say("is", mode, "dangling")


def _a_zoo() -> None:
    one_of_each(0, 0)
    os.mkdir("full")
    Path("full/inside").write_text("inside")
    os.link("file", "same")


@program(_a_zoo)
def types(say: Saying) -> None:
    """Each call on each type, with each odd ending."""
    here = os.getcwd()
    names = (*KINDS, "full", "none")
    endings = ("", "/", "/.", "/..", "/x")
    for name, ending in product(names, endings):
        path = name + ending
        for what, step in (
            ("stat", lambda: stat.S_IFMT(os.stat(path).st_mode)),
            ("lstat", lambda: stat.S_IFMT(os.lstat(path).st_mode)),
            ("mkdir", lambda: os.mkdir(path)),
            ("mkfifo", lambda: os.mkfifo(path)),
            ("symlink", lambda: os.symlink("y", path)),
            ("link", lambda: os.link("file", path)),
            ("rename onto", lambda: os.rename("same", path)),
            ("rename dir onto", lambda: os.rename("full", path)),
            ("access", lambda: os.access(path, os.W_OK)),
            ("readlink", lambda: os.readlink(path)),
            ("truncate", lambda: os.truncate(path, 2)),
            ("opendir", lambda: sorted(os.listdir(path)) and None),
        ):
            if (
                ending in ("", "/x")
                and what in ("mkdir", "mkfifo", "symlink", "link", "rename onto", "rename dir onto")
                and (name in ("none",) or ending == "/x")
            ):
                continue
            if what.startswith("rename") and (ending == "" or name == "none"):
                continue
            say(f"{what} {path}", step)
            if name == "none" and os.path.lexists("none"):
                say("made", mode, "none")
                os.rmdir("none") if os.path.isdir("none") else os.unlink("none")
        for flags in (
            os.O_RDONLY,
            os.O_WRONLY,
            os.O_RDONLY | os.O_DIRECTORY,
            os.O_RDONLY | os.O_CREAT,
            os.O_RDONLY | os.O_CREAT | os.O_EXCL,
            os.O_RDONLY | os.O_CREAT | os.O_DIRECTORY,
            os.O_RDONLY | os.O_NOFOLLOW,
            os.O_PATH | os.O_NOFOLLOW | os.O_DIRECTORY,
            os.O_RDONLY | os.O_TRUNC,
        ):
            if name != "null" or flags & os.O_TRUNC == 0:
                say(f"open {path} {flags:o}", opened, path, flags | os.O_NONBLOCK)
                if name == "none" and os.path.lexists("none"):
                    say("made", mode, "none")
                    os.rmdir("none") if os.path.isdir("none") else os.unlink("none")
    for path in (".", "..", "dir/.", "dir/..", "full/..", "./", "file/.", "none/.", ""):
        for what, step in (
            ("rmdir", lambda: os.rmdir(path)),
            ("unlink", lambda: os.unlink(path)),
            ("mkdir", lambda: os.mkdir(path)),
            ("rename from", lambda: os.rename(path, "new")),
            ("rename to", lambda: os.rename("dir", path)),
            ("link from", lambda: os.link(path, "new")),
            ("symlink", lambda: os.symlink("x", path)),
            ("chdir", lambda: (os.chdir(path), os.chdir(here))),
        ):
            say(f"{what} {path!r}", lambda: step() and None)
    for name in names:
        say(f"rmdir {name}", os.rmdir, name)
    for name in ("dir", "full", "none"):
        say(f"unlink {name}", os.unlink, name)
    say("links", lambda: {name: os.lstat(name).st_nlink for name in KINDS if os.path.lexists(name)})


@program()
def moves(say: Saying) -> None:
    """All pairs of types, with all flags."""
    kinds = ("file", "hard", "link", "fifo", "dir", "full", "none")

    def make(what: str, name: str) -> None:
        if what == "file":
            Path(name).write_text(name)
        elif what == "hard":
            Path("base").touch()
            os.link("base", name)
        elif what == "link":
            os.symlink("base", name)
        elif what == "fifo":
            os.mkfifo(name)
        elif what in ("dir", "full"):
            os.mkdir(name)
            if what == "full":
                Path(f"{name}/inside").touch()

    def clean(name: str) -> None:
        if os.path.isdir(name) and not os.path.islink(name):
            for inside in os.listdir(name):
                clean(f"{name}/{inside}")
            os.rmdir(name)
        elif os.path.lexists(name):
            os.unlink(name)

    os.mkdir("other")
    for one, two, flags in product(kinds, kinds, (0, 1, 2, 3, 6, 8)):
        for target in ("b", "other/b"):
            make(one, "a")
            make(two, target)
            say(f"{one} {two} {flags} {target}", rename2, "a", target, flags)
            say("is", lambda: [mode(it) if os.path.lexists(it) else "-" for it in ("a", target)])
            for name in ("a", target, "base"):
                clean(name)
    make("full", "d")
    for flags in (0, 1, 2):
        say(f"into itself {flags}", rename2, "d", "d/x", flags)
        say("into below", rename2, "d", "d/inside/x", flags)
        say("onto itself", rename2, "d", "d", flags)
        say("onto its parent", rename2, "d/inside", "d", flags)
        say("onto its child", rename2, "d", "d/inside", flags)
    Path("x").touch()
    os.link("x", "y")
    say("same file", os.rename, "x", "y")
    say("both there", sorted, os.listdir("."))
    say("links", links_of, "x")


@program(one_of_each)
def links(say: Saying) -> None:
    for name in KINDS:
        say(f"link {name}", os.link, name, "new", follow_symlinks=False)
        say("count", links_of, name)
        say("again", os.link, name, "new", follow_symlinks=False)
        say("gone", os.unlink, "new")
        say("count", links_of, name)
    fd = os.open("file", os.O_RDWR)
    say("empty path", call, "linkat", fd, b"", -100, b"byfd", 0x1000)
    say("by proc", call, "linkat", -100, f"/proc/self/fd/{fd}".encode(), -100, b"byproc", 0x400)
    for name in ("file", "byfd", "byproc"):
        os.path.lexists(name) and os.unlink(name)
    say("removed", links_of, fd)
    say("link of removed", call, "linkat", fd, b"", -100, b"byfd", 0x1000)
    say(
        "link of removed by proc",
        call,
        "linkat",
        -100,
        f"/proc/self/fd/{fd}".encode(),
        -100,
        b"byfd",
        0x400,
    )
    say("write removed", os.write, fd, b"abc")
    say("chmod removed", os.fchmod, fd, 0o611)
    say("chown removed", os.fchown, fd, 4, 5)
    say("utime removed", os.utime, fd, ns=(5, 6))
    say("xattr removed", os.setxattr, fd, "user.r", b"x")
    say(
        "is",
        lambda: (
            oct(os.fstat(fd).st_mode),
            os.fstat(fd).st_uid,
            os.fstat(fd).st_mtime_ns,
            os.listxattr(fd),
        ),
    )
    say("opened again", opened, f"/proc/self/fd/{fd}", os.O_RDWR)
    say("truncated again", opened, f"/proc/self/fd/{fd}", os.O_RDWR | os.O_TRUNC)
    say("size", size_of, fd)
    os.mkdir("d")
    for count in range(3):
        os.mkdir(f"d/{count}")
    dfd = os.open("d", os.O_RDONLY)
    for count in range(3):
        os.rmdir(f"d/{count}")
    os.rmdir("d")
    say("removed directory", links_of, dfd)
    say("its list", os.listdir, dfd)
    for what, step in (
        ("new", lambda: os.open("x", os.O_CREAT | os.O_WRONLY, dir_fd=dfd)),
        ("mkdir", lambda: os.mkdir("x", dir_fd=dfd)),
        ("stat", lambda: os.stat("x", dir_fd=dfd)),
        ("dot", lambda: stat.S_ISDIR(os.stat(".", dir_fd=dfd).st_mode)),
        ("dotdot", lambda: stat.S_ISDIR(os.stat("..", dir_fd=dfd).st_mode)),
        ("link", lambda: os.link("null", "x", dst_dir_fd=dfd)),
        ("rename", lambda: os.rename("null", "x", dst_dir_fd=dfd)),
        ("chmod", lambda: os.fchmod(dfd, 0o700)),
        ("utime", lambda: os.utime(dfd)),
        ("xattr", lambda: os.setxattr(dfd, "user.x", b"")),
        ("fsync", lambda: os.fsync(dfd)),
        ("open .", lambda: os.close(os.open(".", os.O_RDONLY, dir_fd=dfd))),
        ("tmpfile", lambda: os.close(os.open(".", os.O_TMPFILE | os.O_RDWR, dir_fd=dfd))),
    ):
        say(what, step)


def _crowd() -> None:
    os.mkdir("crowd")
    for number in range(300):
        Path(f"crowd/{number:03}").touch()
    for name in ("d", "l", "p"):
        {"d": os.mkdir, "l": lambda n: os.symlink("x", n), "p": os.mkfifo}[name](f"crowd/{name}")


@program(_crowd)
def listings(say: Saying) -> None:
    libc.opendir.restype = ctypes.c_void_p
    libc.readdir.restype = ctypes.c_void_p
    libc.telldir.restype = ctypes.c_long
    for name in ("closedir", "readdir", "telldir", "rewinddir"):
        getattr(libc, name).argtypes = [ctypes.c_void_p]
    libc.seekdir.argtypes = [ctypes.c_void_p, ctypes.c_long]
    stream = libc.opendir(b"crowd")

    def following() -> tuple[str, int] | None:
        found = libc.readdir(stream)
        if not found:
            return None
        return ctypes.string_at(found + 19).decode(), ctypes.string_at(found + 18, 1)[0]

    def rest() -> list[tuple[str, int]]:
        return list(iter(following, None))

    first = rest()
    say("all", sorted, first)
    libc.rewinddir(stream)
    say("again", lambda: rest() == first)
    libc.rewinddir(stream)
    places = []
    for _ in range(303):
        places.append(libc.telldir(stream))
        following()
    for index in (0, 1, 2, 150, 302):
        libc.seekdir(stream, places[index])
        say(f"from {index}", lambda: rest() == first[index:])
    libc.seekdir(stream, places[100])
    for number in range(0, 300, 2):
        os.unlink(f"crowd/{number:03}")
    Path("crowd/new").touch()
    left = rest()
    stays = [it for it in first[100:] if not it[0].isdigit() or int(it[0]) % 2]
    say("rest after removals", lambda: [it for it in left if it in stays] == stays)
    libc.rewinddir(stream)
    say("all after", sorted, rest())
    libc.closedir(stream)
    say("links", lambda: os.stat("crowd").st_nlink in (1, 3))
