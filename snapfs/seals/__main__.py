"""Seals one layer in a process of its own: LAYER FILE PARENT; prints the digest in hexadecimal.

The service has it done so, since hashing beside its threads would keep them from answering. The
process ends with its PARENT, whose pid it is given: the next service seals the layer itself.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

from snapfs.seals.sealing import seal

NICE = 10
_PR_SET_PDEATHSIG = 1


def main(layer: str, file: str, parent: str) -> None:
    end_with(int(parent))
    os.nice(NICE)
    print(seal(Path(layer), Path(file)).hex())


def end_with(parent: int) -> None:
    """Have the kernel end this process when the thread that started it does."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG)")
    if os.getppid() != parent:  # it was gone before
        sys.exit("the service has ended")


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"{error.filename or ''}: {error.strerror}")
