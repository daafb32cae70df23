"""Files that a desk hands out are counted as exactly as nodes, whoever counts them."""

from __future__ import annotations

import os
import random
import struct
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import entries
from snapfs.fuse._desk import Desk
from snapfs.fuse.attributes import View
from snapfs.fuse.trees import SingleForest
from snapfs.overlay import Dir, Inodes, Node, SetAttr, Tree, TreeSpec

pytestmark = [pytest.mark.root]

DIRECTORIES = ("a", "b")
FILES = 12
ENTRY_BYTES = 128
DIRENT = struct.Struct("<QQII")


class Kernel:
    """What the kernel would hold: how often it was given each number."""

    def __init__(self, base: Path) -> None:
        for layer in ("upper", "work", "lower", "lower2"):
            (base / layer).mkdir()
        for name in DIRECTORIES:
            (base / "lower" / name).mkdir()
            (base / "lower2" / name).mkdir()
            for number in range(FILES):
                layer = base / ("lower" if number % 2 else "lower2")
                (layer / name / f"file{number}").write_text(f"{name}{number}")
        os.link(base / "lower" / "a" / "file1", base / "lower" / "b" / "linked")
        self.inodes = Inodes()
        lowers = (base / "lower", base / "lower2")
        self.tree = Tree(
            TreeSpec(1, lowers, base / "upper", base / "work", single=True), self.inodes
        )
        self.forest = SingleForest(self.tree, self.inodes)
        self.desk = Desk(
            self.tree.handed, 1000.0, True, True, self._entry_of, self.tree.main_numbers
        )
        self.given: Counter[int] = Counter()
        self.places = {name: self.directory(name).ino for name in DIRECTORIES}

    def directory(self, name: str) -> Dir:
        node = self.tree.lookup(self.tree.root, name.encode())
        assert isinstance(node, Dir)
        self.remember(node)
        return node

    def remember(self, node: Node) -> None:
        self.forest.remember(node)
        self.given[node.ino] += 1

    def node(self, ino: int) -> Node:
        return self.forest.find(ino)[1]

    def _entry_of(self, parent: Dir, name: bytes) -> bytes | None:
        node = self.tree.find(parent, name)
        if node is None:
            return None
        self.forest.remember(node)
        return entries.entry(View(), self.tree.getattr(node), node.ino, lasting=True)

    def look_up(self, place: str, name: str) -> int:
        """As the LOOKUP handler does; 0 for an absent name."""
        parent = self.node(self.places[place])
        reply = None
        if self.tree.admit(parent):
            reply = self.desk.lookup(parent.ino, name.encode())
        if reply is None:
            node = self.tree.find(parent, name.encode())
            if node is None:
                return 0
            self.remember(node)
            return node.ino
        (ino,) = struct.unpack_from("<Q", reply)
        if ino:
            self.given[ino] += 1
        return int(ino)

    def list(self, place: str, size: int) -> list[str]:
        """Read a directory with attributes, where the desk can."""
        parent = self.node(self.places[place])
        if not self.tree.admit(parent):
            return [os.fsdecode(entry.name) for entry in self.tree.readdir(parent)]
        names, after = [], 0
        while page := self.desk.list(parent.ino, after, size, True, 0):
            at = 0
            while at < len(page):
                (ino,) = struct.unpack_from("<Q", page, at)
                _, after, length, _ = DIRENT.unpack_from(page, at + ENTRY_BYTES)
                start = at + ENTRY_BYTES + DIRENT.size
                if ino:
                    self.given[ino] += 1
                names.append(os.fsdecode(page[start : start + length]))
                at = start + (length + 7) // 8 * 8
        assert names[:2] == [".", ".."]
        return names[2:]

    def forget(self, ino: int, count: int) -> None:
        self.forest.forget(ino, count)
        self.given[ino] -= count

    def forget_all(self) -> None:
        for ino, count in list(self.given.items()):
            if count:
                self.forget(ino, count)

    def check(self) -> None:
        assert self.tree.lookups == sum(self.given.values()) + 1  # the root's own
        known = sum(1 for count in self.given.values() if count)
        assert self.forest.known_count == known + 1


@pytest.fixture
def kernel(tmp_path: Path) -> Iterator[Kernel]:
    made = Kernel(tmp_path)
    yield made
    made.tree.close()


@pytest.mark.parametrize("seed", range(25))
def test_counts_are_exact_whoever_counts(kernel: Kernel, seed: int) -> None:
    choose = random.Random(seed)
    names = {place: {f"file{n}" for n in range(FILES)} for place in DIRECTORIES}
    names["b"].add("linked")
    for _ in range(150):
        place = choose.choice(DIRECTORIES)
        name = choose.choice([*sorted(names[place]), "absent"])
        held = [ino for ino, count in kernel.given.items() if count]
        files = [ino for ino in held if ino not in kernel.places.values()]
        match choose.randrange(9):
            case 0 | 1:
                assert bool(kernel.look_up(place, name)) == (name in names[place])
            case 2:
                assert set(kernel.list(place, choose.choice([400, 1000, 65536]))) == names[place]
            case 3 if files:
                kernel.node(choose.choice(files))
            case 4 | 5 if files:
                ino = choose.choice(files)
                kernel.forget(ino, choose.randint(1, kernel.given[ino]))
            case 6 if files and choose.random() < 0.2:
                kernel.tree.setattr(kernel.node(choose.choice(files)), SetAttr(mode=0o600))
            case 7 if name != "absent" and choose.random() < 0.2:
                kernel.tree.unlink(kernel.node(kernel.places[place]), name.encode())
                names[place].remove(name)
            case 8 if name != "absent" and choose.random() < 0.2:
                to = choose.choice(DIRECTORIES)
                parents = [kernel.node(kernel.places[it]) for it in (place, to)]
                kernel.tree.rename(parents[0], name.encode(), parents[1], b"moved")
                names[place].discard(name)
                names[to].add("moved")
            case _:
                pass
        kernel.check()
    kernel.forget_all()
    kernel.check()
    assert not kernel.tree.handed.rooms
    assert len(kernel.tree.handed) == 0


def test_file_is_the_same_with_and_without_a_node(kernel: Kernel) -> None:
    ino = kernel.look_up("a", "file3")
    assert len(kernel.tree.handed) == 1
    node = kernel.node(ino)
    assert len(kernel.tree.handed) == 0
    assert (node.ino, node.name, node.nlookup) == (ino, b"file3", 1)
    kernel.look_up("a", "file3")
    assert node.nlookup == 2
    assert kernel.tree.getattr(node).size == 2


def test_directory_that_changes_hands_out_no_more(kernel: Kernel) -> None:
    ino = kernel.look_up("a", "file3")
    parent = kernel.node(kernel.places["a"])
    kernel.tree.mkdir(parent, b"new", 0o755, uid=0, gid=0, umask=0)
    assert not kernel.tree.admit(parent)
    assert kernel.desk.lookup(parent.ino, b"file3") is None
    assert kernel.node(ino).name == b"file3"


def test_names_that_are_absent_are_answered_by_the_desk(kernel: Kernel) -> None:
    parent = kernel.node(kernel.places["a"])
    assert kernel.tree.admit(parent)
    reply = kernel.desk.lookup(parent.ino, b"absent")
    assert reply is not None
    assert struct.unpack_from("<Q", reply) == (0,)
    numbers = kernel.tree.main_numbers
    strict = Desk(kernel.tree.handed, 0.0, False, True, kernel._entry_of, numbers)
    with pytest.raises(FileNotFoundError):
        strict.lookup(parent.ino, b"absent")


def test_page_too_small_for_a_name_is_refused(kernel: Kernel) -> None:
    parent = kernel.node(kernel.places["a"])
    assert kernel.tree.admit(parent)
    with pytest.raises(OSError, match="Invalid argument"):
        kernel.desk.list(parent.ino, 2, 100, True, 0)
