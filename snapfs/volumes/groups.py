"""Freezing the control groups of processes (cgroup-v2.rst, cgroup.freeze; freezer-subsystem.rst).

The unified hierarchy is used where a process is in a group of it, else the freezer of version 1. A
group that we are in ourselves, or the root, is never frozen.
"""

from __future__ import annotations

import errno
import select
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from snapfs.model import DeadlineExceeded, FailedPrecondition

FREEZE_TIMEOUT_S = 10.0
_POLL_S = 0.01
_FREEZE = "cgroup.freeze"
_STATE = "freezer.state"
_UNIFIED = "cgroup2"
_FREEZER = "freezer"


@dataclass(frozen=True, slots=True)
class Group:
    """A control group that can be frozen."""

    path: Path
    unified: bool

    def is_frozen(self) -> bool:
        """Whether somebody has frozen the group; one that is gone is not frozen."""
        frozen = False
        with _gone():
            if self.unified:
                frozen = (self.path / _FREEZE).read_text().strip() == "1"
            else:
                frozen = (self.path / _STATE).read_text().strip() != "THAWED"
        return frozen

    def freeze(self) -> None:
        """Return when nothing in the group runs; DeadlineExceeded when that does not come.

        Nothing runs in one that is gone.
        """
        until_s = time.monotonic() + FREEZE_TIMEOUT_S
        with _gone():
            if self.unified:
                (self.path / _FREEZE).write_text("1")
                self._await_event(until_s)
            else:
                (self.path / _STATE).write_text("FROZEN")
                self._await_state(until_s)

    def thaw(self) -> None:
        """Let the group run; one that is gone needs nothing."""
        with _gone():
            if self.unified:
                (self.path / _FREEZE).write_text("0")
            else:
                (self.path / _STATE).write_text("THAWED")

    def _await_event(self, until_s: float) -> None:
        with (self.path / "cgroup.events").open() as events:
            poll = select.poll()
            poll.register(events, select.POLLPRI)
            while "frozen 1" not in events.read():
                poll.poll(self._left_s(until_s) * 1000)
                events.seek(0)

    def _await_state(self, until_s: float) -> None:
        """Version 1 tells nobody when it is done."""
        while (self.path / _STATE).read_text().strip() != "FROZEN":
            time.sleep(min(_POLL_S, self._left_s(until_s)))

    def _left_s(self, until_s: float) -> float:
        left_s = until_s - time.monotonic()
        if left_s <= 0:
            raise DeadlineExceeded(f"control group {self.path} does not freeze")
        return left_s


@contextmanager
def _gone() -> Iterator[None]:
    """Pass over that a group was removed, before the block or in it."""
    try:
        yield
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno != errno.ENODEV:  # what an open file of a removed group says
            raise


@contextmanager
def frozen(pids: Iterable[int], note: Path) -> Iterator[None]:
    """Keep the control groups of processes frozen for the block.

    Those that somebody else has frozen already are left as they are. The file `note` says which
    are ours until they run again (`thaw_left`). FailedPrecondition when a process has no group of
    its own; then nothing is frozen.
    """
    groups = [group for group in {group_of(pid) for pid in pids} if not group.is_frozen()]
    if not groups:
        yield
        return
    _write(note, groups)
    begun: list[Group] = []
    try:
        for group in groups:
            begun.append(group)
            group.freeze()
        yield
    finally:
        _thaw(begun)
        note.unlink()


def thaw_left(note: Path) -> None:
    """Let go what a process that was killed meanwhile has left frozen; OSError when one stays."""
    try:
        paths = note.read_text().splitlines()
    except FileNotFoundError:
        return
    _thaw([Group(path, unified=not (path / _STATE).exists()) for path in map(Path, paths)])
    note.unlink()


def _thaw(groups: Iterable[Group]) -> None:
    """Let all groups run that can; one that cannot keeps no other frozen."""
    failed: OSError | None = None
    for group in groups:
        try:
            group.thaw()
        except OSError as error:
            failed = error
    if failed is not None:
        raise failed


def _write(note: Path, groups: Iterable[Group]) -> None:
    draft = note.with_suffix(".new")
    draft.write_text("".join(f"{group.path}\n" for group in groups))
    draft.rename(note)


def group_of(pid: int) -> Group:
    """Return the group of a process; FailedPrecondition when it cannot be frozen."""
    own = _paths("self")
    try:
        its = _paths(str(pid))
    except (FileNotFoundError, ProcessLookupError):
        raise FailedPrecondition(f"process {pid} has just ended; repeat") from None
    places = _hierarchies()
    for name in (_UNIFIED, _FREEZER):
        path, place = its.get(name, "/"), places.get(name)
        if place is None or path == "/" or _is_within(own.get(name, "/"), path):
            continue
        group = Group(place / path.lstrip("/"), unified=name == _UNIFIED)
        if (group.path / (_FREEZE if group.unified else _STATE)).exists():
            return group
    raise FailedPrecondition(
        f"process {pid} is in no control group of its own, so it cannot be paused; stop it, or use "
        "a signal"
    )


def _is_within(path: str, group: str) -> bool:
    return path == group or path.startswith(group + "/")


def _paths(process: str) -> dict[str, str]:
    """Return a process's groups by hierarchy, of those that can freeze."""
    found = {}
    for line in Path(f"/proc/{process}/cgroup").read_text().splitlines():
        number, controllers, path = line.split(":", 2)
        if number == "0":
            found[_UNIFIED] = path
        elif _FREEZER in controllers.split(","):
            found[_FREEZER] = path
    return found


def _hierarchies() -> dict[str, Path]:
    """Return where the hierarchies that can freeze are mounted."""
    found: dict[str, Path] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        kind, _, options = after.split(" ", 2)
        target = Path(before.split(" ")[4])
        if kind == "cgroup2":
            found.setdefault(_UNIFIED, target)
        elif kind == "cgroup" and _FREEZER in options.split(","):
            found.setdefault(_FREEZER, target)
    return found
