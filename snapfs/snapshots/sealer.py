"""Sealing committed layers, behind the callers' backs: a digest of each, once (snapfs.seals).

One thread takes them in turn, each read by a process of its own at low priority. What a stop or a
crash leaves without a digest is found at the next opening. The list is durable before the
metadata has the digest. A layer that cannot be read stays without one, is logged, and is tried
again at the next opening.
"""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Iterable

import structlog

from snapfs.model import SnapfsError, SnapshotId
from snapfs.snapshots.layers import LayerDirectories

log = structlog.get_logger(__name__)


class Sealer:
    """Seals the layers of one root. Thread-safe; `_changed` guards all but the constants."""

    def __init__(
        self, layers: LayerDirectories, record: Callable[[SnapshotId, bytes], bool]
    ) -> None:
        """`record` keeps a digest, and says False for a snapshot that is gone."""
        self._layers = layers
        self._record = record
        self._changed = threading.Condition()
        self._waiting: deque[SnapshotId] = deque()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="snapfs-seals", daemon=True)

    def start(self, unsealed: Iterable[SnapshotId]) -> None:
        """Begin with the layers that earlier runs left without a digest."""
        self._waiting.extend(unsealed)
        self._thread.start()

    def add(self, snapshot_id: SnapshotId) -> None:
        """Seal a layer that is committed."""
        with self._changed:
            self._waiting.append(snapshot_id)
            self._changed.notify_all()

    def stop(self, timeout_s: float) -> None:
        """Stop, in the middle of a layer if need be."""
        with self._changed:
            self._stopping = True
            if self._process is not None:
                self._process.kill()
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join(timeout_s)

    def _run(self) -> None:
        while (snapshot_id := self._next()) is not None:
            try:
                self._seal(snapshot_id)
            except (OSError, SnapfsError) as error:
                log.warning("layer.seal_failed", id=snapshot_id, error=str(error))

    def _next(self) -> SnapshotId | None:
        with self._changed:
            while not self._waiting and not self._stopping:
                self._changed.wait()
            return None if self._stopping else self._waiting.popleft()

    def _seal(self, snapshot_id: SnapshotId) -> None:
        layer, file = self._layers.upper(snapshot_id), self._layers.seal(snapshot_id)
        process = self._begin("-m", "snapfs.seals", str(layer), str(file), str(os.getpid()))
        if process is None:
            return
        printed, said = process.communicate()
        with self._changed:
            self._process = None
        if process.returncode == 0:
            digest = bytes.fromhex(printed.decode())
            if self._record(snapshot_id, digest):
                log.info("layer.sealed", id=snapshot_id, digest=digest.hex())
        elif layer.exists() and not self._stopping:
            why = said.decode(errors="replace").strip().rpartition("\n")[2]
            log.warning("layer.seal_failed", id=snapshot_id, error=why)

    def _begin(self, *arguments: str) -> subprocess.Popen[bytes] | None:
        """Start the process that reads the layer, unless it is time to stop."""
        with self._changed:
            if self._stopping:
                return None
            self._process = subprocess.Popen(
                [sys.executable, *arguments],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                cwd="/",
            )
            return self._process
