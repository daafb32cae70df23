"""What a tree looks like from outside, as a dictionary that can be compared.

`of_mount` reads a mounted directory through the kernel, `of_tree` reads a Tree through its
interface; the two give equal censuses for equal trees.
"""

from __future__ import annotations

import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import Any, NamedTuple

from snapfs.overlay import Node, Tree

RECENT_NS = 1_600_000_000 * 10**9
"""Times from here on are when a test ran; tests give earlier ones on purpose."""


class Seen(NamedTuple):
    """One path, without what may differ: sizes of directories, block counts, recent times."""

    kind: int
    mode: int
    uid: int
    gid: int
    rdev: int
    content: bytes
    mtime_ns: int | str
    xattrs: tuple[tuple[bytes, bytes], ...]
    same_file_as: tuple[bytes, ...]
    """All paths of this file, when it has several."""
    nlink: int | None
    """Only where there are no hard links and the file is no directory."""


Census = dict[bytes, Seen]


def of_mount(root: Path) -> Census:
    """Read everything below a mounted directory."""
    real = _RealTree(os.fsencode(root))
    return _take(real)


def of_tree(tree: Tree) -> Census:
    """Read everything in a Tree."""
    return _take(_OwnTree(tree))


class _RealTree:
    def __init__(self, root: bytes) -> None:
        self.root = root

    def entries(self, path: bytes) -> list[bytes]:
        return sorted(os.listdir(os.path.join(self.root, path)))

    def stat(self, path: bytes) -> Any:
        try:
            return os.lstat(os.path.join(self.root, path))
        except FileNotFoundError:
            return None

    def content(self, path: bytes, kind: int) -> bytes:
        full = os.path.join(self.root, path)
        if kind == stat.S_IFLNK:
            return os.readlink(full)
        return Path(os.fsdecode(full)).read_bytes()

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        full = os.path.join(self.root, path)
        names = [os.fsencode(name) for name in os.listxattr(full, follow_symlinks=False)]
        return {name: os.getxattr(full, name, follow_symlinks=False) for name in names}


class _Stat:
    def __init__(self, node: Node) -> None:
        attributes = node.tree.getattr(node)
        for name in ("ino", "mode", "nlink", "uid", "gid", "rdev", "size", "mtime_ns"):
            setattr(self, f"st_{name}", getattr(attributes, name))


class _OwnTree:
    def __init__(self, tree: Tree) -> None:
        self.tree = tree
        self.nodes: dict[bytes, Node] = {b"": tree.root}

    def entries(self, path: bytes) -> list[bytes]:
        listed = self.tree.readdir(self.nodes[path])
        for entry in listed:
            node = self.tree.lookup(self.nodes[path], entry.name)
            self.nodes[os.path.join(path, entry.name)] = node
            assert (node.ino, node.type) == (entry.ino, entry.type), (path, entry)
        return sorted(entry.name for entry in listed)

    def stat(self, path: bytes) -> Any:
        return _Stat(self.nodes[path])

    def content(self, path: bytes, kind: int) -> bytes:
        node = self.nodes[path]
        if kind == stat.S_IFLNK:
            return self.tree.readlink(node)
        with open(self.tree.open(node, os.O_RDONLY), "rb") as file:
            return file.read()

    def xattrs(self, path: bytes) -> dict[bytes, bytes]:
        node = self.nodes[path]
        return {name: self.tree.getxattr(node, name) for name in self.tree.listxattr(node)}


def _take(source: _RealTree | _OwnTree) -> Census:
    stats = {b"": source.stat(b"")}
    waiting = [b""]
    while waiting:
        path = waiting.pop()
        for name in source.entries(path):
            below = os.path.join(path, name)
            found = source.stat(below)
            if found is None:
                continue  # the kernel lists whiteouts of a directory that only one lower layer has
            stats[below] = found
            if stat.S_ISDIR(found.st_mode):
                waiting.append(below)
    groups: dict[int, list[bytes]] = defaultdict(list)
    for path, found in stats.items():
        if not stat.S_ISDIR(found.st_mode):
            groups[found.st_ino].append(path)
    return {path: _see(source, path, found, groups) for path, found in sorted(stats.items())}


def _see(
    source: _RealTree | _OwnTree, path: bytes, found: Any, groups: dict[int, list[bytes]]
) -> Seen:
    kind = stat.S_IFMT(found.st_mode)
    names = sorted(groups.get(found.st_ino, []))
    single = kind != stat.S_IFDIR and len(names) == 1
    return Seen(
        kind=kind,
        mode=stat.S_IMODE(found.st_mode),
        uid=found.st_uid,
        gid=found.st_gid,
        rdev=found.st_rdev,
        content=source.content(path, kind) if kind in (stat.S_IFREG, stat.S_IFLNK) else b"",
        mtime_ns=found.st_mtime_ns if found.st_mtime_ns < RECENT_NS else "recent",
        xattrs=tuple(sorted(source.xattrs(path).items())),
        same_file_as=tuple(names) if len(names) > 1 else (),
        nlink=found.st_nlink if single else None,
    )


def differences(left: Census, right: Census, *, leave_out: tuple[str, ...] = ()) -> list[str]:
    """Say in words how two censuses differ; empty when they are equal."""
    lines = []
    for path in sorted(left.keys() | right.keys()):
        if path not in left or path not in right:
            lines.append(f"{path!r} only in {'right' if path not in left else 'left'}")
            continue
        for field in Seen._fields:
            one, other = getattr(left[path], field), getattr(right[path], field)
            if one != other and field not in leave_out:
                lines.append(f"{path!r} {field}: {one!r} != {other!r}")
    return lines
