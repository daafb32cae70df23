"""Directories of creations that came to nothing, until there is room to promise their removal.

A creation that fails undoes what it made, and one that was killed is undone at the next start. On a
full disk neither may be possible: then it is tried again behind the callers' backs. Only what is
told here is touched, so never a creation that is under way: an id is told by who took it and gave
it up, or by recovery before anybody takes one.

`_settling` is held while the store is called, `_lock` guards the rest.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping
from contextlib import suppress

import structlog

from snapfs.model import NotFound, SnapfsError, SnapshotId
from snapfs.snapshots import records, recovery
from snapfs.snapshots.faults import refusing
from snapfs.snapshots.layers import LayerDirectories
from snapfs.snapshots.metastore import MetaStore
from snapfs.snapshots.removal import Remover
from snapfs.snapshots.reserve import IdReserve
from snapfs.store import WriteTx

FIRST_RETRY_S = 1.0
LONGEST_RETRY_S = 30.0

log = structlog.get_logger(__name__)


class Unfinished:
    """The unfinished creations of one root. Thread-safe."""

    def __init__(
        self, meta: MetaStore, layers: LayerDirectories, reserve: IdReserve, remover: Remover
    ) -> None:
        self._meta = meta
        self._layers = layers
        self._reserve = reserve
        self._remover = remover
        self._settling = threading.Lock()
        self._lock = threading.Lock()
        self._ids: set[SnapshotId] = set()
        self._intents: set[int] = set()
        self._thread: threading.Thread | None = None
        self._stopping = threading.Event()

    def add(self, ids: Iterable[SnapshotId], intents: Iterable[int] = ()) -> None:
        """Have the directories of `ids` without a row removed, and `intents` forgotten."""
        with self._lock:
            self._ids.update(ids)
            self._intents.update(intents)
        try:
            self._settle()
        except SnapfsError as error:
            log.warning("promises.not_settled", ids=sorted(self._ids), error=str(error))
            self._start()

    def _settle(self) -> None:
        """Promise the removal of all there is; raises what kept that from being written."""
        with self._settling:
            with self._lock:
                ids, intents = tuple(self._ids), tuple(self._intents)
            if not ids and not intents:
                return
            with refusing("remove what creations left"):
                self._layers.check_writable()  # else the store would take no updates any more
            for intent, identity in self._meta.apply(lambda tx: _promise(tx, ids, intents)).items():
                self._remover.add(intent, identity)
            with self._lock:
                self._ids.difference_update(ids)
                self._intents.difference_update(intents)
            for identity in ids:
                self._reserve.settle(identity)

    def stop(self, timeout_s: float) -> None:
        """Try no more; what is left is for the next start."""
        self._stopping.set()
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _start(self) -> None:
        with self._lock:
            if self._thread is None and not self._stopping.is_set():
                self._thread = threading.Thread(target=self._run, name="snapfs-undo", daemon=True)
                self._thread.start()

    def _run(self) -> None:
        delay_s = FIRST_RETRY_S
        while not self._stopping.wait(delay_s):
            with suppress(SnapfsError):  # it was logged once
                self._settle()
            if self._is_done():
                log.info("promises.settled")
                return
            delay_s = min(delay_s * 2, LONGEST_RETRY_S)

    def _is_done(self) -> bool:
        """Say whether nothing is left; then the thread ends."""
        with self._lock:
            if self._ids or self._intents:
                return False
            self._thread = None
            return True


def _promise(
    tx: WriteTx, ids: Iterable[SnapshotId], intents: Iterable[int]
) -> Mapping[int, SnapshotId]:
    for intent in intents:
        with suppress(NotFound):  # a repair was there first
            tx.clear_intent(intent)
    return {
        recovery.promise_removal(tx, identity): identity
        for identity in ids
        if records.by_id(tx, identity) is None
    }
