"""After containers and images are deleted: no metadata, no directories, no mounts."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import pytest

from tests.support.daemon import RunningDaemon, eventually, mounts_below
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]


def test_deleting_everything_leaves_nothing(
    plant: Any, snapshotter: str, odd_image: Image, load: Callable[[Image, str], None]
) -> None:
    engine, daemon = plant.engine, plant.daemons[snapshotter]
    load(odd_image, snapshotter)
    for number in range(3):
        engine.run_detached(
            odd_image.name, f"left-{number}", "sleep", "600", snapshotter=snapshotter
        )
    assert sum(it["kind"] == "active" for it in daemon.json("snapshot", "list")) >= 3
    engine.remove_everything()
    assert engine.snapshots(snapshotter) == {}
    eventually(lambda: _is_empty(daemon), timeout_s=60, what="the removal of all layers")
    assert daemon.json("snapshot", "list") == []
    assert daemon.json("fsck") == []
    assert daemon.mounts_beside_lanes() == []
    assert mounts_below(engine.base) == []


def _is_empty(daemon: RunningDaemon) -> bool:
    return os.listdir(daemon.root / "layers") == []
