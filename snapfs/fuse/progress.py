"""What the kernel tells of a process that is waited for: what it is at, and whether it gets on.

One that reads its code from a busy disk, or gets little of the processor, is slow and will be
there; another one in its place would begin all over. One that stands still is of no use to anybody.
"""

from __future__ import annotations

import contextlib
import time
from pathlib import Path

LOADING_NS = 10 * 10**9
"""Of processor time: more than a process takes to begin. What takes more and never waits loops."""
SHOWN_CALLS = 8
"""Innermost functions of the kernel that are shown."""


def tell_step(step: str) -> None:
    """Name this process by what it is at, where ps(1) and `describe` find it; 15 bytes are kept."""
    with contextlib.suppress(OSError):  # without /proc nobody looks
        Path("/proc/self/comm").write_text(step)


class Progress:
    """Whether a process gets on, from one look to the next."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._seen = _counts(pid)
        self._moved_s = time.monotonic()

    def stands_still_s(self) -> float:
        """Look, and return for how many seconds it has done nothing that leads to an end."""
        seen = waits, processor_ns = _counts(self._pid)
        loads = processor_ns != self._seen[1] and processor_ns < LOADING_NS
        if waits != self._seen[0] or loads:
            self._moved_s = time.monotonic()
        self._seen = seen
        return time.monotonic() - self._moved_s


def describe(pid: int) -> dict[str, object]:
    """Return what a process is at, as fields of a log line; what the kernel does not tell is left
    out."""
    ran_ns, queued_ns = _times(pid)
    told: dict[str, object] = {
        "step": _read(pid, "comm").strip(),
        "state": _field(_read(pid, "status"), "State"),
        "waits_in": " < ".join(_calls(_read(pid, "stack"))[:SHOWN_CALLS]),
        "read_bytes": _field(_read(pid, "io"), "read_bytes"),
        "processor_s": round(ran_ns / 1e9, 2),
        "wanted_it_s": round(queued_ns / 1e9, 2),
    }
    return {name: value for name, value in told.items() if value != ""}


def _counts(pid: int) -> tuple[int, int]:
    """Return how often it has waited for something, and the processor time that it has had."""
    waits = _field(_read(pid, "status"), "voluntary_ctxt_switches")
    return int(waits or 0), _times(pid)[0]


def _times(pid: int) -> tuple[int, int]:
    """Return for how long it had a processor, and for how long it only wanted one."""
    ran, queued, *_ = (*map(int, _read(pid, "schedstat").split()), 0, 0)
    return ran, queued


def _calls(stack: str) -> list[str]:
    """Return the names of functions, innermost first, of lines like `[<0>] name+0x1/0x2`."""
    return [line.split()[-1].partition("+")[0] for line in stack.splitlines() if line]


def _field(text: str, name: str) -> str:
    found = (line.partition(":")[2] for line in text.splitlines() if line.startswith(f"{name}:"))
    return next(found, "").strip()


def _read(pid: int, name: str) -> str:
    try:
        return Path(f"/proc/{pid}/{name}").read_text(errors="backslashreplace")
    except OSError:  # it has ended, or the kernel does not tell us
        return ""
