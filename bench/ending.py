"""However a benchmark ends, what it started ends too: daemons, workers, mounts, its directory.

A guard, a process of its own session, waits for the end of a pipe that only the benchmark holds.
Signals that can be caught become an orderly end; after a SIGKILL the guard does the work.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

from bench import memorygroup
from tests.support.daemon import clear

GUARD_TIMEOUT_S = 300
_PR_SET_PDEATHSIG = 1
_ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def end_on_signals() -> None:
    """Make SIGINT, SIGTERM and SIGHUP an orderly end; others that come then are ignored."""
    for number in _ENDS:
        signal.signal(number, _end)


def end_with_parent() -> None:
    """Have this process killed when the one that forked it ends, however that ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _end(number: int, _frame: FrameType | None) -> None:
    _ignore_signals()
    sys.exit(128 + number)


def _ignore_signals() -> None:
    for number in _ENDS:
        signal.signal(number, signal.SIG_IGN)


@contextlib.contextmanager
def scratch_directory() -> Iterator[Path]:
    """A directory on a disk of the machine; it and all that runs in it is gone afterwards.

    In /var/tmp, since /tmp may be memory, unless TMPDIR names another place.
    """
    place = os.environ.get("TMPDIR", "/var/tmp")
    base = Path(tempfile.mkdtemp(prefix="snapfs-bench-", dir=place))
    reader, writer = os.pipe()
    guard = subprocess.Popen(
        [sys.executable, "-m", "bench.ending", base],
        stdin=reader,
        start_new_session=True,
        cwd=Path(__file__).parents[1],
    )
    os.close(reader)
    try:
        yield base
    finally:
        os.close(writer)
        guard.wait(GUARD_TIMEOUT_S)


def main() -> None:
    """Wait for the end of standard input, then clear the directory that is the argument."""
    _ignore_signals()
    base = Path(sys.argv[1])
    sys.stdin.buffer.read()
    with contextlib.suppress(FileNotFoundError):
        (base / "tracing" / "instances" / base.name).rmdir()  # the kernel's, not the directory's
    clear(base)
    memorygroup.remove(base.name)
    shutil.rmtree(base)


if __name__ == "__main__":
    main()
