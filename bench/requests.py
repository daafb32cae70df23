"""Which requests a FUSE mount got, from the kernel's own tracepoint; no file system is asked.

FORGET is not seen there. Costs about a microsecond a request, so what is counted is not timed.
"""

from __future__ import annotations

import contextlib
import os
import re
import subprocess
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

BUFFER_KIB = 32 * 1024
_EVENT = "events/fuse/fuse_request_send"
_OPCODE = re.compile(r"\(FUSE_(\w+)\)")


class Tracer:
    """A trace buffer of its own (tracefs instance)."""

    def __init__(self, instance: Path) -> None:
        self._instance = instance

    @contextlib.contextmanager
    def counting(self, merged: Path) -> Iterator[Counter[str]]:
        """Count the requests of the file system at `merged` during the block, by opcode."""
        found: Counter[str] = Counter()
        device = os.stat(merged).st_dev
        connection = os.major(device) << 20 | os.minor(device)
        self._say(f"{_EVENT}/filter", f"connection == {connection}")
        self._say("trace", "")
        self._say(f"{_EVENT}/enable", "1")
        try:
            yield found
        finally:
            self._say(f"{_EVENT}/enable", "0")
            with (self._instance / "trace").open() as lines:
                for line in lines:
                    if match := _OPCODE.search(line):
                        found[match[1].lower()] += 1

    def _say(self, file: str, text: str) -> None:
        (self._instance / file).write_text(text)


@contextlib.contextmanager
def tracer(scratch: Path) -> Iterator[Tracer | None]:
    """A tracer for the block; None where the kernel has no such tracepoint."""
    place = scratch / "tracing"
    place.mkdir()
    subprocess.run(["mount", "-t", "tracefs", "none", place], check=True, timeout=60)
    try:
        if not (place / _EVENT).exists():
            yield None
            return
        instance = place / "instances" / scratch.name
        instance.mkdir()
        try:
            (instance / "buffer_size_kb").write_text(str(BUFFER_KIB))
            (instance / "trace_clock").write_text("global")
            yield Tracer(instance)
        finally:
            instance.rmdir()
    finally:
        subprocess.run(["umount", place], check=True, timeout=60)
        place.rmdir()
