"""What copies wait for on each file system, as the running kernel has it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.overlay import SetAttr, Tree, TreeSpec, ordering
from snapfs.overlay.ordering import Order, order_of
from tests.support.loops import mount_image
from tests.support.overlay.layers import make_layer

pytestmark = pytest.mark.root

MIB = 1 << 20
CASES = {
    "ext4": (("mkfs.ext4",), "rw", Order.WRITTEN),
    "ext4, data=writeback": (("mkfs.ext4",), "data=writeback", Order.WRITTEN),
    "ext4, data=journal": (("mkfs.ext4",), "data=journal", Order.WRITTEN),
    "ext4, no journal": (("mkfs.ext4", "-O", "^has_journal"), "rw", Order.SYNCED),
    "ext4, commits that do not wait": (
        ("mkfs.ext4",),
        "data=writeback,journal_async_commit",
        Order.SYNCED,
    ),
    "ext4, fast commits": (("mkfs.ext4", "-O", "fast_commit"), "rw", Order.SYNCED),
    "ext2": (("mkfs.ext2",), "rw", Order.SYNCED),
    "xfs": (("mkfs.xfs",), "rw", Order.WRITTEN),
    "xfs, no clones": (("mkfs.xfs", "-m", "reflink=0"), "rw", Order.WRITTEN),
    "btrfs": (("mkfs.btrfs",), "rw", Order.SYNCED),
}
"""How each is made and mounted, and what is to be found."""


@contextmanager
def made(base: Path, command: tuple[str, ...], options: str) -> Iterator[Path]:
    image, place = base / "image", base / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(320 * MIB)
    subprocess.run([*command, "-q", image], check=True, timeout=60)
    mount_image(image, place, options)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


@pytest.mark.parametrize("case", CASES)
def test_order_of_a_file_system(case: str, tmp_path: Path) -> None:
    command, options, order = CASES[case]
    with made(tmp_path, command, options) as place:
        assert order_of(place) is order


def test_an_external_journal_is_not_trusted(tmp_path: Path) -> None:
    """Its commit flushes the cache of its own disk, and not always that of the data's."""
    journal = tmp_path / "journal"
    with journal.open("wb") as file:
        file.truncate(16 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-b", "4096", "-O", "journal_dev", journal], check=True)
    attach = ["losetup", "--show", "-f", journal]
    device = subprocess.run(attach, check=True, capture_output=True, text=True).stdout.strip()
    try:
        command = ("mkfs.ext4", "-b", "4096", "-J", f"device={device}")
        with made(tmp_path, command, "rw") as place:
            assert order_of(place) is Order.SYNCED
    finally:
        subprocess.run(["losetup", "-d", device], check=True)


def test_tmpfs_keeps_nothing(tmp_path: Path) -> None:
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1M", "tmpfs", tmp_path], check=True)
    try:
        assert order_of(tmp_path) is Order.NOTHING
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_what_cannot_be_told_is_synced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with made(tmp_path, ("mkfs.ext4",), "rw") as place:
        for unknown in ("_JOURNALS", "_NODES", "_EXT4", "_DEVICES"):
            with monkeypatch.context() as patch:
                patch.setattr(ordering, unknown, tmp_path / "hidden")
                assert order_of(place) is Order.SYNCED
        assert order_of(place) is Order.WRITTEN


@pytest.mark.parametrize("case", ["ext4", "btrfs"])
def test_data_is_left_below_only_where_sizes_last(case: str, tmp_path: Path) -> None:
    command, options, _ = CASES[case]
    with made(tmp_path, command, options) as place:
        lower = make_layer(place / "lower", {"f": b"data"})
        (place / "upper").mkdir()
        (place / "work").mkdir()
        tree = Tree(TreeSpec(1, (lower,), place / "upper", place / "work", metacopy=True))
        try:
            tree.setattr(tree.lookup(tree.root, b"f"), SetAttr(mode=0o600))
        finally:
            tree.close()
        has_data = (place / "upper" / "f").read_bytes() == b"data"
        assert has_data == (case == "btrfs")


def test_nothing_is_waited_for_in_a_tree_that_is_volatile(tmp_path: Path) -> None:
    assert _order_of_tree(tmp_path, sync=True) is order_of(tmp_path)
    assert _order_of_tree(tmp_path, sync=False) is Order.NOTHING


def _order_of_tree(base: Path, *, sync: bool) -> Order:
    lower = make_layer(base / f"lower-{sync}", {"f": b""})
    for name in ("upper", "work"):
        os.makedirs(base / name, exist_ok=True)
    tree = Tree(TreeSpec(1, (lower,), base / "upper", base / "work", sync=sync))
    try:
        return tree.work.order
    finally:
        tree.close()


@pytest.mark.parametrize("case", [name for name in CASES if name != "ext2"])
def test_a_copy_of_many_parts_is_whole(case: str, tmp_path: Path) -> None:
    """Bigger than what is dirty at a time, with holes, and an end that is in no block's."""
    command, options, _ = CASES[case]
    with made(tmp_path, command, options) as place:
        lower = make_layer(place / "lower", {"f": b"first"})
        with (lower / "f").open("r+b") as file:
            for at in (1 * MIB, 30 * MIB):
                file.seek(at)
                file.write(os.urandom(19 * MIB + 11))
        for name in ("upper", "work"):
            (place / name).mkdir()
        tree = Tree(TreeSpec(1, (lower,), place / "upper", place / "work"))
        os.close(tree.open(tree.lookup(tree.root, b"f"), os.O_RDWR))
        tree.close()
        assert (place / "upper/f").read_bytes() == (lower / "f").read_bytes()
        assert (place / "upper/f").stat().st_blocks * 512 < 40 * MIB
