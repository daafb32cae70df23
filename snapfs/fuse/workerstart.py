"""The program `python -m snapfs.fuse.workerstart`: loads worker.py quickly and runs it."""

from __future__ import annotations

import sys

from snapfs.loading import quickly

if __name__ == "__main__":
    with quickly():
        from snapfs.fuse import worker
    sys.exit(worker.main())
