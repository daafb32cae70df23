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

from snapfs.overlay import Node, SetAttr, Tree, TreeSpec
from snapfs.overlay.filecalls import syncfs
from tests.crash.cutting import Check, Moment

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


class Work:
    """Does the acts on one tree; all but the copying in one thread."""

    def __init__(self, place: Path, now: Moment, *, sync: bool, metacopy: bool, seed: str) -> None:
        self._now = now
        self._chance = random.Random(seed)
        self.upper = place / "upper"
        for name in ("upper", "work", "other"):
            (place / name).mkdir()
        syncfs(place)
        spec = TreeSpec(1, (place / "lower",), self.upper, place / "work", sync=sync)
        if metacopy:
            spec = TreeSpec(1, spec.lowers, spec.upper, spec.work, sync=sync, metacopy=True)
        self.tree = Tree(spec)

    def node(self, path: str) -> Node:
        node: Node = self.tree.root
        for name in path.split("/"):
            node = self.tree.lookup(node, name.encode())
            self.tree.inodes.remember(node)
        return node

    def do(self, files: Sequence[Lower]) -> None:
        """Change all files, each in one way."""
        acts = (self.append, self.append, self.overwrite, self.chown, self.move, self.link)
        left = list(files)
        with ThreadPoolExecutor(3) as threads:
            while left:
                if self._chance.random() < 0.1:
                    self._together(threads, [left.pop() for _ in range(min(3, len(left)))])
                else:
                    self._chance.choice(acts)(left.pop())

    def _together(self, threads: ThreadPoolExecutor, files: Sequence[Lower]) -> None:
        """Copy some at once, as a worker's threads do, then write to them."""
        jobs = [self.tree.start_copy_up(self.node(it.path)) for it in files]
        for job, running in [(it, threads.submit(it.run)) for it in jobs]:
            running.result(TIMEOUT_S)
            self.tree.finish_copy_up(job)
        for file in files:
            self.append(file)

    def append(self, file: Lower) -> None:
        new = self._chance.randbytes(self._chance.choice((1, 100, 5000)))
        file.names.append(file.path)
        file.appended = new
        with self._open(file, os.O_WRONLY) as fd:
            os.pwrite(fd, new, len(file.content))
            self._sync(file, fd)

    def overwrite(self, file: Lower) -> None:
        """Change data in its place: for fdatasync(2) there is nothing but that."""
        file.names.append(file.path)
        with self._open(file, os.O_RDWR) as fd:
            self._overwrite(file, fd)
            self._sync(file, fd)

    def _overwrite(self, file: Lower, fd: int) -> None:
        new = self._chance.randbytes(min(PATCH_BYTES, len(file.content)))
        at = self._chance.randint(0, len(file.content) - len(new))
        file.patch = at, new
        os.pwrite(fd, new, at)

    def overwrite_late(self, file: Lower, commit: Callable[[], object], *, heeds: bool) -> None:
        """As `overwrite`, synced for its data, where a commit was between the copy and its name;
        `heeds` what the tree says of such a sync."""
        file.names.append(file.path)
        job = self.tree.start_copy_up(self.node(file.path))
        job.run()
        commit()
        self.tree.finish_copy_up(job)
        with self._open(file, os.O_RDWR) as fd:
            self._overwrite(file, fd)
            owes = heeds and self.node(file.path).owes_name
            (os.fsync if owes else os.fdatasync)(fd)
        file.promised = self._now()

    def chown(self, file: Lower) -> None:
        file.names.append(file.path)
        self.tree.setattr(self.node(file.path), SetAttr(uid=1))
        if self._chance.random() < 0.3:
            self.append(file)

    def move(self, file: Lower) -> None:
        where, name = os.path.split(file.path)
        file.names += [file.path, f"{where}/moved-{name}"]
        here = self.node(where)
        if self._chance.random() < 0.5:
            self.append(file)
        self.tree.rename(here, name.encode(), here, b"moved-" + name.encode())

    def link(self, file: Lower) -> None:
        where, name = os.path.split(file.path)
        file.names += [file.path, f"{where}/linked-{name}"]
        self.tree.link(self.node(file.path), self.node(where), b"linked-" + name.encode())

    @contextlib.contextmanager
    def _open(self, file: Lower, flags: int) -> Iterator[int]:
        fd = self.tree.open(self.node(file.path), flags)
        try:
            yield fd
        finally:
            os.close(fd)

    def _sync(self, file: Lower, fd: int) -> None:
        """Promise what was done so far, as a worker does, or nothing."""
        how = self._chance.choice((os.fsync, os.fdatasync, None, None))
        if how is not None:
            how = os.fsync if self.node(file.path).owes_name else how
            how(fd)
            file.promised = self._now()


def _size(chance: random.Random) -> int:
    most = chance.choices((SMALL, MIDDLE, LARGE, 3 * LARGE), (60, 28, 10, 2))[0]
    return chance.randint(1, most)


def _make_lower(place: Path, count: int, chance: random.Random) -> list[Lower]:
    made = []
    for number in range(count):
        size = HUGE if number == count // 2 else _size(chance)
        path = f"d{number % DIRECTORIES}/f{number}"
        made.append(Lower(path, chance.randbytes(size)))
        (place / "lower" / path).parent.mkdir(parents=True, exist_ok=True)
        (place / "lower" / path).write_bytes(made[-1].content)
    syncfs(place)
    return made


@contextlib.contextmanager
def _disturbed(place: Path, seed: str) -> Iterator[None]:
    """Have others sync files and directories beside for the block."""
    stop = threading.Event()
    others = threading.Thread(target=_disturb, args=(place, stop, random.Random(seed)))
    others.start()
    try:
        yield
    finally:
        stop.set()
        others.join(TIMEOUT_S)


def _disturb(place: Path, stop: threading.Event, chance: random.Random) -> None:
    number = 0
    while not stop.wait(chance.choice((0, 0.001, 0.005, 0.02))):
        number += 1
        own = place / "other" / f"o{number % 7}"
        own.write_bytes(chance.randbytes(chance.choice((10, 5000, 100_000))))
        names = os.listdir(place / "upper")
        other = place / "upper" / chance.choice(names) if names else place
        with contextlib.suppress(FileNotFoundError):
            _fsync(chance.choice((own, own, own.parent, other, place / "work" / "snapfs")))


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
        files = _make_lower(place, count, random.Random(f"lower {seed}"))
        done = Work(place, now, sync=sync, metacopy=metacopy, seed=f"acts {seed}")
        with _disturbed(place, f"others {seed}"):
            done.do(files)
            if metacopy:
                done.tree.settle()
        # The nodes go with the tree, which nobody asks any more.
        done.tree.close()
        return lambda place, moment: check(place, files, moment)

    return do


def late_work(*, heeds: bool) -> Callable[[Path, Moment], Check]:
    """Return what overwrites some files and syncs their data, each just after a commit."""

    def do(place: Path, now: Moment) -> Check:
        chance = random.Random("late")
        files = [it for it in _make_lower(place, 12, chance) if len(it.content) < HUGE]
        done = Work(place, now, sync=True, metacopy=False, seed="late")
        other = place / "other" / "o"
        for file in files:
            other.write_bytes(file.content[:100])
            done.overwrite_late(file, lambda: _fsync(other), heeds=heeds)
        done.tree.close()
        return lambda place, moment: check(place, files, moment)

    return do


def check(place: Path, files: Sequence[Lower], moment: int) -> None:
    """Look at a disk that was cut at a moment."""
    wrong = []
    for file in files:
        try:
            file.check(place / "upper", moment)
        except AssertionError as error:
            wrong.append(str(error))
    assert not wrong, f"{len(wrong)} of {len(files)}: " + "; ".join(wrong[:5])
