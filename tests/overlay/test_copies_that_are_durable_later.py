"""Copies that are seen before they are durable: their marks, and what a power cut left of them."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.overlay import Node, SetAttr, Tree, TreeSpec, refill, unsynced, xattrs
from snapfs.overlay.filecalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from tests.support.loops import mount_image
from tests.support.overlay.kernel import image_fs, tmpfs, unmount

pytestmark = pytest.mark.root

BLOCK = 4096
DATA = os.urandom(5 * BLOCK + 100)
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE


class Place:
    """A lower layer with a file, and room for a tree."""

    def __init__(self, base: Path) -> None:
        self.lower, self.upper, self.work = (base / it for it in ("lower", "upper", "work"))
        for path in (self.lower, self.upper, self.work):
            path.mkdir()
        self.of_lower = self.lower / "file"
        self.of_lower.write_bytes(DATA)
        self.copy = self.upper / "file"

    def open(self, *, sync: bool = True) -> Tree:
        return Tree(TreeSpec(1, (self.lower,), self.upper, self.work, sync=sync, resumed=True))

    @property
    def marks(self) -> list[str]:
        return [it for it in os.listdir(self.work / "snapfs") if it.startswith("tn")]

    def refill(self) -> list[str]:
        return [it.why for it in refill(self.upper, self.work, (self.lower,))]

    def lose(self, at: int = 0, length: int = 2 * BLOCK) -> None:
        """Take away what did not reach the disk, as a power cut does; the copy has no user."""
        with self.copy.open("r+b") as file:
            fallocate(file.fileno(), PUNCH, at, length)


@pytest.fixture(scope="module")
def disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    with image_fs(tmp_path_factory.mktemp("ext4"), "ext4", 64 << 20) as made:
        yield made


@pytest.fixture
def place(disk: Path, request: pytest.FixtureRequest) -> Place:
    base = disk / request.node.name.replace("/", "-")[:100]
    base.mkdir()
    return Place(base)


@pytest.fixture
def tree(place: Place) -> Iterator[Tree]:
    made = place.open()
    yield made
    made.close()


def node_of(tree: Tree) -> Node:
    return tree.lookup(tree.root, b"file")


def copy_up(tree: Tree) -> Node:
    node = node_of(tree)
    tree.setattr(node, SetAttr(uid=1))
    return node


def test_a_copy_has_a_mark_until_it_is_durable(place: Place, tree: Tree) -> None:
    copy_up(tree)
    low = place.of_lower.stat().st_ino
    assert sorted(place.marks) == ["tn", f"tn{low:x}.{len(DATA):x}"]
    tree.make_copies_durable()
    assert os.listdir(place.work / "snapfs") == []
    assert place.copy.read_bytes() == DATA


@pytest.mark.parametrize("act", ["cut", "empty", "punch"])
def test_what_takes_data_away_syncs_the_copy_before(place: Place, tree: Tree, act: str) -> None:
    node = copy_up(tree)
    match act:
        case "cut":
            tree.setattr(node, SetAttr(size=BLOCK))
        case "empty":
            os.close(tree.open(node, os.O_WRONLY | os.O_TRUNC))
        case "punch":
            tree.prepare_fallocate(node, PUNCH)
            place.lose()
    assert place.marks == []
    there = place.copy.read_bytes()
    tree.close()
    assert place.refill() == []
    assert place.copy.read_bytes() == there


def test_what_takes_no_data_away_leaves_the_mark(place: Place, tree: Tree) -> None:
    node = copy_up(tree)
    tree.setattr(node, SetAttr(size=len(DATA) + 5000))
    tree.prepare_fallocate(node, FALLOC_FL_KEEP_SIZE)
    assert len(place.marks) == 2


def test_a_copy_without_data_has_no_mark(place: Place, tree: Tree) -> None:
    os.close(tree.open(node_of(tree), os.O_WRONLY | os.O_TRUNC))
    assert place.marks == []


def test_volatile_trees_have_no_marks(place: Place) -> None:
    tree = place.open(sync=False)
    copy_up(tree)
    tree.close()
    assert place.marks == []


TUNED = {
    "no journal": (["-O", "^has_journal"], "at once"),
    "writeback": (["-o", "journal_data_writeback"], "at once"),
    "journal": (["-o", "journal_data"], "later"),
}


@pytest.mark.parametrize("name", TUNED)
def test_ext4_that_may_have_other_data_after_a_power_cut_has_no_marks(
    tmp_path: Path, name: str
) -> None:
    options, way = TUNED[name]
    with image_fs(tmp_path, "ext4", 64 << 20) as disk:
        unmount(disk)
        image = tmp_path / "ext4.image"
        subprocess.run(["tune2fs", *options, image], check=True, capture_output=True)
        mount_image(image, disk)
        assert unsynced.way_of(disk.stat().st_dev) == way


@pytest.mark.parametrize("kind", ["xfs", "btrfs", "tmpfs"])
def test_other_file_systems_have_no_marks(tmp_path: Path, kind: str) -> None:
    made = tmpfs(tmp_path / "t") if kind == "tmpfs" else image_fs(tmp_path, kind)
    with made as disk:
        place = Place(disk)
        tree = place.open()
        copy_up(tree)
        tree.close()
        assert place.marks == []
        assert place.copy.read_bytes() == DATA


def test_a_removed_copy_leaves_no_mark(place: Place, tree: Tree) -> None:
    copy_up(tree)
    tree.unlink(tree.root, b"file")
    tree.make_copies_durable()
    tree.close()
    assert place.refill() == []
    assert place.marks == []


def test_a_copy_that_moves_on_keeps_its_mark_until_it_is_synced(place: Place, tree: Tree) -> None:
    copy_up(tree)
    tree.rename(tree.root, b"file", tree.root, b"moved")
    (place.upper / "file2").write_bytes(b"")
    tree.make_copies_durable()
    assert place.marks == []


def test_the_next_opening_knows_the_marks_of_the_one_before(place: Place, tree: Tree) -> None:
    copy_up(tree)
    tree.close()
    again = place.open()
    assert len(place.marks) == 2
    again.setattr(node_of(again), SetAttr(size=10))
    assert place.marks == []
    again.close()


def test_what_the_disk_lacks_is_put_in_and_nothing_else_changes(place: Place, tree: Tree) -> None:
    node = copy_up(tree)
    fd = tree.open(node, os.O_RDWR)
    os.pwrite(fd, b"new", 3 * BLOCK)
    os.close(fd)
    tree.setattr(node, SetAttr(mode=0o4755))
    tree.setxattr(node, b"security.capability", CAPABILITY)
    tree.setattr(node, SetAttr(mtime_ns=12345, atime_ns=6789))
    tree.close()
    place.lose()
    os.utime(place.copy, ns=(6789, 12345))
    os.setxattr(place.copy, "security.capability", CAPABILITY)
    place.copy.chmod(0o4755)
    assert place.refill() == []
    assert place.marks == []
    real = place.copy.stat()
    assert place.copy.read_bytes() == DATA[: 3 * BLOCK] + b"new" + DATA[3 * BLOCK + 3 :]
    assert (stat.S_IMODE(real.st_mode), real.st_mtime_ns) == (0o4755, 12345)
    assert os.getxattr(place.copy, "security.capability") == CAPABILITY


CAPABILITY = bytes.fromhex("0100000202000000000000000000000000000000")


def test_a_tree_that_is_in_use_is_left_alone(place: Place, tree: Tree) -> None:
    copy_up(tree)
    place.lose()
    assert place.refill() == []
    assert not any(place.copy.read_bytes()[: 2 * BLOCK])
    tree.close()
    assert place.refill() == []
    assert place.copy.read_bytes() == DATA


def test_a_copy_whose_lower_file_is_gone_is_named_and_stays_marked(
    place: Place, tree: Tree
) -> None:
    copy_up(tree)
    tree.close()
    place.lose()
    place.of_lower.unlink()
    assert place.refill() == ["its lower file is not there"]
    assert len(place.marks) == 2


def test_a_copy_of_a_hard_link_is_made_whole_under_all_its_names(place: Place) -> None:
    os.link(place.of_lower, place.lower / "other")
    tree = place.open()
    copy_up(tree)
    tree.close()
    place.lose()
    assert place.refill() == []
    tree = place.open()
    for name in (b"file", b"other"):
        fd = tree.open(tree.lookup(tree.root, name), os.O_RDONLY)
        assert os.pread(fd, len(DATA), 0) == DATA
        os.close(fd)
    tree.close()


def test_what_was_read_of_a_hole_since_does_not_hide_it(
    place: Place, tree: Tree, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Unwritten extents whose zeros are in the page cache look like data."""
    copy_up(tree)
    tree.close()
    place.lose()
    with place.copy.open("r+b") as file:
        fallocate(file.fileno(), FALLOC_FL_KEEP_SIZE, 0, 2 * BLOCK)
        os.fsync(file.fileno())
    place.copy.read_bytes()
    (tmp_path / "boot_id").write_bytes(b"another")
    monkeypatch.setattr(unsynced, "BOOT", tmp_path / "boot_id")
    assert place.refill() == []
    assert place.copy.read_bytes() == DATA


Block = st.sampled_from(["lower", "hole", "new"])
"""What of a copy is on the disk: what was copied, nothing, or what a program wrote since."""


@given(
    blocks=st.lists(Block, min_size=1, max_size=6),
    sparse=st.sets(st.integers(0, 5)),
    tail=st.integers(1, BLOCK),
    ends_early=st.integers(0, 3 * BLOCK),
    longer=st.integers(0, 2 * BLOCK),
)
@settings(max_examples=150, deadline=None)
def test_each_block_is_what_a_program_wrote_or_what_the_lower_file_has(
    disk: Path,
    blocks: list[str],
    sparse: set[int],
    tail: int,
    ends_early: int,
    longer: int,
) -> None:
    base = disk / f"case{len(os.listdir(disk))}-{os.urandom(4).hex()}"
    base.mkdir()
    place = Place(base)
    size = (len(blocks) - 1) * BLOCK + tail
    with place.of_lower.open("wb") as file:
        for number in range(len(blocks)):
            if number not in sparse:
                file.seek(number * BLOCK)
                file.write(os.urandom(min(BLOCK, size - number * BLOCK)))
        file.truncate(size)
    lower = place.of_lower.read_bytes()
    low = place.of_lower.stat().st_ino
    expected = bytearray(lower + bytes(longer))
    with place.copy.open("wb") as file:
        file.truncate(size + longer)
        for number, block in enumerate(blocks):
            here = slice(number * BLOCK, min(size, (number + 1) * BLOCK))
            if block == "new":
                expected[here] = b"N" * (here.stop - here.start)
            if block != "hole":
                file.seek(here.start)
                file.write(expected[here])
        if not longer and ends_early < size:
            file.truncate(size - ends_early)
            expected[size - ends_early :] = lower[size - ends_early :]
    os.setxattr(place.copy, xattrs.INO, b"%d" % low)
    os.setxattr(place.upper, xattrs.IMPURE, b"y")
    own = place.work / "snapfs"
    own.mkdir()
    (own / "tn").touch()
    os.link(own / "tn", own / os.fsdecode(unsynced.name_of(low, size)))
    for _ in range(2):
        assert place.refill() == []
        assert place.copy.read_bytes() == expected
        assert place.marks == []


def test_marks_are_gone_for_a_release_that_knows_none() -> None:
    """It removes what begins as half-made files do, as Work.clean did from the beginning."""
    assert unsynced.name_of(1, 2).startswith(b"t")


def test_an_error_of_the_sync_keeps_the_mark(
    place: Place, tree: Tree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(fd: int) -> None:
        raise OSError(errno.EIO, "no disk")

    copy_up(tree)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", fail)
        tree.make_copies_durable()
        with pytest.raises(OSError, match="no disk"):
            tree.setattr(node_of(tree), SetAttr(size=1))
    assert len(place.marks) == 2
    assert place.copy.stat().st_size == len(DATA)
