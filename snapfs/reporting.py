"""What the service says of its lanes: `snapfs status` and its warnings."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from snapfs import __version__
from snapfs.fuse.control import WorkerStatus
from snapfs.fuse.supervisor import LaneStatus
from snapfs.fuse.watching import FREE_DEATHS
from snapfs.service.records import LaneRecord, Requests

COUNTS = ("nodes", "lookups", "files", "backing")
"""Of what a worker counts, what `snapfs status --json` shows."""


def lane_record(it: LaneStatus) -> LaneRecord:
    """Return what the service says of a lane."""
    return LaneRecord(
        name=it.name,
        mountpoint=it.mountpoint,
        mode=it.mode.value,
        state="not answering" if it.silent_s is not None else it.state.value,
        worker_pid=it.pid,
        features=it.worker.features if it.worker is not None else {},
        restarts=it.restarts,
        counts={} if it.worker is None else {name: getattr(it.worker, name) for name in COUNTS},
        requests={} if it.worker is None else _requests(it.worker),
    )


def _requests(it: WorkerStatus) -> dict[str, Requests]:
    return {
        name: Requests(it.answered.get(name, 0), it.left.get(name, 0))
        for name in sorted({*it.answered, *it.left})
    }


def lane_warnings(it: LaneStatus) -> Iterator[str]:
    """Yield what an operator should know of a lane, with the way out."""
    if it.silent_s is not None:
        end = f"it is replaced after {it.watchdog_s:g} s"
        if it.waits_in:
            end = f"it waits in the kernel ({it.waits_in}) and goes on when the disk answers"
        yield f"lane {it.name}: worker {it.pid} has not answered for {it.silent_s:.0f} s; {end}"
    if it.displaced is not None:
        yield _displaced(it, it.displaced)
    if it.worker_version not in (None, __version__):
        yield (
            f"lane {it.name}: worker {it.pid} is of version {it.worker_version}; "
            "it is replaced at the first restart without containers"
        )
    if it.deaths > FREE_DEATHS:
        yield (
            f"lane {it.name}: its worker died {it.deaths} times in a row; the next one is started "
            f"{it.delay_s:g} s after the last; see the log"
        )


def _displaced(it: LaneStatus, used: Sequence[str]) -> str:
    """Say why a lane is not where it belongs, who holds it, and the way out."""
    if it.covered_by:
        why, way_out = f"a {it.covered_by} is mounted over it", "unmount that"
    else:
        why, way_out = "somebody unmounted it", "it is mounted again when those have ended"
    return (
        f"lane {it.name} is not mounted at {it.mountpoint}: {why}; worker {it.pid} goes on serving "
        f"it where it is used ({', '.join(used) or 'open files'}); {way_out}"
    )
