"""Files of a lower layer copied up and changed, on a disk whose power is cut.

Whoever looks at the upper layer after a cut finds of each lower file nothing, which is then as it
was, or a copy with all of its data; and the copy with all changes, once these were synced.
"""

from __future__ import annotations

import contextlib
import os
import random
import stat
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

from snapfs.fuse.modes import Mode
from snapfs.overlay import Node, SetAttr, Tree, TreeSpec
from snapfs.overlay.filecalls import syncfs
from tests.crash.cutting import Check, Moment
from tests.support import lanes

METACOPY = "trusted.overlay.metacopy"
SMALL, MIDDLE, LARGE, HUGE = 8 << 10, 128 << 10, 1 << 20, 20 << 20
DIRECTORIES = 6
PATCH_BYTES = 3000
TIMEOUT_S = 120


@dataclass
class Lower:
    """A file of the lower layer, and what was done to it."""

    path: str
    content: bytes
    names: list[str] = field(default_factory=list)
    """Where its copy may be."""
    appended: bytes = b""
    patch: tuple[int, bytes] = (0, b"")
    """Where the copy was written to, and what."""
    promised: int | None = None
    """When all that was done was durable."""

    @property
    def changed(self) -> bytes:
        """The content after all changes."""
        at, new = self.patch
        return self.content[:at] + new + self.content[at + len(new) :] + self.appended

    def check(self, upper: Path, moment: int) -> None:
        """Look at the upper layer of a disk that was cut at a moment."""
        is_promised = self.promised is not None and self.promised <= moment
        found = [upper / name for name in self.names if _is_file(upper / name)]
        assert found or not is_promised, f"{self.names}: lost what was synced"
        for path in found:
            data = path.read_bytes()
            if METACOPY in os.listxattr(path):
                assert not is_promised, f"{path}: lost what was synced"
                assert len(data) == len(self.content), f"{path}: not of its size"
            elif is_promised:
                assert data == self.changed, f"{path}: {_difference(data, self.changed)}"
            else:
                self._check_whole(path, data)

    def _check_whole(self, path: Path, data: bytes) -> None:
        """Each byte is as below, or as it was changed; those that were appended may be missing."""
        size, (at, new) = len(self.content), self.patch
        end = at + len(new)
        assert size <= len(data) <= size + len(self.appended), f"{path}: {len(data)} of {size}"
        for start, stop in ((0, at), (end, size)):
            here, below = data[start:stop], self.content[start:stop]
            assert here == below, f"{path}: {_difference(here, below)} from {start}"
        assert _is_either(data[at:end], self.content[at:end], new), f"{path}: at the changed place"
        tail = data[size:]
        assert _is_either(tail, bytes(len(tail)), self.appended), f"{path}: behind its end"


def _is_file(path: Path) -> bool:
    try:
        return stat.S_ISREG(path.lstat().st_mode)
    except FileNotFoundError:
        return False


def _is_either(found: bytes, one: bytes, other: bytes) -> bool:
    if found == one or found == other[: len(found)]:
        return True
    return all(it in pair for it, pair in zip(found, zip(one, other, strict=False), strict=False))


def _difference(found: bytes, wanted: bytes) -> str:
    wrong = [at for at, (a, b) in enumerate(zip(found, wanted, strict=False)) if a != b]
    zeros = sum(not found[at] for at in wrong)
    return f"{len(found)} bytes of {len(wanted)}, {len(wrong)} differ ({zeros} zeros) {wrong[:1]}"


class Way(Protocol):
    """By which files are changed."""

    upper: Path

    def open(self, path: str, flags: int) -> int: ...
    def chown(self, path: str) -> None: ...
    def rename(self, path: str, new: str) -> None: ...
    def link(self, path: str, new: str) -> None: ...
    def fdatasync(self, path: str, fd: int) -> None: ...
    def copy_together(self, paths: Sequence[str], threads: ThreadPoolExecutor) -> None:
        """Copy some up at once."""


class OnMount:
    """As programs do it."""

    def __init__(self, merged: Path, upper: Path) -> None:
        self._merged = merged
        self.upper = upper

    def open(self, path: str, flags: int) -> int:
        return os.open(self._merged / path, flags)

    def chown(self, path: str) -> None:
        os.chown(self._merged / path, 1, -1)

    def rename(self, path: str, new: str) -> None:
        (self._merged / path).rename(self._merged / new)

    def link(self, path: str, new: str) -> None:
        os.link(self._merged / path, self._merged / new)

    def fdatasync(self, path: str, fd: int) -> None:
        os.fdatasync(fd)

    def copy_together(self, paths: Sequence[str], threads: ThreadPoolExecutor) -> None:
        for running in [threads.submit(self.open, it, os.O_WRONLY) for it in paths]:
            os.close(running.result(TIMEOUT_S))


class OnTree:
    """As a worker does it; all but the copying in one thread."""

    def __init__(self, place: Path, *, sync: bool, metacopy: bool, heeds: bool = True) -> None:
        """`heeds`: a sync of data is what the tree says."""
        self.upper = place / "upper"
        for name in ("upper", "work"):
            (place / name).mkdir()
        syncfs(place)
        lowers = (place / "lower",)
        spec = TreeSpec(1, lowers, self.upper, place / "work", sync=sync, metacopy=metacopy)
        self.tree = Tree(spec)
        self._heeds = heeds

    def node(self, path: str) -> Node:
        node: Node = self.tree.root
        for name in path.split("/"):
            node = self.tree.lookup(node, name.encode())
            self.tree.inodes.remember(node)
        return node

    def open(self, path: str, flags: int) -> int:
        return self.tree.open(self.node(path), flags)

    def chown(self, path: str) -> None:
        self.tree.setattr(self.node(path), SetAttr(uid=1))

    def rename(self, path: str, new: str) -> None:
        (where, name), (to, other) = os.path.split(path), os.path.split(new)
        self.tree.rename(self.node(where), name.encode(), self.node(to), other.encode())

    def link(self, path: str, new: str) -> None:
        where, name = os.path.split(new)
        self.tree.link(self.node(path), self.node(where), name.encode())

    def fdatasync(self, path: str, fd: int) -> None:
        owes = self._heeds and self.node(path).owes_name
        (os.fsync if owes else os.fdatasync)(fd)

    def copy_together(self, paths: Sequence[str], threads: ThreadPoolExecutor) -> None:
        jobs = [self.tree.start_copy_up(self.node(it)) for it in paths]
        for job, running in [(it, threads.submit(it.run)) for it in jobs]:
            running.result(TIMEOUT_S)
            self.tree.finish_copy_up(job)

    def copy_late(self, path: str, commit: Callable[[], object]) -> None:
        """Copy one up with a commit between the copy and its name."""
        job = self.tree.start_copy_up(self.node(path))
        job.run()
        commit()
        self.tree.finish_copy_up(job)


class Acts:
    """Changes files, each in one way."""

    def __init__(self, way: Way, now: Moment, seed: str) -> None:
        self._way = way
        self._now = now
        self._chance = random.Random(seed)

    def do(self, files: Sequence[Lower]) -> None:
        acts = (self.append, self.append, self.overwrite, self.chown, self.move, self.link)
        left = list(files)
        with ThreadPoolExecutor(3) as threads:
            while left:
                if self._chance.random() < 0.1:
                    self._together(threads, [left.pop() for _ in range(min(3, len(left)))])
                else:
                    self._chance.choice(acts)(left.pop())

    def _together(self, threads: ThreadPoolExecutor, files: Sequence[Lower]) -> None:
        self._way.copy_together([it.path for it in files], threads)
        for file in files:
            self.append(file)

    def append(self, file: Lower) -> None:
        file.names.append(file.path)
        file.appended = self._chance.randbytes(self._chance.choice((1, 100, 5000)))
        with self._open(file) as fd:
            os.pwrite(fd, file.appended, len(file.content))
            self._sync(file, fd)

    def overwrite(self, file: Lower, *, late: bool = False) -> None:
        """Change data in its place: for fdatasync(2) there is nothing but that."""
        new = self._chance.randbytes(min(PATCH_BYTES, len(file.content)))
        at = self._chance.randint(0, len(file.content) - len(new))
        file.names.append(file.path)
        file.patch = at, new
        with self._open(file) as fd:
            os.pwrite(fd, new, at)
            if late:
                self._way.fdatasync(file.path, fd)
                file.promised = self._now()
            else:
                self._sync(file, fd)

    def chown(self, file: Lower) -> None:
        file.names.append(file.path)
        self._way.chown(file.path)
        if self._chance.random() < 0.3:
            self.append(file)

    def move(self, file: Lower) -> None:
        new = _beside(file.path, "moved")
        file.names += [file.path, new]
        if self._chance.random() < 0.5:
            self.append(file)
        self._way.rename(file.path, new)

    def link(self, file: Lower) -> None:
        new = _beside(file.path, "linked")
        file.names += [file.path, new]
        self._way.link(file.path, new)

    @contextlib.contextmanager
    def _open(self, file: Lower) -> Iterator[int]:
        fd = self._way.open(file.path, os.O_RDWR)
        try:
            yield fd
        finally:
            os.close(fd)

    def _sync(self, file: Lower, fd: int) -> None:
        """Promise what was done so far, or nothing."""
        match self._chance.randrange(4):
            case 0:
                os.fsync(fd)
            case 1:
                self._way.fdatasync(file.path, fd)
            case _:
                return
        file.promised = self._now()


def _beside(path: str, word: str) -> str:
    where, name = os.path.split(path)
    return f"{where}/{word}-{name}"


def _size(chance: random.Random) -> int:
    most = chance.choices((SMALL, MIDDLE, LARGE, 3 * LARGE), (60, 28, 10, 2))[0]
    return chance.randint(1, most)


def _invent(count: int, chance: random.Random) -> list[Lower]:
    """Think of files of a lower layer."""
    sizes = [HUGE if it == count // 2 else _size(chance) for it in range(count)]
    names = [f"d{it % DIRECTORIES}/f{it}" for it in range(count)]
    return [Lower(*it) for it in zip(names, map(chance.randbytes, sizes), strict=True)]


def _fill(layer: Path, files: Sequence[Lower]) -> None:
    for file in files:
        (layer / file.path).parent.mkdir(parents=True, exist_ok=True)
        (layer / file.path).write_bytes(file.content)
    syncfs(layer)


@contextlib.contextmanager
def _disturbed(upper: Path, seed: str) -> Iterator[None]:
    """Have others sync files and directories beside for the block, also of the upper layer."""
    stop = threading.Event()
    others = threading.Thread(target=_disturb, args=(upper, stop, random.Random(seed)))
    others.start()
    try:
        yield
    finally:
        stop.set()
        others.join(TIMEOUT_S)


def _disturb(upper: Path, stop: threading.Event, chance: random.Random) -> None:
    beside = upper.with_name("beside")
    beside.mkdir()
    number = 0
    while not stop.wait(chance.choice((0, 0.001, 0.005, 0.02))):
        number += 1
        own = beside / f"o{number % 7}"
        own.write_bytes(chance.randbytes(chance.choice((10, 5000, 100_000))))
        here = [upper / name for name in os.listdir(upper)]
        with contextlib.suppress(FileNotFoundError):
            work = upper.with_name("work") / "snapfs"
            _fsync(chance.choice((own, own, beside, chance.choice(here or [upper]), work)))


def _fsync(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def work(
    *, count: int = 150, seed: int = 1, sync: bool = True, metacopy: bool = False
) -> Callable[[Path, Moment], Check]:
    """Return what changes so many files of a layer, each in some way; without `sync` the tree
    orders nothing, which is to be found out."""

    def do(place: Path, now: Moment) -> Check:
        files = _invent(count, random.Random(f"lower {seed}"))
        _fill(place / "lower", files)
        way = OnTree(place, sync=sync, metacopy=metacopy)
        with _disturbed(way.upper, f"others {seed}"):
            Acts(way, now, f"acts {seed}").do(files)
            if metacopy:
                way.tree.settle()
        way.tree.close()
        return _checking(place, way.upper, files)

    return do


def work_on_mount(
    mode: Mode, *, count: int = 150, seed: int = 1
) -> Callable[[Path, Moment], Check]:
    """As `work`, by programs on a lane."""

    def do(place: Path, now: Moment) -> Check:
        files = _invent(count, random.Random(f"lower {seed}"))
        base = place.with_name("house")
        with lanes.house(base, mode, root=place / "root") as house:
            tree = house.active(lambda layer: _fill(layer, files))
            way = OnMount(tree.path, tree.upper)
            for names in ("d0", "d1"):  # those of the others are looked up one by one
                list(os.scandir(tree / names))
            with _disturbed(way.upper, f"others {seed}"):
                Acts(way, now, f"acts {seed}").do(files)
        return _checking(place, way.upper, files)

    return do


def late_work(*, heeds: bool) -> Callable[[Path, Moment], Check]:
    """Return what overwrites some files and syncs their data, with a commit between each copy and
    its name; `heeds` what the tree says of such a sync."""

    def do(place: Path, now: Moment) -> Check:
        files = [it for it in _invent(12, random.Random("late")) if len(it.content) < HUGE]
        _fill(place / "lower", files)
        way, other = OnTree(place, sync=True, metacopy=False, heeds=heeds), place / "other"
        acts = Acts(way, now, "late")
        for file in files:
            other.write_bytes(file.content[:100])
            way.copy_late(file.path, lambda: _fsync(other))
            acts.overwrite(file, late=True)
        way.tree.close()
        return _checking(place, way.upper, files)

    return do


def _checking(place: Path, upper: Path, files: Sequence[Lower]) -> Check:
    where = upper.relative_to(place)
    return lambda disk, moment: check(disk / where, files, moment)


def check(upper: Path, files: Sequence[Lower], moment: int) -> None:
    """Look at an upper layer of a disk that was cut at a moment."""
    wrong = []
    for file in files:
        try:
            file.check(upper, moment)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, f"{len(wrong)} of {len(files)}: " + "; ".join(wrong[:5])
