"""A layer directory as an OCI layer archive: what it changes, with the archive's whiteouts.

Reads the layer's own marks, so its cost is that of the change, not of the image. The same layer
gives the same bytes: names in order, owners as numbers, times cut at SOURCE_DATE_EPOCH if given.
Source: OCI image-spec, layer.md.
"""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import BinaryIO

from snapfs.overlay import Node, Tree, TreeSpec, diff

WHITEOUT = b".wh."
_KEPT_XATTRS = (b"security.capability",)
_KEPT_XATTR_PREFIX = b"user."
_TYPES = {
    stat.S_IFREG: tarfile.REGTYPE,
    stat.S_IFDIR: tarfile.DIRTYPE,
    stat.S_IFLNK: tarfile.SYMTYPE,
    stat.S_IFCHR: tarfile.CHRTYPE,
    stat.S_IFBLK: tarfile.BLKTYPE,
    stat.S_IFIFO: tarfile.FIFOTYPE,
}


def write(
    upper: Path, lowers: Sequence[Path], out: BinaryIO, *, latest_s: int | None = None
) -> None:
    """Write what `upper` changes in the tree of `lowers` to a stream, as a plain tar archive.

    `latest_s` is the latest time that entries may have. Sockets are left out: archives have none.
    """
    tree = Tree(TreeSpec(1, (upper, *lowers)))
    try:
        with tarfile.open(
            fileobj=out, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20
        ) as archive:
            writer = _Writer(archive, tree, latest_s)
            for change in sorted(diff.changes(upper, lowers), key=lambda it: it.path.split(b"/")):
                if change.kind == "deleted":
                    writer.whiteout(change.path)
                else:
                    writer.entry(change.path)
    finally:
        tree.close()


class _Writer:
    def __init__(self, archive: tarfile.TarFile, tree: Tree, latest_s: int | None) -> None:
        self._archive = archive
        self._tree = tree
        self._latest_s = latest_s
        self._written: set[bytes] = set()
        self._links: dict[int, bytes] = {}
        """First path of each file with several names."""

    def whiteout(self, path: bytes) -> None:
        head, slash, name = path.rpartition(b"/")
        self._parents(path)
        member = tarfile.TarInfo(os.fsdecode(head + slash + WHITEOUT + name))
        member.mtime = self._latest_s or 0
        self._archive.addfile(member)

    def entry(self, path: bytes) -> None:
        """Write a file or directory, after the directories above it."""
        if path in self._written:
            return
        self._parents(path)
        self._written.add(path)
        node = self._find(path)
        info = self._tree.getattr(node)
        kind = _TYPES.get(stat.S_IFMT(info.mode))
        if kind is None:
            return
        member = tarfile.TarInfo(os.fsdecode(path))
        member.type, member.mode = kind, stat.S_IMODE(info.mode)
        member.uid, member.gid = info.uid, info.gid
        member.pax_headers = self._set_time(member, info.mtime_ns)
        first = self._links.setdefault(info.ino, path) if info.nlink > 1 else path
        if kind == tarfile.REGTYPE and first != path:
            member.type, member.linkname = tarfile.LNKTYPE, os.fsdecode(first)
            self._archive.addfile(member)
            return
        member.pax_headers = {**member.pax_headers, **self._xattrs(node)}
        if kind == tarfile.SYMTYPE:
            member.linkname = os.fsdecode(self._tree.readlink(node))
        elif kind in (tarfile.CHRTYPE, tarfile.BLKTYPE):
            member.devmajor, member.devminor = os.major(info.rdev), os.minor(info.rdev)
        if kind != tarfile.REGTYPE:
            self._archive.addfile(member)
            return
        member.size = info.size
        with os.fdopen(self._tree.open(node, os.O_RDONLY), "rb") as file:
            self._archive.addfile(member, file)

    def _parents(self, path: bytes) -> None:
        """Write the directories above a path, so that the archive stands by itself."""
        parts = path.split(b"/")[:-1]
        for depth in range(1, len(parts) + 1):
            self.entry(b"/".join(parts[:depth]))

    def _find(self, path: bytes) -> Node:
        node: Node = self._tree.root
        for name in path.split(b"/"):
            node = self._tree.lookup(node, name)
        return node

    def _set_time(self, member: tarfile.TarInfo, mtime_ns: int) -> dict[str, str]:
        """Set a time to the second; return the header that says it exactly."""
        if self._latest_s is not None:
            mtime_ns = min(mtime_ns, self._latest_s * 1_000_000_000)
        member.mtime = mtime_ns // 1_000_000_000
        seconds, nanoseconds = divmod(abs(mtime_ns), 1_000_000_000)
        if not nanoseconds:
            return {}
        fraction = f"{nanoseconds:09d}".rstrip("0")
        return {"mtime": f"{'-' if mtime_ns < 0 else ''}{seconds}.{fraction}"}

    def _xattrs(self, node: Node) -> dict[str, str]:
        found = {}
        for name in sorted(self._tree.listxattr(node)):
            if name in _KEPT_XATTRS or name.startswith(_KEPT_XATTR_PREFIX):
                value = self._tree.getxattr(node, name)
                found[f"SCHILY.xattr.{os.fsdecode(name)}"] = value.decode(
                    "utf-8", "surrogateescape"
                )
        return found
