"""The writer thread: it runs updates in groups, each a child transaction, one fsync a group.

Invariants: only this thread holds LMDB's write transaction. An update is answered only after the
group's commit is durable, or after nothing of it took effect. When the map is full the group is
aborted, the map grown and the group run again, so an update's function may run more than once but
takes effect once, and its caller sees one answer. A failed fsync ends the writer for good: what
the kernel then holds is not known, so every later update is refused until the store is reopened.
When LMDB gives its environment up, as it does when the last write of a commit fails, the writer
opens that anew: views go on, and updates too when all that was missing is space.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias

import lmdb
import structlog

from snapfs.model import Internal, ResourceExhausted, SnapfsError, TooLarge, Unavailable
from snapfs.store import faults, retention
from snapfs.store.changes import Change
from snapfs.store.environment import Environment, Txn
from snapfs.store.feed import Feed
from snapfs.store.proposer import Proposer
from snapfs.store.requests import Queue, Request
from snapfs.store.tables import Registry
from snapfs.store.watchdog import Holding
from snapfs.store.writing import WriteTx

MAX_GROUP = 256
"""Most updates that share one fsync."""

READER_CHECK_S = 60.0
"""How often slots of dead readers are looked for; each holds back the reuse of pages."""

REOPEN_AGAIN_S = 1.0
"""How often it is tried to open anew what could not be at once."""

_GROW_LEAST_BYTES = 1 << 20
_GROW_MOST_BYTES = 1 << 30

_log = structlog.get_logger(__name__)

_Outcome: TypeAlias = tuple[Request[Any], Any, Exception | None]


class _Ran(NamedTuple):
    """What became of one update in its child transaction."""

    result: Any = None
    failure: Exception | None = None
    change: Change | None = None
    """Kept only when there was no failure."""
    proposed: bool = True


class Writer:
    """Owns the write transaction of one environment; `start` to `stop`."""

    def __init__(
        self,
        environment: Environment,
        registry: Registry,
        *,
        clock_ns: Callable[[], int],
        max_map_size_bytes: int,
        keep_revisions: int,
        feed: Feed,
        proposer: Proposer,
    ) -> None:
        self._environment = environment
        self._registry = registry
        self._clock_ns = clock_ns
        self._max_map_size_bytes = max_map_size_bytes
        self._keep_revisions = keep_revisions
        self._feed = feed
        self._proposer = proposer
        self._broken: SnapfsError | None = None
        self._begun = 0
        """Number of the last write transaction."""
        self._is_unsynced = False
        """What the kernel has of the file may not be what the disk has."""
        self.holding: Holding | None = None
        """What has the write transaction now; read by the watchdog."""
        self.queue = Queue()
        self._thread = threading.Thread(
            target=self._run, name=f"snapfs-store {environment.path}", daemon=True
        )

    @property
    def thread_id(self) -> int | None:
        return self._thread.ident

    def start(self) -> None:
        self._thread.start()

    def is_current_thread(self) -> bool:
        return threading.current_thread() is self._thread

    def stop(self) -> None:
        """Finish what waits and end the thread."""
        self.queue.close()
        self._thread.join()

    def _run(self) -> None:
        self._clear_stale_readers()
        looked_s = time.monotonic()
        try:
            while (group := self.queue.take(MAX_GROUP, self._pause_s)) is not None:
                self._reopen()
                if group:
                    self._serve(group)
                if time.monotonic() >= looked_s + READER_CHECK_S:
                    self._clear_stale_readers()
                    looked_s = time.monotonic()
        finally:
            self.queue.abandon()

    @property
    def _pause_s(self) -> float:
        return REOPEN_AGAIN_S if self._environment.is_given_up else READER_CHECK_S

    def _serve(self, group: list[Request[Any]]) -> None:
        """Run the group and answer each of its requests exactly once."""
        outcomes: list[_Outcome] = []
        try:
            outcomes = self._run_group(group)
        finally:  # also when an update ends the thread (SystemExit): nobody may wait for ever
            self.holding = None
            for request, result, failure in outcomes:
                request.answer(result, failure)
            for request in group:
                request.answer(None, Internal("the store's writer failed; see the log"))

    def _run_group(
        self, group: list[Request[Any]], refusal: SnapfsError | None = None
    ) -> list[_Outcome]:
        """Run and commit the group; what cannot be done together is done one by one.

        `refusal` says why the map cannot grow, once that is known.
        """
        while True:
            if self._broken is not None:
                return [(request, None, self._broken) for request in group]
            try:
                return self._attempt(group)
            except lmdb.MapFullError:
                refusal = refusal or self._grow()
            except lmdb.Error as error:
                refusal = self._judge(error)
            except SnapfsError as error:  # damage where the core itself reads, a second table
                return [(request, None, error) for request in group]
            if refusal is None:
                continue
            if len(group) == 1 or self._broken is not None:
                return [(request, None, refusal) for request in group]
            return [each for request in group for each in self._run_group([request], refusal)]

    def _attempt(self, group: list[Request[Any]]) -> list[_Outcome]:
        """Run the group in one transaction and commit it durably; raise lmdb.Error if it fails."""
        self._environment.refuse_unopened()
        self._refuse_second_table()
        self._sync()
        outcomes: list[_Outcome] = []
        changes: list[Change] = []
        proposals: list[Change] = []
        self.holding = Holding(time.monotonic(), None)
        has_room = self._environment.has_room()
        txn = self._environment.begin_write()
        self._begun = txn.id()
        try:
            for request in group:
                self.holding = Holding(self.holding.since_s, request.function)
                ran = self._run_one(txn, request, has_room=has_room)
                outcomes.append((request, ran.result, ran.failure))
                if ran.change is not None:
                    changes.append(ran.change)
                    proposals += [ran.change] if ran.proposed else []
            self.holding = Holding(self.holding.since_s, None)
            if changes:
                retention.trim(txn, self._environment.dbs, self._keep_revisions, len(changes))
                self._commit(txn, proposals)
        finally:
            txn.abort()
        if changes:
            self._feed.publish(changes)
        return outcomes

    def _commit(self, txn: Txn, proposals: list[Change]) -> None:
        """Propose changes, if there are any, and commit at once or when they are agreed to."""
        if not proposals:
            txn.commit()
            return
        committed = False

        def commit() -> None:
            nonlocal committed
            txn.commit()
            committed = True

        try:
            self._proposer.propose(proposals, commit)
        except Exception as error:  # whatever it is, the commit is durable
            if not committed:
                raise
            _log.warning("store.proposal_failed_after_commit", error=str(error))
        if not committed:
            raise Internal("the changes were proposed and neither committed nor refused; try again")

    def _run_one(self, parent: Txn, request: Request[Any], *, has_room: bool) -> _Ran:
        """Run one update in a child transaction that is kept only if it succeeds and wrote.

        Raises lmdb.Error for what concerns the whole group: a full map, a failing disk.
        """
        child = self._environment.begin_child(parent)
        try:
            tx = WriteTx(
                child,
                self._environment.dbs,
                self._registry,
                now_ns=self._clock_ns(),
                has_room=has_room,
                nest=self._environment.begin_child,
            )
            ran = self._call(tx, request)
            if tx.failure is not None:
                if faults.os_code(tx.failure) or isinstance(tx.failure, lmdb.MapFullError):
                    raise tx.failure
                return _Ran(failure=faults.from_lmdb(self._environment.path, tx.failure))
            if ran.change is not None:
                child.commit()
            return ran
        finally:
            child.abort()

    def _call(self, tx: WriteTx, request: Request[Any]) -> _Ran:
        try:
            result = request.function(tx)
            change = tx.finish()
            if tx.proposed:
                self._check_size(change)
        except Exception as error:  # noqa: BLE001  # the update's own error goes to its caller
            return _Ran(failure=error)
        return _Ran(result, None, change, tx.proposed)

    def _check_size(self, change: Change | None) -> None:
        most = self._proposer.max_change_bytes
        if change is not None and most is not None and change.size_bytes > most:
            raise TooLarge(
                f"an update changes {change.size_bytes} bytes; at most {most} can be agreed on at "
                "once: use a batch"
            )

    def _grow(self) -> SnapfsError | None:
        """Grow the map; return the refusal when it may not or cannot grow."""
        size = self._environment.map_size_bytes
        step = min(max(size, _GROW_LEAST_BYTES), _GROW_MOST_BYTES)
        wanted = min(size + step, self._max_map_size_bytes)
        if wanted <= size:
            return ResourceExhausted(
                f"store {self._environment.path} has reached its limit of {size} bytes; "
                "remove snapshots or raise the limit"
            )
        try:
            self._environment.resize(wanted)
        except SnapfsError as error:
            return error
        _log.info("store.map_grown", path=str(self._environment.path), bytes=wanted)
        return None

    def _judge(self, error: lmdb.Error) -> SnapfsError:
        """Return the refusal for a failed commit; anything but lack of space breaks the writer."""
        refusal = faults.from_lmdb(self._environment.path, error)
        if not isinstance(refusal, ResourceExhausted):
            self._break(error)
        if self._environment.find_given_up():
            self._is_unsynced = True
            _log.warning("store.given_up", path=str(self._environment.path), error=str(error))
            self._reopen()
        return refusal

    def _break(self, error: object) -> None:
        self._broken = Unavailable(
            f"store {self._environment.path} takes no updates since a write failed ({error}); "
            "check the disk and restart"
        )
        _log.error("store.broken", path=str(self._environment.path), error=str(error))

    def _reopen(self) -> None:
        """Open the environment anew if LMDB gave it up; when that fails, it is tried again."""
        if not self._environment.is_given_up:
            return
        path = str(self._environment.path)
        try:
            self._environment.reopen()
        except SnapfsError as error:
            _log.error("store.not_reopened", path=path, error=str(error))
            return
        _log.info("store.reopened", path=path)
        if self._broken is None and self._environment.last_commit >= self._begun:
            self._break("a commit was refused and is in the file")

    def _sync(self) -> None:
        """Have the disk agree with the kernel after a commit that failed at its last write."""
        if self._is_unsynced:
            self._environment.sync()
            self._is_unsynced = False

    def _refuse_second_table(self) -> None:
        """End the updates when there may be readers of whom this writer does not know."""
        path = self._environment.path
        if self._environment.has_second_table:
            self._broken = Unavailable(
                f"store {path} takes no updates since its reader table was replaced while it was "
                "in use; stop all that uses it, and start that again"
            )
            _log.error("store.second_reader_table", path=str(path))
            raise self._broken

    def _clear_stale_readers(self) -> None:
        try:
            cleared = self._environment.clear_stale_readers()
        except SnapfsError:
            _log.exception("store.reader_check_failed", path=str(self._environment.path))
            return
        if cleared:
            _log.info("store.readers_cleared", path=str(self._environment.path), count=cleared)
