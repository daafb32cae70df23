"""Time the calls of the snapshots service on overlayfs, snapfs behind containerd, and snapfs.

One gRPC client makes the same calls on all three, one after the other and sixteen at once. The
first two go through containerd's own metadata, the third speaks to snapfs's socket.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import grpc
from snapfs_containerd import snapshots_pb2 as pb
from snapfs_containerd.snapshots_pb2_grpc import SnapshotsStub

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, engines, report

CALLS = 320
CLIENTS = 16
_METADATA = (("containerd-namespace", "bench"),)
_KEEP = {"containerd.io/gc.root": "bench"}
"""Without it containerd's garbage collector would take what the benchmark made."""


class Caller:
    """The calls of one client on one snapshotter; each takes the number of a snapshot."""

    def __init__(self, socket: Path, snapshotter: str) -> None:
        self._stub = SnapshotsStub(grpc.insecure_channel(f"unix:{socket}"))
        self._snapshotter = snapshotter

    def prepare(self, number: int) -> None:
        request = pb.PrepareSnapshotRequest(
            snapshotter=self._snapshotter, key=f"key-{number}", labels=_KEEP
        )
        self._stub.Prepare(request, metadata=_METADATA)

    def mounts(self, number: int) -> None:
        request = pb.MountsRequest(snapshotter=self._snapshotter, key=f"key-{number}")
        self._stub.Mounts(request, metadata=_METADATA)

    def commit(self, number: int) -> None:
        request = pb.CommitSnapshotRequest(
            snapshotter=self._snapshotter,
            key=f"key-{number}",
            name=f"name-{number}",
            labels=_KEEP,
        )
        self._stub.Commit(request, metadata=_METADATA)

    def stat(self, number: int) -> None:
        request = pb.StatSnapshotRequest(snapshotter=self._snapshotter, key=f"name-{number}")
        self._stub.Stat(request, metadata=_METADATA)

    def usage(self, number: int) -> None:
        request = pb.UsageRequest(snapshotter=self._snapshotter, key=f"name-{number}")
        self._stub.Usage(request, metadata=_METADATA)

    def remove(self, number: int) -> None:
        request = pb.RemoveSnapshotRequest(snapshotter=self._snapshotter, key=f"name-{number}")
        self._stub.Remove(request, metadata=_METADATA)


CALLS_IN_ORDER = ("prepare", "mounts", "commit", "stat", "usage", "remove")


def main() -> None:
    """Run all calls on all snapshotters and print the tables."""
    parser = arguments.parser("calls", __doc__)
    parser.add_argument("--calls", type=int, default=CALLS, help=f"of each kind ({CALLS})")
    parser.add_argument("--clients", type=int, default=CLIENTS, help=f"at once ({CLIENTS})")
    chosen = parser.parse_args()
    ending.end_on_signals()
    for durability in ("full", "metadata"):
        with engines.running(durability=durability) as both:
            callers = {
                "overlayfs": Caller(both.containerd.socket, "overlayfs"),
                "snapfs behind containerd": Caller(both.containerd.socket, "snapfs"),
                "snapfs": Caller(both.alone.address, "snapfs"),
            }
            figures = {
                name: measure(caller, chosen.calls, chosen.clients)
                for name, caller in callers.items()
            }
        rows = [(row, {name: by[row] for name, by in figures.items()}) for row in figures["snapfs"]]
        print(f"durability = {durability}\n")
        print(report.table("calls per second", rows, reference="overlayfs"), end="\n\n")


def measure(caller: Caller, count: int, at_once: int) -> dict[str, float]:
    """Return calls per second, for one client and for many."""
    figures = {}
    for clients in (1, at_once):
        for name in CALLS_IN_ORDER:
            rate = calls_per_second(getattr(caller, name), count, clients)
            figures[f"{name}, {clients} at once"] = rate
    return figures


def calls_per_second(call: Callable[[int], None], count: int, clients: int) -> float:
    """Return how many of `count` calls end in a second with `clients` threads calling."""
    with ThreadPoolExecutor(clients) as pool:
        start = time.perf_counter()
        for _ in pool.map(call, range(count)):
            pass
        return count / (time.perf_counter() - start)


if __name__ == "__main__":
    main()
