"""Who may do what: modes, set-id bits, ACLs, capabilities, attributes."""

from __future__ import annotations

import errno
import os
import shutil
import stat
import struct
import subprocess
from pathlib import Path

from tests.posix.checks import Case, as_user, check, fails, files, opened

AREA = "Rights"
USER, OTHER = 1000, 1001
ACCESS, DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
CAPABILITY = struct.pack("<5I", 0x02000001, 1 << 1, 0, 0, 0)
"""Reading what one may not: CAP_DAC_OVERRIDE, effective."""


def acl(user: int, group: int, other: int, *, named: dict[int, int], mask: int = 7) -> bytes:
    entries = [(1, user, -1), *((2, bits, who) for who, bits in named.items())]
    entries += [(4, group, -1), (16, mask, -1), (32, other, -1)]
    return struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *it) for it in entries)


def owned(uid: int, gid: int, mode: int, *names: str) -> object:
    def make(directory: Path) -> None:
        files(*names)(directory)
        for name in names:
            os.chown(directory / name, uid, gid)
            (directory / name).chmod(mode)

    return make


def bits(path: Path) -> int:
    return stat.S_IMODE(path.lstat().st_mode)


@check(AREA, "sticky directory: only owners remove and rename", lower=owned(USER, USER, 0o666, "f"))
def _(it: Case) -> None:
    it.here.chmod(0o1777)
    as_user(it.here, OTHER, lambda: Path("own").touch())
    for step in (
        lambda: os.unlink("f"),
        lambda: os.rename("f", "g"),
        lambda: os.rename("own", "f"),
    ):
        fails(errno.EPERM, lambda step=step: as_user(it.here, OTHER, step))  # type: ignore[misc]
    as_user(it.here, USER, lambda: os.unlink("f"))
    as_user(it.here, OTHER, lambda: os.unlink("own"))


@check(AREA, "set-group directory: new files and directories inherit the group")
def _(it: Case) -> None:
    os.chown(it.here, 0, 2000)
    it.here.chmod(0o2777)
    as_user(it.here, USER, lambda: (Path("f").touch(), Path("d").mkdir(), os.symlink("f", "l")))
    assert {(it / name).lstat().st_gid for name in "fdl"} == {2000}
    assert bits(it / "d") & stat.S_ISGID
    assert not bits(it / "f") & stat.S_ISGID


@check(AREA, "set-group bit of a new file is dropped for who is not of the directory's group")
def _(it: Case) -> None:
    os.chown(it.here, 0, 2000)
    it.here.chmod(0o2777)
    as_user(
        it.here, USER, lambda: os.close(os.open("f", os.O_CREAT | os.O_WRONLY, 0o2775)), umask=0
    )
    assert bits(it / "f") == 0o775


@check(
    AREA,
    "set-group bit is dropped when an ACL is set by somebody outside the group",
    lower=owned(USER, 2000, 0o2755, "f"),
)
def _(it: Case) -> None:
    value = acl(7, 5, 5, named={OTHER: 4})
    as_user(it.here, USER, lambda: os.setxattr("f", ACCESS, value))
    assert not bits(it / "f") & stat.S_ISGID


@check(
    AREA,
    "and kept when one of the group, or root, sets it",
    lower=owned(USER, 2000, 0o2755, "f", "g"),
)
def _(it: Case) -> None:
    value = acl(7, 5, 5, named={OTHER: 4})
    as_user(it.here, USER, lambda: os.setxattr("f", ACCESS, value), gid=2000)
    os.setxattr(it / "g", ACCESS, value)
    assert bits(it / "f") & bits(it / "g") & stat.S_ISGID


@check(
    AREA,
    "chmod drops the set-group bit for who is not of the group",
    lower=owned(USER, 2000, 0o755, "f"),
)
def _(it: Case) -> None:
    as_user(it.here, USER, lambda: os.chmod("f", 0o2755))
    assert bits(it / "f") == 0o755


def _written(it: Case, mode: int, *, uid: int) -> int:
    def step() -> None:
        with opened("f", os.O_WRONLY) as fd:  # type: ignore[arg-type]
            os.write(fd, b"x")

    (it / "f").chmod(mode)
    if uid:
        as_user(it.here, uid, step)
    else:
        with opened(it / "f", os.O_WRONLY) as fd:
            os.write(fd, b"x")
    return bits(it / "f")


@check(
    AREA,
    "set-id bits go with a write by an ordinary user, and stay with root's",
    lower=owned(USER, USER, 0o644, "f"),
)
def _(it: Case) -> None:
    assert _written(it, 0o6755, uid=USER) == 0o755
    assert _written(it, 0o6755, uid=0) == 0o6755
    assert _written(it, 0o2644, uid=USER) & 0o777 == 0o644


@check(
    AREA,
    "set-id bits go with truncate and O_TRUNC by an ordinary user",
    lower=owned(USER, USER, 0o6755, "f", "g"),
)
def _(it: Case) -> None:
    as_user(it.here, USER, lambda: os.truncate("f", 0))
    as_user(it.here, USER, lambda: os.close(os.open("g", os.O_WRONLY | os.O_TRUNC)))
    assert bits(it / "f") == bits(it / "g") == 0o755


@check(AREA, "set-id bits go with chown, by root too", lower=owned(USER, USER, 0o6755, "f"))
def _(it: Case) -> None:
    os.chown(it / "f", OTHER, OTHER)
    assert bits(it / "f") == 0o755


@check(AREA, "set-id bits survive a copy-up", lower=owned(USER, USER, 0o6755, "f"))
def _(it: Case) -> None:
    os.utime(it / "f", ns=(1, 1))
    assert bits(it / "f") == 0o6755


def set_user_program(top: Path) -> None:
    shutil.copy("/usr/bin/id", top / "id")
    os.chown(top / "id", OTHER, OTHER)
    (top / "id").chmod(0o6755)


@check(
    AREA,
    "set-user programs run as their owner",
    lower=set_user_program,
)
def _(it: Case) -> None:
    out = it / "out"
    out.touch()
    out.chmod(0o666)

    def step() -> None:
        with open("out", "w") as said:
            subprocess.run(["./id", "-u"], stdout=said, check=True)

    as_user(it.here, USER, step)
    assert out.read_text() == f"{OTHER}\n"


@check(AREA, "modes are enforced for ordinary users", lower=owned(0, 0, 0o600, "f"))
def _(it: Case) -> None:
    (it / "closed").mkdir(mode=0o700)
    it.here.chmod(0o755)
    for step in (
        lambda: os.close(os.open("f", os.O_RDONLY)),
        lambda: os.listdir("closed"),
        lambda: os.mkdir("new"),
        lambda: os.unlink("f"),
    ):
        fails(errno.EACCES, lambda step=step: as_user(it.here, USER, step))  # type: ignore[misc]
    for owners_only in (lambda: os.chmod("f", 0o777), lambda: os.chown("f", USER, USER)):
        fails(errno.EPERM, lambda step=owners_only: as_user(it.here, USER, step))  # type: ignore[misc]


@check(AREA, "umask applies to files, directories, fifos")
def _(it: Case) -> None:
    before = os.umask(0o027)
    try:
        (it / "f").touch(mode=0o666)
        (it / "d").mkdir(mode=0o777)
        os.mkfifo(it / "p", 0o666)
    finally:
        os.umask(before)
    assert [bits(it / name) for name in "fdp"] == [0o640, 0o750, 0o640]


@check(AREA, "a default ACL is inherited and takes the umask's place", lower=files("d/f"))
def _(it: Case) -> None:
    os.setxattr(it / "d", DEFAULT, acl(7, 5, 0, named={USER: 7}))
    before = os.umask(0o077)
    try:
        (it / "d/new").touch(mode=0o666)
        (it / "d/sub").mkdir(mode=0o777)
    finally:
        os.umask(before)
    assert (bits(it / "d/new"), bits(it / "d/sub")) == (0o660, 0o770)
    assert os.getxattr(it / "d/sub", DEFAULT) == os.getxattr(it / "d", DEFAULT)
    assert os.getxattr(it / "d/new", ACCESS) == acl(6, 5, 0, named={USER: 7}, mask=6)


def with_acl(directory: Path) -> None:
    files("f")(directory)
    (directory / "f").chmod(0o600)
    os.setxattr(directory / "f", ACCESS, acl(6, 0, 0, named={USER: 4}))


@check(AREA, "an access ACL grants, its mask limits, chmod changes the mask", lower=with_acl)
def _(it: Case) -> None:
    as_user(it.here, USER, lambda: os.close(os.open("f", os.O_RDONLY)))
    fails(errno.EACCES, lambda: as_user(it.here, USER, lambda: os.close(os.open("f", os.O_RDWR))))
    fails(errno.EACCES, lambda: as_user(it.here, OTHER, lambda: os.close(os.open("f", 0))))
    (it / "f").chmod(0o600)
    fails(errno.EACCES, lambda: as_user(it.here, USER, lambda: os.close(os.open("f", 0))))


@check(AREA, "an ACL survives a copy-up, is replaced and removed", lower=with_acl)
def _(it: Case) -> None:
    before = os.getxattr(it / "f", ACCESS)
    (it / "f").write_text("copied up")
    assert os.getxattr(it / "f", ACCESS) == before
    os.setxattr(it / "f", ACCESS, acl(6, 4, 0, named={OTHER: 6}, mask=6))
    assert bits(it / "f") == 0o660
    os.removexattr(it / "f", ACCESS)
    fails(errno.ENODATA, lambda: os.getxattr(it / "f", ACCESS))


@check(AREA, "default ACLs of files are refused", lower=files("f"))
def _(it: Case) -> None:
    fails(errno.EACCES, lambda: os.setxattr(it / "f", DEFAULT, acl(7, 5, 0, named={USER: 7})))


def capable_program(top: Path) -> None:
    shutil.copy("/bin/cat", top / "cat")
    os.setxattr(top / "cat", "security.capability", CAPABILITY)
    files("secret", mode=0o600)(top)


@check(
    AREA,
    "file capabilities are kept by a copy-up, work, and go with a write",
    lower=capable_program,
)
def _(it: Case) -> None:
    (it / "cat").chmod(0o755)  # copies up
    (it / "out").touch(mode=0o666)
    (it / "out").chmod(0o666)

    def step() -> None:
        with open("out", "w") as said:
            subprocess.run(["./cat", "secret"], stdout=said, check=True)

    as_user(it.here, USER, step)
    assert (it / "out").read_text() == "secret"
    with opened(it / "cat", os.O_WRONLY) as fd:
        os.pwrite(fd, b"\x7f", 0)
    fails(errno.ENODATA, lambda: os.getxattr(it / "cat", "security.capability"))


@check(AREA, "ordinary users do not see trusted attributes", lower=owned(USER, USER, 0o644, "f"))
def _(it: Case) -> None:
    os.setxattr(it / "f", "trusted.t", b"t")
    os.setxattr(it / "f", "user.u", b"u")
    said = it / "said"
    said.touch()
    said.chmod(0o666)
    as_user(it.here, USER, lambda: Path("said").write_text(" ".join(os.listxattr("f"))) and None)
    assert said.read_text() == "user.u"
    fails(errno.ENODATA, lambda: as_user(it.here, USER, lambda: os.getxattr("f", "trusted.t")))
    fails(errno.EPERM, lambda: as_user(it.here, USER, lambda: os.setxattr("f", "trusted.t", b"")))


def with_attribute(top: Path) -> None:
    files("f")(top)
    os.setxattr(top / "f", "user.low", b"low")


@check(
    AREA,
    "user, trusted and security attributes: set, replace, list, remove, survive copy-up",
    lower=with_attribute,
)
def _(it: Case) -> None:
    os.setxattr(it / "f", "user.new", b"v" * 1000, os.XATTR_CREATE)
    os.setxattr(it / "f", "trusted.t", b"")
    os.setxattr(it / "f", "security.s", b"s")
    fails(errno.EEXIST, lambda: os.setxattr(it / "f", "user.new", b"", os.XATTR_CREATE))
    fails(errno.ENODATA, lambda: os.setxattr(it / "f", "user.no", b"", os.XATTR_REPLACE))
    wanted = ["security.s", "trusted.t", "user.low", "user.new"]
    assert sorted(os.listxattr(it / "f")) == wanted
    os.removexattr(it / "f", "user.low")
    it.ground.remount()
    assert sorted(os.listxattr(it / "f")) == [name for name in wanted if name != "user.low"]


@check(AREA, "user attributes of links and devices are refused (EPERM)")
def _(it: Case) -> None:
    os.symlink("x", it / "l")
    os.mkfifo(it / "p")
    for name in ("l", "p"):
        step = lambda name=name: os.setxattr(it / name, "user.u", b"", follow_symlinks=False)  # noqa: E731
        fails(errno.EPERM, step)


AREA = "The overlay's own"


def marked(top: Path) -> None:
    files("d/f")(top)
    os.setxattr(top / "d", "trusted.overlay.opaque", b"y")
    os.setxattr(top / "d/f", "trusted.overlay.origin", b"o")


@check(
    AREA,
    "the layers' trusted.overlay attributes are never listed or read",
    lower=marked,
)
def _(it: Case) -> None:
    (it / "d/f").write_text("copied up")
    for path in (it.here, it / "d", it / "d/f"):
        assert not [name for name in os.listxattr(path) if name.startswith("trusted.overlay")]
        for name in ("opaque", "origin", "redirect", "impure"):
            fails(errno.ENODATA, lambda: os.getxattr(path, f"trusted.overlay.{name}"))  # noqa: B023


@check(
    AREA, "a container's trusted.overlay attributes are kept and mean nothing", lower=files("d/f")
)
def _(it: Case) -> None:
    for name, value in (("opaque", b"y"), ("redirect", b"/x"), ("overlay.opaque", b"y")):
        os.setxattr(it / "d", f"trusted.overlay.{name}", value)
        os.setxattr(it / "d", f"user.overlay.{name}", value)
    it.ground.remount()
    assert (it / "d/f").read_text() == "d/f"
    assert os.getxattr(it / "d", "trusted.overlay.redirect") == b"/x"
    assert os.getxattr(it / "d", "user.overlay.opaque") == b"y"
    assert len(os.listxattr(it / "d")) == 6
    os.removexattr(it / "d", "trusted.overlay.opaque")
    assert len(os.listxattr(it / "d")) == 5


@check(AREA, "a container's 0:0 devices are devices and hide nothing", lower=files("f"))
def _(it: Case) -> None:
    os.mknod(it / "w", stat.S_IFCHR | 0o600, 0)
    os.unlink(it / "f")
    os.mknod(it / "f", stat.S_IFCHR | 0o600, 0)
    for _ in range(2):
        assert sorted(os.listdir(it.here)) == ["f", "w"]
        found = (it / "w").lstat()
        assert stat.S_ISCHR(found.st_mode)
        assert found.st_rdev == 0
        it.ground.remount()


@check(AREA, "RENAME_WHITEOUT leaves a device", lower=files("f"))
def _(it: Case) -> None:
    from tests.posix.on_directories import rename

    rename(it / "f", it / "g", 4)
    assert (it / "g").read_text() == "f"
    assert (it / "f").lstat().st_rdev == 0
    assert stat.S_ISCHR((it / "f").lstat().st_mode)


def layers_inside(top: Path) -> None:
    files("low/f", "low/gone")(top)
    for name in ("up", "work", "mnt"):
        (top / name).mkdir()


@check(
    AREA,
    "kernel overlayfs can be mounted inside, with upper and lower on it",
    lower=layers_inside,
)
def _(it: Case) -> None:
    from tests.support.overlay import kernel

    with kernel.overlay(it / "mnt", [it / "low"], it / "up", it / "work", options="") as inner:
        (inner / "f").write_text("changed")
        (inner / "gone").unlink()
        (inner / "new").mkdir()
    with kernel.overlay(it / "mnt", [it / "low"], it / "up", it / "work", options="") as inner:
        assert sorted(os.listdir(inner)) == ["f", "new"]
        assert (inner / "f").read_text() == "changed"
