"""The list of what is tried: one function for each row of the table in docs/posix.md."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.posix.systems import Ground

CHECKS: list[Check] = []


@dataclass(frozen=True)
class Case:
    """What a check gets: a directory of its own in the merged tree."""

    ground: Ground
    name: str

    @property
    def here(self) -> Path:
        return self.ground.path / self.name

    def __truediv__(self, name: str) -> Path:
        return self.here / name


Fill = Callable[[Path], None]


def _nothing(directory: Path) -> None:
    """Fill nothing in."""


@dataclass(frozen=True)
class Check:
    """One row: what must hold. It does when `run` raises neither AssertionError nor OSError."""

    area: str
    title: str
    run: Callable[[Case], None]
    lower: Fill = field(default=_nothing)
    upper: Fill = field(default=_nothing)

    @property
    def name(self) -> str:
        """Its directory: short, and no other check's."""
        return f"c{CHECKS.index(self)}"


def check(area: str, title: str, *, lower: Fill = _nothing, upper: Fill = _nothing) -> Any:
    """Put a function into the list."""

    def note(run: Callable[[Case], None]) -> Callable[[Case], None]:
        CHECKS.append(Check(area, title, run, lower, upper))
        return run

    return note


def fill_lower(layer: Path) -> None:
    """Make the lower layer for all checks."""
    for one in CHECKS:
        _fill(layer / one.name, one.lower)


def fill_upper(layer: Path) -> None:
    """Make what some checks want in the upper layer before it is mounted."""
    for one in CHECKS:
        if one.upper is not _nothing:
            _fill(layer / one.name, one.upper)


def _fill(directory: Path, make: Fill) -> None:
    directory.mkdir()
    directory.chmod(0o777)
    make(directory)


# What checks are written with


def files(*names: str, mode: int = 0o644) -> Fill:
    """Files that contain their names."""

    def make(directory: Path) -> None:
        for name in names:
            path = directory / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(name)
            path.chmod(mode)

    return make


@contextmanager
def opened(path: Path | bytes, flags: int = os.O_RDONLY, mode: int = 0o644) -> Iterator[int]:
    fd = os.open(path, flags | os.O_CLOEXEC, mode)
    try:
        yield fd
    finally:
        os.close(fd)


def fails(number: int, step: Callable[[], object]) -> None:
    """Check that a step is refused with an errno."""
    found = 0
    try:
        step()
    except OSError as error:
        found = error.errno or 0
    said = errno.errorcode.get(found, "no error")
    assert found == number, f"{said}, not {errno.errorcode[number]}"


def as_user(
    directory: Path, uid: int, step: Callable[[], object], *, gid: int = -1, umask: int = 0o022
) -> None:
    """Take a step as an ordinary user in `directory`; raise the OSError that he gets."""
    child = os.fork()
    if not child:
        status = 254
        try:
            status = _step_as(directory, uid, uid if gid < 0 else gid, step, umask)
        finally:
            os._exit(status)  # whatever it raised: the tests go on in the parent only
    number = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    assert number != 254, "the user's step failed"
    if number:
        raise OSError(number, os.strerror(number))


def _step_as(directory: Path, uid: int, gid: int, step: Callable[[], object], umask: int) -> int:
    try:
        os.chdir(directory)
        os.umask(umask)
        os.setgroups([])
        os.setgid(gid)
        os.setuid(uid)
        step()
    except OSError as error:
        return error.errno or 253
    except AssertionError:
        return 254
    return 0
