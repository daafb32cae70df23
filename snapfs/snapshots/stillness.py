"""Which snapshots can be frozen while their files are open for writing: a label says so. Pure."""

from __future__ import annotations

from snapfs.model import Labels

STILL_LABEL = "containerd.io/snapshot/snapfs.holds-still"
"""On an active snapshot that is to be copied while it is used: no file of it is written past its
worker, so that it can be frozen whatever is open. Takes effect when the tree is opened."""


def holds_still(labels: Labels) -> bool:
    """Say whether a snapshot's labels ask that it can be frozen at any time."""
    return STILL_LABEL in labels
