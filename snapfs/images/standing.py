"""The layer of an active snapshot as it stood at one moment.

Writers wait while the layer is listed, and while what was written in the last moments is copied;
all else was copied ahead. Copies are below `packing` in the root, and none outlives its use but by
a kill of the service; the next start clears those.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.model import FailedPrecondition
from snapfs.overlay import LayerCopy
from snapfs.snapshots import Snapshotter

PLACE = "packing"

Layers = tuple[Path, tuple[Path, ...]]
"""A layer's directory, and those of the layers below it, the nearest first."""


@contextmanager
def standing(snapshotter: Snapshotter, key: str) -> Iterator[Layers]:
    """Give a copy of an active snapshot's layer, and the layers below, for the block.

    Raises NotFound, OSError, and FailedPrecondition for a snapshot that is not active and while
    files of it are open that the kernel writes by itself.
    """
    place = snapshotter.root / PLACE
    place.mkdir(mode=0o700, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=place) as directory:
        target, spare = Path(directory, "copy"), Path(directory, "ahead")
        target.mkdir()
        spare.mkdir()
        with snapshotter.held(key):
            pass  # what is refused is so before anything is copied
        upper, *below = snapshotter.all_layers(key)
        copying = LayerCopy(upper, below, target, spare, None)
        try:
            copying.warm()
            with snapshotter.held(key) as (held, lowers):
                if held != upper:
                    raise FailedPrecondition(f"snapshot {key!r} is another one by now; try again")
                copying.make()
        finally:
            copying.clear()
        yield target, lowers


def clear_copies(snapshotter: Snapshotter) -> None:
    """Remove what an earlier process was packing; for a start."""
    shutil.rmtree(snapshotter.root / PLACE, ignore_errors=True)
