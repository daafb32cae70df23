"""Renames of directories of every kind over and into every kind; names and paths at the limits."""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path

from tests.posix.checks import Case, check, fails, files
from tests.support.lanes import drop_dentries

AREA = "Directories"
KINDS = ("upper", "merged", "lower", "opaque")
_libc = ctypes.CDLL(None, use_errno=True)


def rename(old: Path, new: Path, flags: int) -> None:
    if _libc.renameat2(-100, bytes(old), -100, bytes(new), flags):
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def lower_kinds(directory: Path) -> None:
    for kind in KINDS[1:]:
        files(f"source/{kind}/low", f"into/{kind}/own", f"over/{kind}/hidden")(directory)


def make(it: Case, role: str, kind: str) -> Path:
    """Make a directory be of a kind; afterwards it holds `low` (unless hidden) and `up`."""
    path = it / role / kind
    if kind == "upper":
        path.mkdir(parents=True)
    if kind == "opaque":
        shutil.rmtree(path)
        path.mkdir()
    if kind != "lower":
        (path / "up").write_text("up")
    return path


def content(kind: str) -> set[str]:
    return {"upper": {"up"}, "opaque": {"up"}, "merged": {"up", "low"}, "lower": {"low"}}[kind]


def emptied(path: Path) -> Path:
    for entry in path.iterdir():
        entry.unlink()
    return path


def _moved(it: Case, source: str, place: str, target: str) -> None:
    moved = make(it, "source", source)
    goal = make(it, place, target)
    new = emptied(goal) if place == "over" else goal / "new"
    number = moved.stat().st_ino
    os.rename(moved, new)
    for again in (it.ground.remount if place == "over" else drop_dentries, lambda: None):
        assert set(os.listdir(new)) == content(source)
        assert (new / sorted(content(source))[0]).read_text().endswith(sorted(content(source))[0])
        assert new.stat().st_ino == number
        assert not moved.exists()
        again()
    (new / "later").write_text("later")
    shutil.rmtree(new)
    assert not new.exists()


for _source in KINDS:
    for _target in KINDS:
        check(AREA, f"rename {_source} directory over empty {_target} one", lower=lower_kinds)(
            partial(_moved, source=_source, place="over", target=_target)
        )
        check(AREA, f"rename {_source} directory into {_target} one", lower=lower_kinds)(
            partial(_moved, source=_source, place="into", target=_target)
        )


def _exchanged(it: Case, one: str, other: str) -> None:
    first, second = make(it, "source", one), make(it, "into", other)
    expected = {name for name in content(other) if name == "up"} | (
        {"own"} if other in ("merged", "lower") else set()
    )
    rename(first, second, 2)
    for _ in range(2):
        assert set(os.listdir(first)) == expected
        assert set(os.listdir(second)) == content(one)
        it.ground.remount()


for _source, _target in (("merged", "lower"), ("lower", "opaque"), ("upper", "merged")):
    check(AREA, f"exchange {_source} and {_target} directory", lower=lower_kinds)(
        partial(_exchanged, one=_source, other=_target)
    )


@check(
    AREA,
    "a listing goes on while entries come and go, and repeats none",
    lower=files(*(f"d/{number:04}" for number in range(300))),
)
def _(it: Case) -> None:
    seen = []
    with os.scandir(it / "d") as entries:
        for at, entry in enumerate(entries):
            seen.append(entry.name)
            if at == 50:
                for number in range(250, 260):
                    (it / f"d/{number:04}").unlink()
                (it / "d/later").touch()
    stable = {f"{number:04}" for number in range(300) if not 250 <= number < 260}
    assert stable <= set(seen)
    assert len(seen) == len(set(seen))


@check(
    AREA, "st_nlink of a directory is 1, or 2 and its directories", lower=files("d/a/f", "d/b/f")
)
def _(it: Case) -> None:
    (it / "d/c").mkdir()
    assert (it / "d").stat().st_nlink in (1, 5)
    (it / "new").mkdir()
    assert (it / "new").stat().st_nlink in (1, 2)


AREA = "Names and paths"
LONG = "n" * 255


@check(
    AREA, "names of 255 bytes: look up, copy up, make, move, remove", lower=files(LONG, "f", "g")
)
def _(it: Case) -> None:
    assert (it / LONG).read_text() == LONG
    (it / LONG).write_text("copied up")
    (it / LONG).unlink()
    (it / ("m" * 255)).write_text("new")
    os.rename(it / ("m" * 255), it / LONG)
    os.rename(it / "f", it / ("é" * 127))
    (it / ("d" * 255)).mkdir()
    (it / ("d" * 255) / ("d" * 255)).mkdir()
    os.symlink("x", it / ("s" * 255))
    os.link(it / "g", it / ("l" * 255))
    it.ground.remount()
    assert (it / LONG).read_text() == "new"
    assert len(os.listdir(it.here)) == 6


@check(AREA, "a name of 256 bytes is ENAMETOOLONG", lower=files("f"))
def _(it: Case) -> None:
    for step in (
        lambda: os.stat(it / ("n" * 256)),
        lambda: os.mkdir(it / ("n" * 256)),
        lambda: os.rename(it / "f", it / ("n" * 256)),
    ):
        fails(errno.ENAMETOOLONG, step)


@check(AREA, "names of any bytes but / and NUL, also control characters and invalid UTF-8")
def _(it: Case) -> None:
    names = [bytes([number]) * 3 for number in range(1, 256) if number not in b"./"]
    for name in names:
        os.close(os.open(bytes(it.here) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    it.ground.remount()
    assert sorted(os.listdir(bytes(it.here))) == names


def _inside(top: Path, depth: int, step: Callable[[int], None], *, makes: bool) -> None:
    """Go down by names of 200 bytes, one at a time, and do something there."""
    fd = os.open(top, os.O_PATH | os.O_DIRECTORY)
    try:
        for _ in range(depth):
            if makes:
                os.mkdir("p" * 200, dir_fd=fd)
            deeper = os.open("p" * 200, os.O_PATH | os.O_DIRECTORY, dir_fd=fd)
            os.close(fd)
            fd = deeper
        step(fd)
    finally:
        os.close(fd)


def _put(text: str, fd: int) -> None:
    file = os.open("file", os.O_CREAT | os.O_WRONLY | os.O_TRUNC, 0o644, dir_fd=fd)
    os.write(file, text.encode())
    os.close(file)


def _expect(text: str, fd: int) -> None:
    file = os.open("file", os.O_RDONLY, dir_fd=fd)
    try:
        assert os.read(file, 100) == text.encode()
    finally:
        os.close(file)


@check(AREA, "paths of 8,000 bytes: make, list, write, find again")
def _(it: Case) -> None:
    _inside(it.here, 40, partial(_put, "deep"), makes=True)
    drop_dentries()
    _inside(it.here, 40, partial(_expect, "deep"), makes=False)
    it.ground.remount()
    _inside(it.here, 40, partial(_expect, "deep"), makes=False)


@check(
    AREA,
    "a file at a path of 8,000 bytes is copied up",
    lower=lambda top: _inside(top, 40, partial(_put, "lower"), makes=True),
)
def _(it: Case) -> None:
    _inside(it.here, 40, partial(_expect, "lower"), makes=False)
    _inside(it.here, 40, partial(_put, "copied up"), makes=False)
    drop_dentries()
    _inside(it.here, 40, partial(_expect, "copied up"), makes=False)


@check(AREA, "symbolic links of 4,095 bytes")
def _(it: Case) -> None:
    target = "t" * 4095
    os.symlink(target, it / "link")
    it.ground.remount()
    assert os.readlink(it / "link") == target
    assert (it / "link").lstat().st_size == 4095


@check(AREA, "a loop of symbolic links is ELOOP, O_NOFOLLOW too")
def _(it: Case) -> None:
    os.symlink("b", it / "a")
    os.symlink("a", it / "b")
    fails(errno.ELOOP, lambda: os.stat(it / "a"))
    fails(errno.ELOOP, lambda: os.close(os.open(it / "a", os.O_RDONLY | os.O_NOFOLLOW)))


@check(
    AREA,
    "a lower symbolic link is owned, moved and removed as a link",
    lower=lambda top: [os.symlink("nowhere", top / name) for name in ("a", "b", "c")] and None,
)
def _(it: Case) -> None:
    os.chown(it / "a", 5, 6, follow_symlinks=False)
    os.rename(it / "b", it / "moved")
    os.unlink(it / "c")
    found = (it / "a").lstat()
    assert (found.st_uid, found.st_gid) == (5, 6)
    assert [os.readlink(it / name) for name in ("a", "moved")] == ["nowhere"] * 2
    assert sorted(os.listdir(it.here)) == ["a", "moved"]
