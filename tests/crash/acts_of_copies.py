"""Copy-ups on a disk that loses its power: what must be in each file, and what may be.

Each file of a lower layer is changed in its own way, and is known by all that it has been: what it
is from some moment on, and from when on that was synced. After a cut each sector is as in one of
the versions that it may have, which are the last synced one and all later ones.
"""

from __future__ import annotations

import mmap
import os
import random
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from snapfs.overlay import Node, SetAttr, Tree, TreeSpec, refill
from snapfs.overlay.filecalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from snapfs.overlay.unsynced import flush

SECTOR_BYTES = 512
SIZES = (1, 700, 4096, 5000, 70_000, 262_144)
PUNCH = FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE
OWNER = 12345

Moment = Callable[[], int]
Check = Callable[[Path, int], None]


@dataclass
class File:
    """A file of the lower layer, by all that it was."""

    name: str
    versions: list[tuple[int, bytes]]
    """What it is from a moment on, which is that before the change."""
    synced: list[tuple[int, int]] = field(default_factory=list)
    """From a moment on a version, by number, is durable."""
    names: list[str] = field(default_factory=list)
    """All that it has been called; under one of them at least it must be found."""

    @property
    def now(self) -> bytes:
        return self.versions[-1][1]

    def may_be(self, moment: int) -> list[bytes]:
        """Return the versions of which each part may be after a cut."""
        first = max((it for at, it in self.synced if at <= moment), default=0)
        return [data for at, data in self.versions[first:] if at <= moment]


class Copies:
    """Changes files of a tree, and knows what they were."""

    def __init__(self, place: Path, now: Moment, seed: int) -> None:
        self._place = place
        self._now = now
        self._chance = random.Random(seed)
        self.files: list[File] = []
        lower, upper, work = (place / it for it in ("lower", "upper", "work"))
        for directory in (lower, upper, work, lower / "d"):
            directory.mkdir()
        for kind in KINDS:
            for size in SIZES:
                name = f"d/{kind}{size}"
                data = self._chance.randbytes(size)
                (lower / name).write_bytes(data)
                self.files.append(File(name, [(0, data)], names=[name]))
        sparse = lower / "d" / "append-sparse"
        with sparse.open("wb") as file:
            file.seek(100_000)
            file.write(b"end")
        self.files.append(File("d/append-sparse", [(0, sparse.read_bytes())]))
        self.files[-1].names.append("d/append-sparse")
        os.sync()
        self.tree = opened(place)

    def run(self) -> None:
        """Change all files, in any order, each step by step."""
        todo = [KINDS[kind_of(it)](self, it) for it in self.files]
        while todo:
            steps = self._chance.choice(todo)
            if next(steps, None) is None:
                todo.remove(steps)
            match self._chance.randrange(25):
                case 0:
                    self._commit_journal()
                case 1:
                    self._drain()
                case 2:
                    self.tree.close()  # as a worker does that dies: its marks stay
                    self.tree = opened(self._place)
        self.tree.close()

    def _commit_journal(self) -> None:
        """Have the names of all copies made durable, and not their data."""
        fd = os.open(self._place / "other", os.O_WRONLY | os.O_CREAT)
        os.pwrite(fd, b"x", self._chance.randrange(100))
        os.fsync(fd)
        os.close(fd)

    def _drain(self) -> None:
        pending = self.tree.unsynced.pending(1000)
        for it, error in zip(pending, flush(pending), strict=True):
            assert error is None
            self.tree.unsynced.settled(it, error)

    # Steps

    def node(self, file: File) -> Node:
        parent: Node = self.tree.root
        for part in file.names[-1].split("/"):
            parent = self.tree.lookup(parent, part.encode())
        return parent

    def becomes(self, file: File, data: bytes) -> None:
        """Note what a file may be from now on."""
        file.versions.append((self._now(), data))

    def write(self, file: File, at: int, data: bytes) -> None:
        was = file.now.ljust(at, b"\0")
        self.becomes(file, was[:at] + data + was[at + len(data) :])
        fd = self.tree.open(self.node(file), os.O_RDWR)
        os.pwrite(fd, data, at)
        os.close(fd)

    def append(self, file: File) -> None:
        self.write(file, len(file.now), self._chance.randbytes(self._chance.choice((1, 50, 9000))))

    def overwrite(self, file: File) -> None:
        at = self._chance.randrange(max(1, len(file.now)))
        self.write(file, at, self._chance.randbytes(self._chance.choice((1, 600, 5000))))

    def sync(self, file: File) -> None:
        number = len(file.versions) - 1
        fd = self.tree.open(self.node(file), os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)
        file.synced.append((self._now(), number))

    def cut(self, file: File, size: int) -> None:
        self.becomes(file, file.now[:size].ljust(size, b"\0"))
        self.tree.setattr(self.node(file), SetAttr(size=size))

    def empty(self, file: File) -> None:
        self.becomes(file, b"")
        os.close(self.tree.open(self.node(file), os.O_WRONLY | os.O_TRUNC))

    def punch(self, file: File) -> None:
        size = len(file.now)
        at = self._chance.randrange(size)
        length = self._chance.randrange(1, size - at + 1)
        node = self.node(file)
        fd = self.tree.open(node, os.O_RDWR)
        self.becomes(file, file.now[:at] + bytes(length) + file.now[at + length :])
        self.tree.prepare_fallocate(node, PUNCH)
        fallocate(fd, PUNCH, at, length)
        os.close(fd)

    def map(self, file: File) -> None:
        """Write through a mapping, and sync that."""
        at = self._chance.randrange(len(file.now))
        fd = self.tree.open(self.node(file), os.O_RDWR)
        with mmap.mmap(fd, len(file.now)) as view:
            self.becomes(file, file.now[:at] + b"M" + file.now[at + 1 :])
            view[at] = ord("M")
            view.flush()
        file.synced.append((self._now(), len(file.versions) - 1))
        os.close(fd)

    def chown(self, file: File) -> None:
        self.tree.setattr(self.node(file), SetAttr(uid=OWNER))

    def rename(self, file: File) -> None:
        parent, name = self.tree.lookup(self.tree.root, b"d"), file.names[-1][2:].encode()
        file.names.append(f"d/moved-{file.names[0][2:]}")
        self.tree.rename(parent, name, parent, file.names[-1][2:].encode())

    def link(self, file: File) -> None:
        parent, node = self.tree.lookup(self.tree.root, b"d"), self.node(file)
        file.names.append(f"d/linked-{file.names[0][2:]}")
        self.tree.link(node, parent, file.names[-1][2:].encode())


def steps(*acts: Callable[[Copies, File], object]) -> Callable[[Copies, File], Iterator[bool]]:
    """Return what does one after the other, giving way in between."""

    def run(copies: Copies, file: File) -> Iterator[bool]:
        for act in acts:
            act(copies, file)
            yield True

    return run


def _shrink(copies: Copies, file: File) -> None:
    copies.cut(file, len(file.now) // 3)


def _grow(copies: Copies, file: File) -> None:
    copies.cut(file, len(file.now) + 10_000)


A = Copies
KINDS = {
    "append": steps(A.append, A.append),
    "overwrite": steps(A.overwrite, A.overwrite),
    "chown": steps(A.chown),
    "rename": steps(A.rename, A.append),
    "link": steps(A.link, A.append),
    "cut": steps(A.append, _shrink, A.sync, _grow, A.sync),
    "first-cut": steps(_shrink, _grow, A.append, A.sync),
    "empty": steps(A.overwrite, A.empty, A.sync, A.append, _grow, A.sync),
    "punch": steps(A.chown, A.punch, A.sync, A.punch, A.append),
    "sync": steps(A.overwrite, A.sync, A.append, A.append, A.sync, A.overwrite),
    "map": steps(A.chown, A.map, A.map),
}


def kind_of(file: File) -> str:
    return max((it for it in KINDS if file.name[2:].startswith(it)), key=len)


def opened(place: Path) -> Tree:
    spec = TreeSpec(1, (place / "lower",), place / "upper", place / "work", resumed=True)
    return Tree(spec)


def work(place: Path, now: Moment) -> Check:
    copies = Copies(place, now, 1)
    began = now()
    copies.run()
    return lambda place, moment: check(place, copies.files, moment) if moment > began else None


def check(place: Path, files: list[File], moment: int) -> None:
    """See that what a cut left, once it is refilled, is what each file may be."""
    assert refill(place / "upper", place / "work", (place / "lower",)) == []
    tree = opened(place)
    try:
        assert not len(tree.unsynced)
        below = tree.lookup(tree.root, b"d")
        there = {entry.name.decode() for entry in tree.readdir(below)}
        for file in files:
            names = [it for it in file.names if it[2:] in there]
            assert names, f"{file.name} is lost"
            for name in names:
                node = tree.lookup(below, name[2:].encode())
                _check_content(tree, node, file, moment)
    finally:
        tree.close()


def _check_content(tree: Tree, node: Node, file: File, moment: int) -> None:
    allowed = file.may_be(moment)
    fd = tree.open(node, os.O_RDONLY)
    try:
        data = os.pread(fd, 1 << 24, 0)
        assert stat.S_ISREG(os.fstat(fd).st_mode)
    finally:
        os.close(fd)
    sizes = [len(it) for it in allowed]
    assert min(sizes) <= len(data) <= max(sizes), f"{name_of(file)} has {len(data)}, not {sizes}"
    for at in range(0, len(data), SECTOR_BYTES):
        sector = data[at : at + SECTOR_BYTES]
        assert sector in {padded(it, at, len(sector)) for it in allowed}, (
            f"{name_of(file)} at {at}: {'zeros' if not any(sector) else 'other data'}, "
            f"of {len(data)}; allowed {sizes}"
        )


def padded(data: bytes, at: int, length: int) -> bytes:
    """Return a part of a version, with the zeros that are behind its end when another is longer."""
    return data[at : at + length].ljust(length, b"\0")


def name_of(file: File) -> str:
    return f"{file.name} ({file.names[-1]})"
