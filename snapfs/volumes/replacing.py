"""Replacing the tree at a mount path, for all who use it, around a change of rows."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import structlog

from snapfs.model import FailedPrecondition, InvalidArgument, SnapfsError, Unavailable
from snapfs.volumes import groups, mounting, remount, users
from snapfs.volumes.mounting import Bound
from snapfs.volumes.users import User

log = structlog.get_logger(__name__)

SIGNAL_TIMEOUT_S = 30.0
REMOUNT_TIMEOUT_S = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Manner:
    """What is done with who uses a volume while it is replaced; by default that is refused."""

    signal: str = ""
    """Send this signal, as TERM, and wait until they have ended."""
    pause: bool = False
    """Freeze their control groups meanwhile, and give them the new tree where they have the old
    one mounted. Files that they have open stay those of the old one, which is read-only then."""


REFUSE = Manner()


def parse_signal(text: str) -> signal.Signals:
    """Return the signal called TERM, SIGTERM or 15; or raise InvalidArgument."""
    name = text.upper().removeprefix("SIG")
    try:
        return signal.Signals(int(text)) if text.isdecimal() else signal.Signals[f"SIG{name}"]
    except (ValueError, KeyError):
        raise InvalidArgument(f"signal {text[:32]!r} is not known; use one such as TERM") from None


@contextmanager
def replaced(
    old: Bound, source: Callable[[], Path], manner: Manner, frozen: Path
) -> Iterator[None]:
    """Have the tree `old` nowhere for the block, and after it the one that `source` gives.

    We may have it at its path; others have it in mount name spaces of theirs. When the block fails
    the old tree is there again. FailedPrecondition when it is used and `manner` does not say what
    to do then; Unavailable when the new tree cannot be mounted. Groups that are frozen meanwhile
    are noted in the file `frozen`.
    """
    path = mounting.here(old)
    found = _freed(old, path, manner)
    with groups.frozen((user.pid for user in found), frozen):
        if path is None:
            mounting.check_nowhere(old)
            yield
        else:
            with _taken_from(path, lazy=bool(found)):
                mounting.check_nowhere(old)
                yield
            _mount_new(path, source)
        _replace_elsewhere(source, old)


@contextmanager
def _taken_from(path: Path, *, lazy: bool) -> Iterator[None]:
    """Have nothing at `path` for the block; when it fails, what was there."""
    tree = remount.open_tree(path)
    try:
        _unbind(path, lazy=lazy)
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                remount.put(tree, path)
    finally:
        os.close(tree)


def _freed(old: Bound, path: Path | None, manner: Manner) -> list[User]:
    """Tell who uses the tree; return who still does, when they are to be paused."""
    number = parse_signal(manner.signal) if manner.signal else None
    found = users.users_of(old.device, old.root, path)
    if found and number is not None:
        users.tell(found, number, SIGNAL_TIMEOUT_S)
        found = users.users_of(old.device, old.root, path)
    if found and not manner.pause:
        raise FailedPrecondition(
            f"{path or 'the volume'} is used by {users.shown(found)}; stop them, or give --signal "
            "or --pause"
        )
    return found


def _mount_new(path: Path, source: Callable[[], Path]) -> None:
    try:
        mounting.bind(source(), path)
    except (OSError, SnapfsError) as error:
        raise Unavailable(f"the change is made, and {path} is not mounted: {error}") from error


def _unbind(path: Path, *, lazy: bool) -> None:
    """Unmount; with nobody paused, nobody may have come meanwhile."""
    try:
        mounting.unbind(path, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        who = users.shown(users.users(path)) or "something that has just begun"
        raise FailedPrecondition(
            f"{path} is used by {who}; stop that, or give --signal or --pause"
        ) from error


def _replace_elsewhere(source: Callable[[], Path], old: Bound) -> None:
    """Give the new tree to each mount name space that has the old one mounted."""
    for user in users.holders(old.device, old.root):
        with suppress(FileNotFoundError, ProcessLookupError):  # it has ended
            table = mounting.table(str(user.pid))
            targets = [it.path for it in table if (it.device, it.root) == (old.device, old.root)]
            tree = remount.open_tree(source())
            try:
                _run(user, tree, targets)
            finally:
                os.close(tree)


def _run(user: User, tree: int, targets: list[str]) -> None:
    command = [sys.executable, "-m", "snapfs.volumes.remount", str(user.pid), str(tree), *targets]
    try:
        subprocess.run(
            command,
            pass_fds=(tree,),
            check=True,
            capture_output=True,
            text=True,
            timeout=REMOUNT_TIMEOUT_S,
        )
    except subprocess.SubprocessError as error:
        reason = getattr(error, "stderr", "") or str(error)
        log.error("volume.not_replaced", user=str(user), error=reason.strip())
        raise Unavailable(
            f"the change is made, but {user} still has the old tree: {reason.strip()}"
        ) from error
