"""Files of an image whose attributes are changed first, and their data later, on a disk whose power
is cut: through a lane that copies no data for a change of attributes.

After a cut each file has the attributes of one moment since it was last synced, and data of one; so
it has for a tree that goes on, and in its layer once that is settled. What is committed stands for
itself.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path

from snapfs.model import Committed
from snapfs.overlay import Node, Tree, TreeSpec, settle_offline
from snapfs.overlay.filecalls import syncfs
from tests.crash import acts
from tests.support import lanes

METACOPY = "trusted.overlay.metacopy"
ATTRIBUTE = "user.note"
FILES = 40
DIRECTORIES = 4
SECTOR_BYTES = 512
PATCH = b"new " * 25


@dataclass(frozen=True)
class State:
    """A file at one moment."""

    data: bytes
    name: str
    uid: int = 0
    mode: int = 0o644
    note: bytes | None = None
    mtime_ns: int = 0
    """0 where nobody knows: it was written."""

    @property
    def attributes(self) -> tuple[int, int, bytes | None]:
        return self.uid, self.mode, self.note


@dataclass
class File:
    """All states of a file, and since when which of them is durable."""

    states: list[State]
    synced: list[tuple[int, int]] = field(default_factory=list)
    """A moment, and how many states were there."""

    @property
    def now(self) -> State:
        return self.states[-1]

    def becomes(self, **changes: object) -> None:
        self.states.append(replace(self.now, **changes))  # type: ignore[arg-type]

    def possible(self, moment: int) -> list[State]:
        """What the file may be after a cut."""
        first = max((count for at, count in self.synced if at <= moment), default=1)
        return self.states[first - 1 :]

    def check(self, found: State, moment: int) -> None:
        possible = self.possible(moment)
        attributes = [it.attributes for it in possible]
        assert found.attributes in attributes, f"{found.name}: {found.attributes} of {attributes}"
        assert any(found.data == it.data for it in possible), (
            f"{found.name}: {len(found.data)} bytes, {found.data.count(0)} zeros"
        )
        if len({it.data for it in possible}) == 1:
            times = [it.mtime_ns for it in possible]
            assert 0 in times or found.mtime_ns in times, f"{found.name}: {found.mtime_ns}"


class Acts:
    """What is done in one snapshot."""

    def __init__(self, tree: lanes.Tree, now: acts.Moment, chance: random.Random) -> None:
        self.tree = tree
        self._now = now
        self._chance = chance
        self.files = [
            File([_as_made(tree / f"d{number % DIRECTORIES}/f{number}", tree.path)])
            for number in range(FILES)
        ]
        self.began = now()
        self.committed: tuple[str, int] | None = None

    def do_something(self) -> None:
        file = self._chance.choice(self.files)
        kinds = (self.own, self.restrict, self.note, self.date, self.write, self.move, self.link)
        self._chance.choices(kinds, (5, 4, 4, 2, 2, 1, 1))[0](file)
        if self._chance.random() < 0.3:
            self.sync(file)

    def _path(self, file: File) -> Path:
        return self.tree / file.now.name

    def own(self, file: File) -> None:
        uid = self._chance.randint(1, 1000)
        os.chown(self._path(file), uid, uid)
        file.becomes(uid=uid)

    def restrict(self, file: File) -> None:
        mode = 0o600 | self._chance.randrange(0o100)
        self._path(file).chmod(mode)
        file.becomes(mode=mode)

    def note(self, file: File) -> None:
        value = self._chance.randbytes(self._chance.choice((3, 30, 300)))
        os.setxattr(self._path(file), ATTRIBUTE, value)
        file.becomes(note=value)

    def date(self, file: File) -> None:
        mtime_ns = self._chance.randint(1, 1 << 60)
        os.utime(self._path(file), ns=(mtime_ns, mtime_ns))
        file.becomes(mtime_ns=mtime_ns)

    def write(self, file: File) -> None:
        """In one sector, which reaches a disk or not."""
        at = self._chance.randrange(len(file.now.data) // SECTOR_BYTES) * SECTOR_BYTES
        with self._path(file).open("r+b", buffering=0) as opened:
            file.becomes(mtime_ns=0)
            os.pwrite(opened.fileno(), PATCH, at)
        data = file.now.data
        file.becomes(data=data[:at] + PATCH + data[at + len(PATCH) :])

    def move(self, file: File) -> None:
        name = f"d{self._chance.randrange(DIRECTORIES)}/m{next(_numbers)}"
        self._path(file).rename(self.tree / name)
        file.becomes(name=name)

    def link(self, file: File) -> None:
        os.link(self._path(file), self.tree / f"d0/l{next(_numbers)}")

    def sync(self, file: File) -> None:
        """A name is durable with its file, as far as the check looks: by all that it may have."""
        fd = os.open(self._path(file), os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)
        file.synced.append((self._now(), len(file.states)))

    def commit(self, name: str) -> None:
        self.tree.house.snapshots.commit(self.tree.key, name)
        for file in self.files:
            file.synced.append((self._now(), len(file.states)))
        self.committed = name, self._now()

    def check(self, root: Path, moment: int) -> None:
        """Look at what a cut left of the snapshot in its root."""
        with acts.opened(root) as opened:
            known = {it.name: it for it in opened.walk()}
            found = known.get(self.tree.key) or known[self.committed[0] if self.committed else ""]
            layer = root / "layers" / str(found.id)
            lowers = tuple(root / "layers" / str(it) / "fs" for it in found.parent_ids)
        if isinstance(found, Committed):
            assert _marked(layer / "fs") == []
        elif self.committed is not None:
            assert moment < self.committed[1], "a commit is lost"
        upper, work = layer / "fs", layer / "work"
        self._check_tree(TreeSpec(7, lowers, upper, work, metacopy=True, resumed=True), moment)
        settle_offline(upper, work, lowers)
        assert _marked(upper) == []
        self._check_tree(TreeSpec(7, (upper, *lowers)), moment)

    def _check_tree(self, spec: TreeSpec, moment: int) -> None:
        tree = Tree(spec)
        try:
            for file in self.files:
                names = {it.name for it in file.possible(moment)}
                there = [node for node in (_find(tree, it) for it in names) if node is not None]
                assert there, f"{names}: lost"
                for node in there:
                    file.check(_seen(tree, node), moment)
        finally:
            tree.close()


_numbers = itertools.count()


def _as_made(path: Path, top: Path) -> State:
    made = path.stat()
    name = str(path.relative_to(top))
    return State(path.read_bytes(), name, mode=made.st_mode & 0o7777, mtime_ns=made.st_mtime_ns)


def _find(tree: Tree, name: str) -> Node | None:
    node: Node = tree.root
    try:
        for part in name.split("/"):
            node = tree.lookup(node, part.encode())
    except FileNotFoundError:
        return None
    return node


def _seen(tree: Tree, node: Node) -> State:
    found = tree.getattr(node)
    with open(tree.open(node, os.O_RDONLY), "rb") as file:
        data = file.read()
    has_note = ATTRIBUTE.encode() in tree.listxattr(node)
    note = tree.getxattr(node, ATTRIBUTE.encode()) if has_note else None
    name = os.fsdecode(node.name)
    return State(data, name, found.uid, found.mode & 0o7777, note, found.mtime_ns)


def _marked(upper: Path) -> list[Path]:
    return [it for it in _files(upper) if METACOPY in os.listxattr(it, follow_symlinks=False)]


def _files(upper: Path) -> Iterator[Path]:
    for top, _, names in os.walk(upper):
        yield from (Path(top, it) for it in names)


def fill(chance: random.Random) -> Callable[[Path], None]:
    def do(layer: Path) -> None:
        for number in range(FILES):
            path = layer / f"d{number % DIRECTORIES}/f{number}"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(chance.randbytes(chance.choice((600, 3000, 40_000, 150_000))))

    return do


def work(place: Path, now: acts.Moment) -> Callable[[Path, int], None]:
    """Change files in three snapshots: one is committed at the end, one held in the middle."""
    chance = random.Random(1)
    with lanes.house(place.with_name("house"), root=place / "root", metacopy=True) as house:
        base = house.base_layers(fill(chance))
        trees = [house.on(base) for _ in range(3)]
        syncfs(place)
        doing = [Acts(it, now, chance) for it in trees]
        for number in range(360):
            chance.choice(doing).do_something()
            if number == 200:
                with house.snapshots.held(trees[1].key):
                    pass
        doing[2].commit("committed")

    def check(place: Path, moment: int) -> None:
        for it in doing:
            if moment >= it.began:
                it.check(place / "root", moment)

    return check
