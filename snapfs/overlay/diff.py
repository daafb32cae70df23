"""What a layer changes against the layers below it, read from the layer's own marks."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from . import lower
from .core import MergedTree, directory
from .node import Dir, Inodes, Node
from .types import TreeSpec


@dataclass(frozen=True, slots=True)
class Change:
    """One path that differs. A moved directory is a deletion and additions."""

    kind: Literal["added", "changed", "deleted"]
    path: bytes
    """Relative to the root, without a leading slash."""


def changes(upper: Path, lowers: Sequence[Path]) -> Iterator[Change]:
    """Yield what the layer `upper` changes in the tree of `lowers`, a directory before its entries.

    Only directories that the layer has are read. A file that the layer holds counts as changed even
    when it equals the parents' one; a directory only when its mode, owner or attributes differ.
    Each path in an added directory is listed; a deleted directory stands for all in it.
    """
    inodes = Inodes()
    after = MergedTree(TreeSpec(1, (upper, *lowers)), inodes)
    before = MergedTree(TreeSpec(2, tuple(lowers)), inodes) if lowers else None
    try:
        if before is not None:
            before.numbers = after.numbers
        yield from _compare(after, before)
    finally:
        after.close()
        if before is not None:
            before.close()


def between(after: Sequence[Path], before: Sequence[Path]) -> Iterator[Change]:
    """Yield what differs between the trees of two stacks of layers, each topmost first.

    Files in different layers are the same when kind, mode, owner, size, modification time and
    attributes are: copies of layers keep all of these. What is removed while it is looked at is
    left out.
    """
    inodes = Inodes()
    new = MergedTree(TreeSpec(1, tuple(after)), inodes)
    old = MergedTree(TreeSpec(2, tuple(before)), inodes)
    try:
        old.numbers = new.numbers
        yield from _between(new, new.root, old, old.root, b"")
    finally:
        new.close()
        old.close()


def _between(
    after: MergedTree, new: Dir, before: MergedTree, old: Dir | None, path: bytes
) -> Iterator[Change]:
    news = dict(after.index(new).items())
    olds = dict(before.index(old).items()) if old else {}
    for name in sorted(news.keys() | olds.keys()):
        here = path + name
        if name not in news:
            yield Change("deleted", here)
            continue
        with suppress(FileNotFoundError):
            now = after.lookup(new, name)
            was = before.lookup(old, name) if old is not None and name in olds else None
            if was is None:
                yield Change("added", here)
            elif not (_alike(now, was) and _same_data(now, was)):
                yield Change("changed", here)
            if isinstance(now, Dir):
                below = was if isinstance(was, Dir) else None
                yield from _between(after, now, before, below, here + b"/")


def _same_data(one: Node, other: Node) -> bool:
    if one.is_dir or _real_file(one) == _real_file(other):
        return True
    left, right = one.tree.getattr(one), other.tree.getattr(other)
    if (left.size, left.mtime_ns, left.rdev) != (right.size, right.mtime_ns, right.rdev):
        return False
    if stat.S_ISLNK(one.type):
        return one.tree.readlink(one) == other.tree.readlink(other)
    return True


def _real_file(node: Node) -> tuple[int, int]:
    """Return device and number of the real file of a node."""
    real = os.lstat(node.tree.real_path(node))
    return real.st_dev, real.st_ino


def _compare(after: MergedTree, before: MergedTree | None) -> Iterator[Change]:
    waiting: list[tuple[bytes, Dir, Dir | None]] = [
        (b"", after.root, before.root if before else None)
    ]
    while waiting:
        path, new, old = waiting.pop()
        news = dict(after.index(new).items())
        olds = dict(before.index(old).items()) if before and old else {}
        for name in sorted(news.keys() | olds.keys()):
            here = path + name
            if name not in news:
                yield Change("deleted", here)
                continue
            now = lower.top(news[name])
            was = lower.top(olds[name]) if name in olds else None
            if was is not None and lower.low_of(now) == lower.low_of(was):
                continue
            now_dir = _dir(after, new, name, now)
            was_dir = None if was is None else _dir(before, old, name, was)
            if was is None:
                yield Change("added", here)
            elif now_dir is None or was_dir is None or not _alike(now_dir, was_dir):
                yield Change("changed", here)
            if now_dir is not None:
                waiting.append((here + b"/", now_dir, was_dir))


def _dir(tree: MergedTree | None, parent: Dir | None, name: bytes, packed: int) -> Dir | None:
    if tree is None or parent is None or lower.kind_of(packed) != stat.S_IFDIR:
        return None
    return directory(tree.lookup(parent, name))


def _alike(one: Node, other: Node) -> bool:
    """Whether two directories differ in their entries at most."""
    left, right = one.tree.getattr(one), other.tree.getattr(other)
    if (left.mode, left.uid, left.gid) != (right.mode, right.uid, right.gid):
        return False
    return _xattrs(one) == _xattrs(other)


def _xattrs(node: Node) -> dict[bytes, bytes]:
    return {name: node.tree.getxattr(node, name) for name in node.tree.listxattr(node)}
