"""One open LMDB environment of this process: its handles, its map and who reads it.

LMDB forbids opening a file twice in a process, so those who read in the writer's process share its
environment (`share`); the last `release` closes it. `opening` guards `_open_here`, and is held from
looking at a data file to having it open.

Invariants: the map is changed, and the file opened anew, only while no read or write transaction of
this process is open (LMDB's rule; it would pull the pages from under them). `_gate` guards `_views`
and what a view must wait for. A view waits while that is done; who does it waits for open views,
both with a deadline.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import TypeAlias

import lmdb

from snapfs.model import FailedPrecondition, SnapfsError, Unavailable
from snapfs.store import faults, lock, readertable, space
from snapfs.store.schema import Sub

MAX_READERS = 1022
"""Read transactions at once over all processes; it fixes the size of the lock file."""

RESIZE_WAIT_S = 10.0
"""How long a change of the map waits for open views, and a view for a change of the map."""

_FOLLOW_ATTEMPTS = 8

Txn: TypeAlias = "lmdb.Transaction[bytes]"

opening = threading.RLock()
_open_here: dict[tuple[int, int], Environment] = {}
"""The environments open in this process, by device and inode of their data file: LMDB's own rule
is about the process, so this cannot belong to any one object."""


class Environment:
    """An open environment; `read` and `write` begin transactions on it."""

    def __init__(
        self, path: Path, key: tuple[int, int], *, readonly: bool, map_size_bytes: int
    ) -> None:
        self.path = path
        self.readonly = readonly
        self._key = key
        self._gate = threading.Condition()
        self._views = 0
        self._resizing = False
        self.is_given_up = False
        """LMDB has given the environment up (MDB_PANIC), and it was not opened anew yet."""
        self._not_opened: SnapfsError | None = None
        """Why it could not be opened anew."""
        self._closed = False
        with ExitStack() as claim:
            if readonly:
                claim.enter_context(lock.unwritten(path))
            else:
                self._table = readertable.hold(path)
                claim.callback(os.close, self._table)
            with faults.translated(path):
                self._env = _open(path, readonly, map_size_bytes)
                try:
                    self.dbs = _handles(self._env)
                except lmdb.Error:
                    self._env.close()
                    raise
            self.map_size_bytes = self._env.info()["map_size"]
            self._claim = claim.pop_all()
        self._ballast: space.Ballast | None = None
        self._users = 1

    @classmethod
    def share(cls, path: Path) -> Environment | None:
        """Return the environment that this process has open on `path`, one user more; or None."""
        with opening:
            try:
                found = _open_here.get(_identity(path))
            except OSError:
                return None  # whoever opens it finds out why
            if found is not None:
                found._users += 1
            return found

    @classmethod
    def refuse_if_open(cls, path: Path) -> None:
        """Raise FailedPrecondition when this process has the store open already."""
        with faults.translated(path), opening:
            if _identity(path) in _open_here:
                raise FailedPrecondition(
                    f"store {path} is open for reading in this process; close that first"
                )

    @classmethod
    def acquire(cls, path: Path, *, readonly: bool, map_size_bytes: int = 0) -> Environment:
        """Open the sound store in `path`, which is not open here; end it with `release`.

        Raises FailedPrecondition for reading where there is a writer and no reader table: the
        writer has another one, in which it would not find the reader.
        """
        with faults.translated(path), opening:
            key = _identity(path)
            if readonly:
                _refuse_second_table(path)
                with suppress(OSError):  # LMDB finds out what may not be done, and says it
                    readertable.settle(path)
            else:
                readertable.reserve(path)
            environment = cls(path, key, readonly=readonly, map_size_bytes=map_size_bytes)
            _open_here[key] = environment
            return environment

    def release(self) -> None:
        """End one use; the last closes the environment."""
        with opening:
            self._users -= 1
            if self._users == 0:
                _open_here.pop(self._key, None)
                self._close()

    @property
    def file_size_bytes(self) -> int:
        with faults.translated(self.path):
            return (self.path / "data.mdb").stat().st_size

    @property
    def readers(self) -> int:
        """Slots of the reader table that are or were in use, over all processes."""
        return self._env.info()["num_readers"]

    @property
    def has_second_table(self) -> bool:
        """Say whether who begins to read now is entered in another reader table than this one.

        A write transaction would then use pages again that are being read. Only for the writer.
        """
        with faults.translated(self.path):
            return readertable.is_another(self.path, self._table)

    def begin_read(self) -> Txn:
        """Begin a read transaction; end it with `end_read`. It counts as a view until then.

        Follows a map that another process has grown. Raises Unavailable when no view can begin.
        """
        for _ in range(_FOLLOW_ATTEMPTS):
            self._enter()
            try:
                return self._env.begin()
            except lmdb.MapResizedError:
                self._leave()
            except lmdb.PanicError:
                self._give_up()
                self._leave()
                continue
            except lmdb.Error as error:
                self._leave()
                raise faults.from_lmdb(self.path, error) from error
            self.resize(0)
        raise Unavailable(f"store {self.path} grows faster than it can be read; try again")

    def end_read(self, txn: Txn) -> None:
        try:
            txn.abort()
        finally:
            self._leave()

    def has_room(self) -> bool:
        """Say whether the disk has room for something new, not only for removals (`Ballast`).

        Only the writer thread asks.
        """
        with faults.translated(self.path):
            if self._ballast is None:
                self._ballast = space.Ballast(self.path)
            return self._ballast.secure()

    def begin_write(self) -> Txn:
        """Begin the write transaction; only the writer thread does, and ends it there."""
        return self._env.begin(write=True)

    def begin_child(self, parent: Txn) -> Txn:
        return self._env.begin(parent=parent, write=True)

    def resize(self, size_bytes: int) -> None:
        """Set the map to `size_bytes`; 0 takes what another process has made of it.

        Waits for the views of this process to end. Raises Unavailable when one does not.
        """
        with self._gate:
            self._await(lambda: not self._resizing, "another change of the map")
            self._resizing = True
            try:
                self._await(lambda: self._views == 0, "a read transaction that stays open")
                with faults.translated(self.path):
                    self._env.set_mapsize(size_bytes)
                    self.map_size_bytes = self._env.info()["map_size"]
            finally:
                self._resizing = False
                self._gate.notify_all()

    def find_given_up(self) -> bool:
        """Say whether LMDB begins no transaction on it any more; only the writer asks, outside one.

        That is so after it could not write a meta page, the last step of a commit.
        """
        try:
            self._env.begin(write=True).abort()
        except lmdb.PanicError:
            self._give_up()
        except lmdb.Error:
            pass
        return self.is_given_up

    def refuse_unopened(self) -> None:
        """Raise why it could not be opened anew, when it could not."""
        if self._not_opened is not None:
            raise self._not_opened

    def reopen(self) -> None:
        """Open anew what LMDB gave up, as of its last commit; only the writer does.

        Waits for the views of this process to end; new ones wait for it. When it fails, with
        Unavailable or what opening raises, views fail with that until it succeeds.
        """
        with self._gate:
            try:
                self._not_opened = None
                self._await(lambda: self._views == 0, "a read transaction that stays open")
                with faults.translated(self.path):
                    self._env.close()
                    self._env = _open(self.path, self.readonly, self.map_size_bytes)
                    self.dbs = _handles(self._env)
                self.is_given_up = False
            except SnapfsError as error:
                self._not_opened = error
                raise
            finally:
                self._gate.notify_all()

    @property
    def last_commit(self) -> int:
        """Number of the newest transaction in the file, also when a commit of it was refused."""
        return self._env.info()["last_txnid"]

    def sync(self) -> None:
        """Make what the kernel has of the data file durable."""
        self._env.sync(True)

    def clear_stale_readers(self) -> int:
        """Free the reader slots of dead processes and return how many there were."""
        self._enter()
        try:
            with faults.translated(self.path):
                return self._env.reader_check()
        finally:
            self._leave()

    def _give_up(self) -> None:
        with self._gate:
            self.is_given_up = True

    def _close(self) -> None:
        """Close it once the views of this process have ended, or after a deadline anyway."""
        with self._gate:
            self._closed = True
            self._gate.wait_for(lambda: self._views == 0, RESIZE_WAIT_S)
            self._env.close()
        self._claim.close()
        if self._ballast is not None:
            self._ballast.close()
            self._ballast = None

    def _enter(self) -> None:
        with self._gate:
            if self._resizing:
                self._await(lambda: not self._resizing, "a change of the map")
            if self.is_given_up:
                self._await(self._is_settled, "being opened anew after a failed write")
            self.refuse_unopened()
            if self._closed:
                raise Unavailable(f"store {self.path} is closed; open it again")
            self._views += 1

    def _is_settled(self) -> bool:
        return not self.is_given_up or self._not_opened is not None or self._closed

    def _leave(self) -> None:
        with self._gate:
            self._views -= 1
            if self._views == 0:
                self._gate.notify_all()

    def _await(self, condition: Callable[[], bool], what: str) -> None:
        if not self._gate.wait_for(condition, RESIZE_WAIT_S):
            raise Unavailable(f"store {self.path} waits for {what}; try again")


def _open(path: Path, readonly: bool, map_size_bytes: int) -> lmdb.Environment:
    """Open the environment; readahead is off because access is by key, not in order.

    On a read-only mount LMDB does without locks by itself, in a snapshot of btrfs it does not.
    """
    return lmdb.open(
        str(path),
        map_size=map_size_bytes,
        readonly=readonly,
        create=False,
        mode=0o700,
        lock=not (readonly and lock.is_read_only(path)),
        readahead=False,
        max_readers=MAX_READERS,
        max_dbs=len(Sub),
        max_spare_txns=1,
        lib_version=0,
    )


def _refuse_second_table(path: Path) -> None:
    if lock.is_read_only(path) or not lock.is_held(path) or (path / readertable.FILE_NAME).exists():
        return
    raise FailedPrecondition(
        f"store {path} is in use and its reader table {path / readertable.FILE_NAME} is not there; "
        "if it just starts, try again; else stop all that uses it, and start that again"
    )


def _identity(path: Path) -> tuple[int, int]:
    found = (path / "data.mdb").stat()
    return found.st_dev, found.st_ino


def _handles(env: lmdb.Environment) -> dict[Sub, lmdb._Database]:
    return {sub: env.open_db(sub.value, create=False) for sub in Sub}
