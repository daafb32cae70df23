"""The same image under containerd's overlayfs snapshotter and under snapfs: the same tree."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support import trees
from tests.support.containerd import Containerd
from tests.support.images import LONG_NAME
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    # The first test here makes the Debian tree.
    pytest.mark.timeout(1200),
]


@pytest.mark.parametrize("which", ["odd_image", "debian_image"])
def test_unpacked_tree_is_the_kernels_byte_for_byte(
    which: str,
    request: pytest.FixtureRequest,
    engine: Containerd,
    snapshotter: str,
    load: Callable[[Image, str], None],
    tmp_path: Path,
) -> None:
    image: Image = request.getfixturevalue(which)
    for name in ("overlayfs", snapshotter):
        load(image, name)
    with (
        engine.viewed(image.chain_id, tmp_path / "kernel", snapshotter="overlayfs") as kernel,
        engine.viewed(image.chain_id, tmp_path / "ours", snapshotter=snapshotter) as ours,
    ):
        expected, found = trees.describe(kernel), trees.describe(ours)
        assert trees.differences(expected, found) == []
    assert {f"odd/{LONG_NAME}", "odd/renewed/1", "odd/null", "odd/capable"} < set(found)
    assert not {"odd/two", "odd/renewed/0", "odd/replaced/0", "odd/emptied/0"} & set(found)


def test_unpacking_again_finds_every_layer_there(
    engine: Containerd,
    snapshotter: str,
    odd_image: Image,
    load: Callable[[Image, str], None],
    archives: Callable[[Image], Path],
) -> None:
    load(odd_image, snapshotter)
    before = engine.snapshots(snapshotter)
    engine.load(archives(odd_image), snapshotter=snapshotter)
    assert engine.snapshots(snapshotter) == before
