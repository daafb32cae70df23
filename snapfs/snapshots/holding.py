"""Keeping the files of what is removed for a while, for who copies a root beside its service.

A hold is a file in `<root>/holds`, locked (flock) and touched again and again by its holder;
whoever deletes layers or content asks first whether there is one. What was in the metadata when the
hold began keeps its files until the hold ends: its removal comes later, and its deletion asks after
that.

A hold ends with its process, whose locks the kernel lets go. It also ends, while that process
lives, when the file system gets full, and when it was not touched for LEASE_S: who was stopped
(SIGSTOP, a frozen cgroup) must not keep others from removing. Then its file goes before anything is
deleted, so that whoever finds it there knows that all is there that was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import structlog

LEAST_FREE = 0.05
"""Share of blocks or inodes that must be left for a hold to go on."""
LEASE_S = 60.0
"""How long a hold counts that is not touched, by the clock of who waits for it."""
HOLDS = "holds"
_POLL_S = 1.0

log = structlog.get_logger(__name__)


class Hold:
    """Whether the files of what is removed are still kept."""

    def __init__(self, path: Path, fd: int, why_lost: str = "") -> None:
        self.path = path
        self._fd = fd
        self._why = why_lost

    @property
    def is_lost(self) -> bool:
        """Whether files may have been deleted."""
        return bool(self.why_lost)

    @property
    def why_lost(self) -> str:
        """Why files may have been deleted; empty while none is."""
        if not self._why and self._fd >= 0 and not os.fstat(self._fd).st_nlink:
            self._why = "this process stood still for too long, and removals went on"
        return self._why

    def lose(self, why: str) -> None:
        """Let others delete from now on."""
        self._why = self._why or why
        with suppress(OSError):  # then it ends when it was not touched for long enough
            self.path.unlink()

    def touch(self) -> None:
        """Go on holding; give up where the disk has no room or cannot be written."""
        if is_short(self._fd):
            self.lose("the root's file system is nearly full")
            return
        try:
            os.utime(self._fd)
        except OSError as error:
            self.lose(f"the root's file system cannot be written ({error.strerror})")


@contextmanager
def held(root: Path) -> Iterator[Hold]:
    """Let nobody delete files of a root for the block; OSError when that cannot be asked for.

    Where there is no room for the file of a hold, or the root is read-only here, which it need not
    be for others, it is lost from the beginning.
    """
    try:
        path, fd = _make(root / HOLDS)
    except OSError as error:
        if error.errno not in (errno.EROFS, errno.ENOSPC, errno.EDQUOT):
            raise
        is_full = error.errno != errno.EROFS
        why = "has no room" if is_full else "is mounted read-only here"
        yield Hold(root / HOLDS, -1, f"the root's file system {why}")
        return
    hold, is_over = Hold(path, fd), threading.Event()

    def keep() -> None:
        while not (is_over.wait(_POLL_S) or hold.is_lost):
            hold.touch()

    keeper = threading.Thread(target=keep, name="snapfs-hold", daemon=True)
    try:
        hold.touch()
        keeper.start()
        yield hold
    finally:
        is_over.set()
        if keeper.ident is not None:
            keeper.join()
        with suppress(OSError):  # who asks next finds that nobody locks it
            path.unlink()
        os.close(fd)


def _make(directory: Path) -> tuple[Path, int]:
    """Make the file of a hold, locked."""
    directory.mkdir(mode=0o700, exist_ok=True)
    while True:
        path = directory / os.urandom(8).hex()
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(fd, fcntl.LOCK_SH)
        except OSError:
            os.close(fd)
            raise
        if os.fstat(fd).st_nlink:
            return path, fd
        os.close(fd)  # somebody took it for a dead one's before it was locked


class Holds:
    """The holds on a root, as who deletes sees them. Thread-safe."""

    def __init__(self, root: Path, *, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._directory = root / HOLDS
        self._clock_s = clock_s
        self._lock = threading.Lock()
        self._seen: dict[str, tuple[int, float]] = {}
        """When each was touched last, by its file and by our clock. Guarded by `_lock`."""
        self._strange: set[str] = set()
        """Names of what is no hold and was logged. Guarded by `_lock`."""

    def any(self) -> bool:
        """Say whether somebody holds the root, so that nothing may be deleted now.

        Forgets the holds of dead processes, and ends those that are not touched any more. Raises
        OSError when it cannot be told, or when one cannot be ended: then nothing may be deleted.
        """
        with self._lock:
            try:
                names = os.listdir(self._directory)
            except FileNotFoundError:
                return False
            for gone in self._seen.keys() - set(names):
                del self._seen[gone]
            self._strange.intersection_update(names)
            counting = [name for name in names if self._counts(name)]
            return bool(counting)

    def _counts(self, name: str) -> bool:
        path = self._directory / name
        try:
            if not stat.S_ISREG(path.lstat().st_mode):
                self._ignore(path)
                return False
            fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        except FileNotFoundError:
            return False
        try:
            if self._is_locked(fd):
                idle_s = self._idle_s(name, os.fstat(fd).st_mtime_ns)
                if idle_s < LEASE_S:
                    return True
                log.warning("hold.expired", path=str(path), idle_s=round(idle_s))
            path.unlink(missing_ok=True)
            return False
        finally:
            os.close(fd)

    def _ignore(self, path: Path) -> None:
        """Say once of what is no file that it is no hold; it stays."""
        if path.name not in self._strange:
            self._strange.add(path.name)
            log.warning("hold.ignored", path=str(path), reason="it is not a regular file")

    def _idle_s(self, name: str, touched_ns: int) -> float:
        """Return for how long a hold was not touched; clocks that are set back do not matter."""
        now_s, seen = self._clock_s(), self._seen.get(name)
        if seen is None:  # what was before we looked is told by the clock on the wall
            since_s = now_s - max(0.0, time.time() - touched_ns / 1e9)
            seen = self._seen[name] = (touched_ns, since_s)
        elif seen[0] != touched_ns:
            seen = self._seen[name] = (touched_ns, now_s)
        return now_s - seen[1]

    @staticmethod
    def _is_locked(fd: int) -> bool:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
        return False


def is_short(fd: int) -> bool:
    """Say whether a file system has little room left."""
    found = os.fstatvfs(fd)
    return (
        found.f_bavail < found.f_blocks * LEAST_FREE or found.f_favail < found.f_files * LEAST_FREE
    )
