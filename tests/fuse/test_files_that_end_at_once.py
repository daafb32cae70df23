"""A file ends with its only name when the references that the kernel took back were all of them."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest

from snapfs.fuse.backing import BackingIds, Entry, Kind
from snapfs.fuse.channel import INCARNATION
from snapfs.fuse.trees import SingleForest
from snapfs.overlay import Inodes, Node, Places, SetAttr, Tree, TreeSpec
from snapfs.overlay.copyup import stash_name
from snapfs.overlay.layer import stat_or_none
from snapfs.overlay.usage import Before

pytestmark = [pytest.mark.root]

NAME = b"file"


class OpenBelow:
    """As if the kernel read each lower file."""

    def get(self, nodeid: int) -> Entry | None:
        if nodeid & INCARNATION:
            return None
        return Entry(
            nodeid, Kind.LOWER, backing_id=1, device=0, ino=0, opens=1, writers=0, inherited=False
        )

    def forgotten(self, nodeid: int) -> None: ...


class Place:
    """A tree with one lower file, copied up, whose references are given out and taken back."""

    def __init__(self, base: Path, places: Places | None = None) -> None:
        for layer in ("upper", "work", "lower"):
            (base / layer).mkdir()
        (base / "lower" / "file").write_text("content")
        self.inodes = Inodes(places)
        self.tree = Tree(
            TreeSpec(1, (base / "lower",), base / "upper", base / "work", single=True), self.inodes
        )
        self.forest = SingleForest(self.tree, self.inodes)

    def copy(self) -> Node:
        node = self.tree.lookup(self.tree.root, NAME)
        self.tree.setattr(node, SetAttr(mode=0o600))
        return node

    def end(self, node: Node, count: int) -> bool:
        """Remove the file as the library does, and have so many references taken back since."""
        work, kept = self.tree.work.layer.fd, stash_name(node)
        upper = self.tree.upper_layer.fd
        found = os.stat(NAME, dir_fd=upper)
        os.rename(NAME, kept, src_dir_fd=upper, dst_dir_fd=work)
        before = Before(found.st_ino, found.st_blocks, found.st_nlink)
        ended = self.forest.end(self.tree.root, NAME, node, before, count)
        assert (stat_or_none(work, kept) is None) is ended
        return ended


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place(tmp_path)
    yield made
    made.forest.close()


def test_file_ends_with_all_its_references(place: Place) -> None:
    node = place.copy()
    for _ in range(2):
        place.forest.remember(node)
    assert place.end(node, 2)
    assert not place.forest.is_known(node.ino)


@pytest.mark.parametrize("count", [1, 3])
def test_file_of_which_the_kernel_has_other_references_is_kept(place: Place, count: int) -> None:
    node = place.copy()
    for _ in range(2):
        place.forest.remember(node)
    assert not place.end(node, count)
    assert place.forest.is_known(node.ino)


def test_file_with_two_numbers_is_kept(place: Place) -> None:
    place.forest.backing = cast(BackingIds, OpenBelow())
    node = place.copy()
    assert place.forest.nodeid(node) == node.ino | INCARNATION
    place.forest.remember(node)
    assert not place.end(node, 1)
    assert place.forest.is_known(node.ino)


@pytest.mark.parametrize("is_inherited", [False, True])
def test_file_is_kept_where_an_earlier_worker_gave_references_out(
    tmp_path: Path, is_inherited: bool
) -> None:
    fd = os.memfd_create("places", os.MFD_CLOEXEC)
    Places(fd).note(1, 2)
    place = Place(tmp_path, Places(fd))
    node = place.copy()
    place.forest.remember(node)
    if is_inherited:
        place.inodes.places = Places(fd)
    assert place.end(node, 1) is not is_inherited
    assert place.forest.is_known(node.ino) is is_inherited
    place.forest.close()
    os.close(fd)
