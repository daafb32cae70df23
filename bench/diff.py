"""Time a layer of a small change to a large image: ten changed files on a Debian tree.

containerd's own differ walks both trees, on overlayfs and on snapfs; the diff service of snapfs
reads the change alone. All three write the layer, packed, to containerd's content store.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import grpc
from snapfs_containerd import diff_pb2, diff_pb2_grpc, mount_pb2

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments, ending, report
from tests.support import containerd, daemon
from tests.support.containerd import IN_NAMESPACE, Containerd, mounted
from tests.support.images import debian_image

RUNS = 5
CHANGED = 10
TIMEOUT_S = 600.0
Pair = tuple[Sequence[mount_pb2.Mount], Sequence[mount_pb2.Mount]]


def main() -> None:
    """Run all differs in turn and print the table."""
    parser = arguments.parser("diff", __doc__)
    parser.add_argument("--runs", type=int, default=RUNS, help=f"timed runs of each ({RUNS})")
    chosen = parser.parse_args()
    ending.end_on_signals()
    with ending.scratch_directory() as scratch:
        base, socket = scratch / "snapfs", scratch / "containerd" / "containerd.sock"
        base.mkdir()
        environ = {"SNAPFS_DIFF_CONTAINERD": str(socket)}
        with (
            daemon.running(base, arguments=["--log-level", "info"], environ=environ) as snapfs,
            containerd.running(socket.parent, {"snapfs": snapfs.address}) as engine,
            _differ(engine.socket) as walking,
            _differ(snapfs.address) as marks,
        ):
            measure(scratch, engine, walking, marks, chosen.runs)
            engine.remove_everything()


def measure(
    scratch: Path,
    engine: Containerd,
    walking: diff_pb2_grpc.DiffStub,
    marks: diff_pb2_grpc.DiffStub,
    runs: int,
) -> None:
    """Print the seconds of each differ."""
    image = debian_image()
    archive = image.write(scratch / "image.tar")
    pairs = {}
    for snapshotter in ("overlayfs", "snapfs"):
        engine.load(archive, snapshotter=snapshotter)
        pairs[snapshotter] = _changed(engine, image.chain_id, snapshotter, scratch / "target")
    ways = {
        "walking, overlayfs": (walking, pairs["overlayfs"]),
        "walking, snapfs": (walking, pairs["snapfs"]),
        "snapfs": (marks, pairs["snapfs"]),
    }
    taken: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(runs):
        for name, (differ, pair) in ways.items():
            try:
                taken[name].append(_seconds(differ, *pair))
            except grpc.RpcError as error:
                print(f"{name} failed: {error.details()}\n")  # type: ignore[attr-defined]
    row = {name: statistics.median(seconds) for name, seconds in taken.items() if seconds}
    title = f"{CHANGED} changed files on a Debian tree"
    print(report.table("seconds", [(title, row)], reference="snapfs"))
    least = min(seconds for name, seconds in row.items() if name != "snapfs") / row["snapfs"]
    print(f"\nPromised: 10x. The quicker walk takes {least:.0f}x as long.")


def _changed(engine: Containerd, parent: str, snapshotter: str, target: Path) -> Pair:
    left = engine.view("bench-left", parent, snapshotter=snapshotter)
    right = engine.prepare("bench-right", parent, snapshotter=snapshotter)
    target.mkdir(exist_ok=True)
    with mounted(right, target):
        for path in sorted((target / "etc").glob("*.conf"))[: CHANGED // 2]:
            path.write_text(path.read_text() + "# changed\n")
        for number in range(CHANGED - CHANGED // 2):
            (target / "var" / f"new-{number}").write_bytes(bytes(1000 * number))
    return left, right


def _seconds(differ: diff_pb2_grpc.DiffStub, left: object, right: object) -> float:
    request = diff_pb2.DiffRequest(left=left, right=right)  # type: ignore[arg-type]
    began = time.perf_counter()
    differ.Diff(request, metadata=IN_NAMESPACE, timeout=TIMEOUT_S)
    return time.perf_counter() - began


@contextmanager
def _differ(socket: Path) -> Iterator[diff_pb2_grpc.DiffStub]:
    with grpc.insecure_channel(f"unix:{socket}") as channel:
        yield diff_pb2_grpc.DiffStub(channel)


if __name__ == "__main__":
    main()
