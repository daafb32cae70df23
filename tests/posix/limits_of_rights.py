"""Who may: chmod, chown, sticky and set-group directories, ACLs, attributes."""

from __future__ import annotations

import ctypes
import os
import stat
import struct
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.posix.limits import (
    GROUP,
    KINDS,
    NOW,
    OMIT,
    OTHER,
    USER,
    Saying,
    call,
    kind,
    mode,
    one_of_each,
    opened,
    owner,
    program,
    there_and_back,
    user,
)

ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_FCHMODAT2 = 452
TICK_S = 0.011
"""More than the kernel's clock for files takes to go on."""


def _changes_ctime(path: str, step: Callable[..., object], *arguments: Any) -> str:
    before = os.lstat(path).st_ctime_ns
    time.sleep(TICK_S)
    step(*arguments)
    return "changed" if os.lstat(path).st_ctime_ns != before else "same"


@program(one_of_each)
def chmod(say: Saying) -> None:
    for name in KINDS:
        for bits in (0o7777, 0o0, 0o4711, 0o2755, 0o1644, 0o6000):
            say(f"chmod {name} {bits:o}", os.chmod, name, bits)
            say("mode", mode, name)
    for name in KINDS:
        say(f"lchmod {name}", call, "syscall", _FCHMODAT2, -100, name.encode(), 0o640, 0x100)
        say("mode", mode, name)
    with user():
        for name in KINDS:
            for bits in (0o7777, 0o2755, 0o1755):
                say(f"own chmod {name} {bits:o}", os.chmod, name, bits)
                say("mode", mode, name)
    with user(OTHER):
        for name in KINDS:
            say(f"other chmod {name}", os.chmod, name, 0o600)
    os.chown("file", USER, GROUP)
    with user():
        say("set-group not of the group", os.chmod, "file", 0o2755)
        say("mode", mode, "file")
    with user(groups=(GROUP,)):
        say("set-group of the group", os.chmod, "file", 0o2755)
        say("mode", mode, "file")
    say("ctime", _changes_ctime, "file", os.chmod, "file", 0o600)
    say("ctime same mode", _changes_ctime, "file", os.chmod, "file", 0o600)
    say("slash", os.chmod, "file/", 0o600)
    say("empty", os.chmod, "", 0o600)
    say("fault", call, "chmod", 1, 0o600)
    fd = os.open("file", os.O_PATH)
    say("O_PATH", os.fchmod, fd, 0o600)
    say("O_PATH chown", os.fchown, fd, 0, 0)
    say("empty path chown", call, "fchownat", fd, b"", 3, 4, 0x1000)
    say("owner", owner, "file")
    say("empty path chmod", call, "syscall", _FCHMODAT2, fd, b"", 0o611, 0x1000)
    say("mode", mode, "file")


@program(one_of_each)
def chown(say: Saying) -> None:
    for name in KINDS:
        os.chmod(name, 0o6755) if name != "link" else None
        say(f"nothing {name}", os.chown, name, -1, -1, follow_symlinks=False)
        say("mode after nothing", mode, name)
        os.chmod(name, 0o6755) if name != "link" else None
        say(f"lchown {name}", os.chown, name, 5, 6, follow_symlinks=False)
        say("mode", both, name)
        os.chown(name, USER, USER, follow_symlinks=False)
        os.chmod(name, 0o6745) if name != "link" else None
        say(f"own group {name}", os.chown, name, -1, USER, follow_symlinks=False)
        say("mode", mode, name)
    os.chown("file", USER, USER)
    os.chmod("file", 0o6777)
    with user(groups=(GROUP,)):
        say("to own group", os.chown, "file", -1, GROUP)
        say("mode", both, "file")
        say("to other group", os.chown, "file", -1, OTHER)
        say("same owner", os.chown, "file", USER, -1)
        say("away", os.chown, "file", OTHER, -1)
    os.chmod("file", 0o6777)
    with user(OTHER):
        say("other nothing", os.chown, "file", -1, -1)
        say("mode after nothing", mode, "file")
        say("other same", os.chown, "file", USER, -1)
        say("other same group", os.chown, "file", -1, GROUP)
        say("other nothing ctime", _changes_ctime, "file", os.chown, "file", -1, -1)
    say("ctime nothing", _changes_ctime, "file", os.chown, "file", -1, -1)
    say("ctime", _changes_ctime, "file", os.chown, "file", USER, USER)
    say("big", os.chown, "file", 2**32 - 2, 2**32 - 2)
    say("owner", owner, "file")
    say("none", os.chown, "none", 1, 1)
    say("slash", os.chown, "file/", 1, 1)


def both(path: str) -> tuple[str, tuple[int, int]]:
    return mode(path), owner(path)


def _in_sticky() -> None:
    os.mkdir("sticky")
    os.chmod("sticky", 0o1777)
    os.mkdir("deep")
    os.chmod("deep", 0o777)
    for uid in (0, USER, OTHER):
        for what in ("file", "file2", "dir", "full"):
            path = f"sticky/{what}{uid}"
            os.mkdir(path) if what in ("dir", "full") else Path(path).touch()
            if what == "full":
                Path(f"{path}/inside").touch()
            os.chown(path, uid, uid)


@program(_in_sticky)
def sticky(say: Saying) -> None:
    for directory_of in (0, OTHER, USER):
        os.chown("sticky", directory_of, directory_of)
        for uid in (0, USER, OTHER):
            if directory_of == USER and uid == OTHER:
                continue
            with user():
                say(f"{directory_of}: rename {uid}", os.rename, f"sticky/file{uid}", "sticky/x")
                say("back", os.rename, "sticky/x", f"sticky/file{uid}")
                say("out", os.rename, f"sticky/file{uid}", "deep/x")
                say("in", os.rename, "deep/x", f"sticky/file{uid}")
                say("dir", os.rename, f"sticky/dir{uid}", "sticky/x")
                say("dir back", os.rename, "sticky/x", f"sticky/dir{uid}")
                say("dir out", os.rename, f"sticky/dir{uid}", "deep/x")
                say("dir in", os.rename, "deep/x", f"sticky/dir{uid}")
                say("over", os.rename, f"sticky/file2{USER}", f"sticky/file2{uid}")
                say("link", os.link, f"sticky/file{uid}", f"deep/l{directory_of}{uid}")
                say("rmdir full", os.rmdir, f"sticky/full{uid}")
            if not os.path.exists(f"sticky/file2{USER}"):
                Path(f"sticky/file2{USER}").touch()
                os.chown(f"sticky/file2{USER}", USER, USER)
    os.chown("sticky", 0, 0)
    for uid in (0, OTHER, USER):
        with user():
            say(f"unlink {uid}", os.unlink, f"sticky/file{uid}")
            say(f"rmdir {uid}", os.rmdir, f"sticky/dir{uid}")
            say("again", os.rmdir, f"sticky/dir{uid}")


@program()
def new_files_in_set_group_directories(say: Saying) -> None:
    os.mkdir("d")
    os.chown("d", 0, GROUP)
    for bits in (0o2777, 0o777, 0o3777):
        os.chmod("d", bits)
        for groups in ((), (GROUP,)):
            for umask in (0, 0o077):
                old = os.umask(umask)
                with user(groups=groups):
                    say("open", opened, "d/f", os.O_CREAT | os.O_WRONLY, 0o6777)
                    say("mkdir", os.mkdir, "d/d", 0o7777)
                    say("mkdir sub", os.mkdir, "d/d/d", 0o755)
                    say("mkfifo", os.mkfifo, "d/p", 0o6777)
                    say("mknod", os.mknod, "d/n", stat.S_IFREG | 0o6777)
                    say("sock", os.mknod, "d/s", stat.S_IFSOCK | 0o6777)
                    say("char", os.mknod, "d/c", stat.S_IFCHR | 0o6777, os.makedev(1, 3))
                    say("symlink", os.symlink, "x", "d/l")
                os.umask(old)
                for name in ("f", "d/d", "d", "p", "n", "s", "c", "l"):
                    say(name, both, f"d/{name}")
                    if os.path.lexists(f"d/{name}"):
                        os.rmdir(f"d/{name}") if name in ("d", "d/d") else os.unlink(f"d/{name}")


def entry(tag: int, bits: int, who: int = -1) -> bytes:
    return struct.pack("<HHi", tag, bits, who)


def acl(*entries: bytes) -> bytes:
    return struct.pack("<I", 2) + b"".join(entries)


U, NU, G, M, REST = 1, 2, 4, 16, 32
MINIMAL = acl(entry(U, 6), entry(G, 4), entry(REST, 0))
NAMED = acl(entry(U, 6), entry(NU, 7, OTHER), entry(G, 4), entry(M, 5), entry(REST, 0))
BROKEN = {
    "empty": b"",
    "version": struct.pack("<I", 1) + NAMED[4:],
    "half": NAMED[:-3],
    "header": NAMED[:4],
    "no mask": acl(entry(U, 6), entry(NU, 7, OTHER), entry(G, 4), entry(REST, 0)),
    "no other": acl(entry(U, 6), entry(G, 4)),
    "order": acl(entry(G, 4), entry(U, 6), entry(REST, 0)),
    "bits": acl(entry(U, 15), entry(G, 4), entry(REST, 0)),
    "tag": acl(entry(U, 6), entry(3, 4), entry(REST, 0)),
    "twice": acl(
        entry(U, 6),
        entry(NU, 7, OTHER),
        entry(NU, 6, OTHER),
        entry(G, 4),
        entry(M, 5),
        entry(REST, 0),
    ),
    "nobody": acl(entry(U, 6), entry(NU, 7, -1), entry(G, 4), entry(M, 5), entry(REST, 0)),
    "two owners": acl(entry(U, 6), entry(U, 6), entry(G, 4), entry(REST, 0)),
}


def xattrs(path: str) -> str:
    return str(
        {
            n: os.getxattr(path, n, follow_symlinks=False).hex()
            for n in sorted(os.listxattr(path, follow_symlinks=False))
        }
    )


def shown(path: str) -> tuple[str, str]:
    return mode(path), xattrs(path)


@program(one_of_each)
def acls(say: Saying) -> None:
    for name in KINDS:
        for which in (ACCESS, DEFAULT):
            for what, value in {"minimal": MINIMAL, "named": NAMED, **BROKEN}.items():
                say(
                    f"{name} {which} {what}", os.setxattr, name, which, value, follow_symlinks=False
                )
                say("is", shown, name)
            say("create", os.setxattr, name, which, NAMED, os.XATTR_CREATE, follow_symlinks=False)
            say("replace", os.setxattr, name, which, NAMED, os.XATTR_REPLACE, follow_symlinks=False)
            say("remove", os.removexattr, name, which, follow_symlinks=False)
            say("remove again", os.removexattr, name, which, follow_symlinks=False)
            say("get", os.getxattr, name, which, follow_symlinks=False)
            say("is", shown, name)
    os.chmod("file", 0o640)
    os.setxattr("file", ACCESS, NAMED)
    for bits in (0o600, 0o660, 0o677, 0o2755):
        say(f"chmod {bits:o}", os.chmod, "file", bits)
        say("is", shown, "file")
        with user(OTHER):
            for flags in (os.O_RDONLY, os.O_WRONLY, os.O_RDWR):
                say("open", opened, "file", flags)
            for bits_ in (1, 2, 4, 7):
                say("access", os.access, "file", bits_, effective_ids=True)
    with user():
        say("own", os.setxattr, "file", ACCESS, NAMED)
        say("own remove", os.removexattr, "file", ACCESS)
        say("own default", os.setxattr, "dir", DEFAULT, NAMED)
    with user(OTHER):
        say("other", os.setxattr, "file", ACCESS, NAMED)
        say("other remove", os.removexattr, "file", ACCESS)
        say("other default", os.removexattr, "dir", DEFAULT)
        say("other get", os.getxattr, "dir", DEFAULT)
    for umask in (0o022, 0o077, 0):
        os.umask(umask)
        for default in (MINIMAL, NAMED):
            os.setxattr("dir", DEFAULT, default)
            say("f", opened, "dir/f", os.O_CREAT | os.O_WRONLY, 0o666)
            say("d", os.mkdir, "dir/d", 0o777)
            say("p", os.mkfifo, "dir/p", 0o640)
            say("l", os.symlink, "x", "dir/l")
            say("t", os.mknod, "dir/t", 0o100777)
            for name in "fdplt":
                say(name, shown, f"dir/{name}")
                os.rmdir(f"dir/{name}") if name == "d" else os.unlink(f"dir/{name}")


@program(one_of_each)
def attributes(say: Saying) -> None:
    for name in KINDS:
        for attribute in (
            "user.a",
            "user." + "n" * 250,
            "user." + "n" * 251,
            "user.",
            "user",
            "",
            "none.a",
            "trusted.a",
            "trusted.",
            "security.a",
            "security.",
            "system.a",
            "system.",
            "user.\u00e4",
        ):
            for flags in (os.XATTR_REPLACE, os.XATTR_CREATE, os.XATTR_CREATE, 0, 3, 4):
                say(
                    f"{name} {attribute[:20]} {len(attribute)} {flags}",
                    os.setxattr,
                    name,
                    attribute,
                    b"value",
                    flags,
                    follow_symlinks=False,
                )
            say("get", os.getxattr, name, attribute, follow_symlinks=False)
            say("remove", os.removexattr, name, attribute, follow_symlinks=False)
            say("remove", os.removexattr, name, attribute, follow_symlinks=False)
        say("empty value", os.setxattr, name, "trusted.e", b"", follow_symlinks=False)
        say("all", xattrs, name)
    for size in (1024, 3000):
        say(f"size {size}", os.setxattr, "file", "user.big", b"v" * size)
        say("got", len, os.getxattr("file", "user.big"))
    say("remove", os.removexattr, "file", "user.big")
    say("65537", os.setxattr, "file", "user.big", b"v" * 65537)
    buffer = ctypes.create_string_buffer(4)
    say("zero", call, "getxattr", b"file", b"trusted.e", None, 0)
    say("list zero", call, "listxattr", b"file", None, 0)
    say("list small", call, "listxattr", b"file", buffer, 4)
    say("capability", os.setxattr, "file", "security.capability", b"x")
    say(
        "capability",
        os.setxattr,
        "file",
        "security.capability",
        struct.pack("<5I", 0x02000001, 2, 0, 0, 0),
    )
    say(
        "capability on dir",
        os.setxattr,
        "dir",
        "security.capability",
        struct.pack("<5I", 0x02000001, 2, 0, 0, 0),
    )
    say("chown takes", os.chown, "file", USER, -1)
    say("all", xattrs, "file")
    os.chmod("dir", 0o1777)
    for uid in (USER, OTHER):
        with user(uid):
            for name in KINDS:
                for attribute in (
                    "user.u",
                    "trusted.u",
                    "security.u",
                    "system.u",
                    "security.capability",
                ):
                    say(
                        f"{uid} {name} {attribute}",
                        os.setxattr,
                        name,
                        attribute,
                        b"v",
                        follow_symlinks=False,
                    )
                    say("get", os.getxattr, name, attribute, follow_symlinks=False)
                    say("remove", os.removexattr, name, attribute, follow_symlinks=False)
                say("list", sorted, os.listxattr(name, follow_symlinks=False))


@program(one_of_each)
def rights(say: Saying) -> None:
    os.mkdir("locked")
    Path("locked/f").write_text("x")
    Path("secret").write_text("secret")
    for name in ("file", "secret", "dir", "locked"):
        for bits in range(8):
            os.chmod(name, bits << 6)
            os.chown(name, USER, USER)
            with user():
                for flags in (
                    os.O_RDONLY,
                    os.O_WRONLY,
                    os.O_RDWR,
                    os.O_RDONLY | os.O_TRUNC,
                    os.O_WRONLY | os.O_CREAT,
                    os.O_PATH,
                    os.O_RDONLY | os.O_DIRECTORY,
                ):
                    say(f"{name} {bits} {flags:x}", opened, name, flags)
                say("exec", os.access, name, os.X_OK, effective_ids=True)
                say("list", os.listdir, name)
                say("stat in", kind, f"{name}/f")
                say("new in", opened, f"{name}/new", os.O_CREAT | os.O_WRONLY)
                say("gone", os.unlink, f"{name}/new")
                say("chdir", there_and_back, name)
                say("truncate", os.truncate, name, 0)
                say("utime", os.utime, name)
                say("utime", os.utime, name, (1, 1))
            with user(OTHER):
                say("utime", os.utime, name)
                say("utime", os.utime, name, (1, 1))
    os.chmod("locked", 0o755)
    os.chmod("file", 0o666)
    with user(OTHER):
        say("utime now", os.utime, "file")
        say(
            "utime one omitted",
            call,
            "utimensat",
            -100,
            b"file",
            struct.pack("<4q", 0, NOW, 0, OMIT),
            0,
        )
        say(
            "utime both omitted",
            call,
            "utimensat",
            -100,
            b"file",
            struct.pack("<4q", 0, OMIT, 0, OMIT),
            0,
        )
        say("O_NOATIME", opened, "file", os.O_RDONLY | os.O_NOATIME)
        say("link other's", os.link, "file", "dir/l")
        say("rename out of", os.rename, "file", "x")
    os.chmod(".", 0o777)
    os.mkdir("theirs")
    os.chown("theirs", OTHER, OTHER)
    os.mkdir("mine")
    os.chown("mine", USER, USER)
    with user():
        say("move a directory of another's to a new parent", os.rename, "theirs", "mine/theirs")
        say("rename it in place", os.rename, "theirs", "theirs2")
        say("mknod char", os.mknod, "c", stat.S_IFCHR | 0o600, os.makedev(1, 3))
        say("mknod 0:0", os.mknod, "w", stat.S_IFCHR | 0o600, 0)
        say("mknod block", os.mknod, "b", stat.S_IFBLK | 0o600, os.makedev(1, 3))
        say("chroot", os.chroot, ".")
