"""Seals one layer in a process of its own: LAYER FILE; prints the digest in hexadecimal.

The service has it done so, since hashing beside its threads would keep them from answering.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from snapfs.seals.sealing import seal

NICE = 10


def main(layer: str, file: str) -> None:
    os.nice(NICE)
    print(seal(Path(layer), Path(file)).hex())


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except OSError as error:
        sys.exit(f"{error.filename or ''}: {error.strerror}")
