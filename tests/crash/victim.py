"""Does one operation on a root and is killed at the gap named: ROOT OPERATION GAP.

A gap is a step of the lifecycle, or `half-made` (a layer directory is made in part) or
`half-erased` (it is deleted in part).
"""

import os
import signal
import sys
from pathlib import Path

from snapfs.overlay import LayerCopy
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.snapshots.layers import LayerDirectories


def die(*_arguments: object, **_named: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def main(root: str, operation: str, gap: str) -> None:
    reached = {"steps": False}

    def step(name: str) -> None:
        if name == gap and reached["steps"]:
            die()

    if gap == "half-made":
        LayerDirectories._inherit = die
    with Snapshotter(Path(root), trees=NoTrees(), copier=LayerCopy, steps=step) as snapshotter:
        reached["steps"] = True
        if gap == "half-erased":
            os.rmdir = die
        match operation:
            case "create":
                snapshotter.prepare("new", "base")
            case "view":
                snapshotter.view("new", "base")
            case "refused":
                snapshotter.prepare("active", "base")
            case "commit":
                snapshotter.commit("active", "done", {"k": "v"})
            case "remove":
                snapshotter.remove("active")
            case "copy":
                snapshotter.copies.commit_copy("active", "copy", None, lambda _tx, _made: None)
        snapshotter.cleanup()


main(*sys.argv[1:])
