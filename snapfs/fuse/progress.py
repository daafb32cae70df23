"""What the kernel tells of a process that is waited for: what it is at, and whether it gets on.

One that reads its code from a busy disk, or gets little of the processor, is slow and will be
there; another one in its place would begin all over. One that stands still is of no use to anybody.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path
from typing import NamedTuple

from snapfs.processes import fields, read

LOADING_NS = 10 * 10**9
"""Of processor time: more than a process takes to begin. What takes more and never waits loops."""
WORKING_NS = 5 * 10**8
"""Of processor time: more than a process takes that only looks, again and again, whether it may go
on, as a thread does that waits for the interpreter's lock."""
UNSEEN = 3
"""How many times as long a process may wait, for one thing after another, with nothing to show for
it: a page that another process is reading from the disk is counted for that one only."""
SHOWN_CALLS = 8
"""Innermost functions of the kernel that are shown."""
_FUSE = "fuse_"


def tell_step(step: str) -> None:
    """Name this process by what it is at, where ps(1) and `describe` find it; 15 bytes are kept."""
    with contextlib.suppress(OSError):  # without /proc nobody looks
        Path("/proc/self/comm").write_text(step)


class _Counts(NamedTuple):
    waits: int
    """For something, which it has got."""
    processor_ns: int
    shown: tuple[str, str, str]
    """What leads to an end: the step, what was read from disks, what the first touch of pages read
    from there."""


class Progress:
    """Whether a process gets on, from one look to the next."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen = _counts(pid)
        self._worked_ns = self._seen.processor_ns
        self._moved_s = self._showed_s = time.monotonic()

    def stands_still(self, still_s: float) -> bool:
        """Look, and say whether it has done nothing for so long, or for `UNSEEN` times as long
        nothing that leads to an end."""
        seen, now_s = _counts(self._pid), time.monotonic()
        ran = seen.processor_ns != self._seen.processor_ns and seen.processor_ns < LOADING_NS
        if ran or seen.waits != self._seen.waits:
            self._moved_s = now_s
        worked = ran and seen.processor_ns - self._worked_ns > WORKING_NS
        if worked or seen.shown != self._seen.shown:
            self._moved_s = self._showed_s = now_s
            self._worked_ns = seen.processor_ns
        self._seen = seen
        return now_s - self._moved_s > still_s or now_s - self._showed_s > UNSEEN * still_s


def describe(pid: int) -> dict[str, object]:
    """Return what a process is at, as fields of a log line; what the kernel does not tell is left
    out."""
    ran_ns, queued_ns = _times(pid)
    told: dict[str, object] = {
        "step": read(pid, "comm").strip(),
        "state": _field(read(pid, "status"), "State"),
        "waits_in": " < ".join(_calls(read(pid, "stack"))[:SHOWN_CALLS]),
        "read_bytes": _field(read(pid, "io"), "read_bytes"),
        "processor_s": round(ran_ns / 1e9, 2),
        "wanted_it_s": round(queued_ns / 1e9, 2),
    }
    return {name: value for name, value in told.items() if value != ""}


def held_in(pid: int) -> str:
    """Return the kernel's functions, innermost first, in which a process waits for a disk or the
    like; "" for one that does not.

    Such a wait ends with the disk's answer and with nothing else: not with a kill, and for another
    process in its place it would begin anew. One for the answer of a FUSE mount ends with a kill.
    """
    if not _field(read(pid, "status"), "State").startswith("D"):
        return ""
    calls = _calls(read(pid, "stack"))
    if any(_FUSE in call for call in calls):
        return ""
    return " < ".join(calls[:SHOWN_CALLS]) or "the kernel"


def _counts(pid: int) -> _Counts:
    waits = _field(read(pid, "status"), "voluntary_ctxt_switches")
    # Field 12 of proc_pid_stat(5); the name before them may hold blanks.
    faults = [*read(pid, "stat").rpartition(") ")[2].split(), *[""] * 10][9]
    from_disks = _field(read(pid, "io"), "read_bytes")
    return _Counts(int(waits or 0), _times(pid)[0], (read(pid, "comm"), from_disks, faults))


def _times(pid: int) -> tuple[int, int]:
    """Return for how long it had a processor, and for how long it only wanted one."""
    ran, queued, *_ = (*map(int, read(pid, "schedstat").split()), 0, 0)
    return ran, queued


def _calls(stack: str) -> list[str]:
    """Return the names of functions, innermost first, of lines like `[<0>] name+0x1/0x2`."""
    return [line.split()[-1].partition("+")[0] for line in stack.splitlines() if line]


def _field(text: str, name: str) -> str:
    return fields(text).get(name, "")
