"""The writer's lock: one writer a store, and a second one is told who the first is.

The lock is the kernel's (flock on `writer.lock`), so it ends with its holder; what is written in
the file is only for the message.
"""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from snapfs.model import FailedPrecondition
from snapfs.store import faults

FILE_NAME = "writer.lock"

_ATTEMPTS = 10
_ATTEMPT_PAUSE_S = 0.02
"""A reader that asks whether there is a writer holds the lock for a moment (`is_held`)."""


class WriterLock:
    """An exclusive claim on the store in `path`, from `take` to `release`."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._fd: int | None = None

    def take_existing(self) -> None:
        """Take the lock if its file is there; raise FailedPrecondition naming another holder."""
        self._take(os.O_RDWR)

    def take(self) -> None:
        """Take the lock, and make its file if need be; nothing to do when it is taken."""
        if self._fd is None:
            self._take(os.O_RDWR | os.O_CREAT)

    def release(self) -> None:
        if self._fd is None:
            return
        fd, self._fd = self._fd, None
        try:
            with suppress(OSError):  # a failing disk: the name is for people, the lock is the flock
                os.ftruncate(fd, 0)
        finally:
            os.close(fd)

    def _take(self, flags: int) -> None:
        with faults.translated(self._path):
            try:
                fd = os.open(self._path / FILE_NAME, flags | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            except FileNotFoundError:
                return
            try:
                if not _flock(fd, fcntl.LOCK_EX):
                    raise FailedPrecondition(_held(self._path, fd))
                with _unless_full():
                    _sign(fd)
            except (OSError, FailedPrecondition):
                os.close(fd)
                raise
            self._fd = fd


@contextmanager
def unwritten(path: Path) -> Iterator[None]:
    """Keep writers away for the block where a reader cannot be entered in LMDB's reader table.

    That is so on a read-only mount: there LMDB reads without, and a writer that reaches the same
    files by another mount would use the pages again that are being read. FailedPrecondition while
    there is one.
    """
    fd = _readable(path) if is_read_only(path) else None
    if fd is None:
        yield
        return
    try:
        if not _flock(fd, fcntl.LOCK_SH):
            raise FailedPrecondition(
                f"store {path} is read-only here and written elsewhere: {_holder(fd)} cannot know "
                "of a reader; read it where its mount is read-write"
            )
        yield
    finally:
        os.close(fd)


def is_read_only(path: Path) -> bool:
    """Say whether readers of the store in `path` cannot be entered in LMDB's reader table."""
    return not os.access(path, os.W_OK)


def _readable(path: Path) -> int | None:
    """Open the lock's file; None when there is none, so that no writer was here either."""
    with faults.translated(path):
        try:
            return os.open(path / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return None


def is_held(path: Path) -> bool:
    """Say whether some process, maybe this one, is the writer of the store in `path` now."""
    try:
        fd = os.open(path / FILE_NAME, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        fcntl.flock(fd, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    else:
        return False
    finally:
        os.close(fd)


def _flock(fd: int, kind: int) -> bool:
    for _ in range(_ATTEMPTS):
        try:
            fcntl.flock(fd, kind | fcntl.LOCK_NB)
        except BlockingIOError:
            time.sleep(_ATTEMPT_PAUSE_S)
        else:
            return True
    return False


@contextmanager
def _unless_full() -> Iterator[None]:
    """Go on when the disk is full: a lock without a name holds as well."""
    try:
        yield
    except OSError as error:
        if error.errno not in faults.NO_SPACE:
            raise


def _sign(fd: int) -> None:
    command = Path("/proc/self/cmdline").read_bytes().replace(b"\0", b" ").strip()
    os.ftruncate(fd, 0)
    os.pwrite(fd, b"%d %s\n" % (os.getpid(), command[:1000]), 0)


def _held(path: Path, fd: int) -> str:
    return f"store {path} is in use by {_holder(fd)}; stop it first, or ask it instead"


def _holder(fd: int) -> str:
    pid, _, command = os.pread(fd, 1100, 0).decode("utf-8", "replace").strip().partition(" ")
    return f"process {pid} ({command})" if pid else "another process"
