"""Set-id bits that a file gets while somebody may write to it past us.

A write by a process without CAP_FSETID takes these bits (privileges.py). Who opens a file that has
them writes through us, so we see to it. Where the bits come later, with chmod(2), a writer may have
the file already, and the kernel writes for it in the worker's name, which keeps them. The kernel
asks first, though, where it knows of the bits: with a SETATTR that changes nothing, and it writes
when that is answered (file_remove_privs()). Then they go (`before_write`). Nothing has to be known
for that, so a write while there is no worker waits for the next one.

It does not know of bits that came by another number of the same file (incarnations.py). So a file
is watched besides: its size and time of change of content as they were after the chmod. When
somebody looks at it, or the writer closes it, and they have changed, the bits go. Nobody can run it
between: exec(2) is refused (ETXTBSY) while a file is open for writing, and asks for attributes
first. A worker that begins watches no file: what it would compare with is not known.

A mapping takes no bits, here as anywhere. As for all set-id files, what counts is the right of the
process that opened the file; one that ended meanwhile had none.
"""

from __future__ import annotations

import stat
from collections.abc import Iterable
from typing import NamedTuple

import pyfuse3

from snapfs.fuse import privileges
from snapfs.overlay import Attributes, Node, SetAttr, Tree


class _Watched(NamedTuple):
    """A file as it was, and the bits that it loses by a write."""

    size: int
    mtime_ns: int
    lost: int


class SetIdWatch:
    """The watched files of a session, by inode number."""

    def __init__(self) -> None:
        self._watched: dict[int, _Watched] = {}

    def __contains__(self, node: Node) -> bool:
        return node.ino in self._watched

    def begin(self, tree: Tree, node: Node, writers: Iterable[int] | None) -> None:
        """Watch a file, or go on from its state now, if there is somebody to watch.

        `writers` are the processes that opened it for writing past us; None: not all are known.
        """
        found = tree.getattr(node)
        lost = _lost(found, writers) if privileges.has_set_id(found.mode) else 0
        if lost:
            self._watched[node.ino] = _Watched(*_content(found), lost)
        else:
            self._watched.pop(node.ino, None)

    def check(self, tree: Tree, node: Node) -> None:
        """Take the bits of a watched file that was written to."""
        found, watched = tree.getattr(node), self._watched[node.ino]
        if watched[:2] == _content(found):
            return
        del self._watched[node.ino]
        if found.mode & watched.lost and not tree.readonly:
            tree.setattr(node, SetAttr(mode=stat.S_IMODE(found.mode) & ~watched.lost))

    def end(self, node: Node) -> None:
        """Watch a file no more: nobody has it open for writing."""
        self._watched.pop(node.ino, None)


def before_write(found: Attributes, pid: int) -> SetAttr:
    """Return what becomes of a file that process `pid` is about to write past us.

    It is asked whether it has CAP_FSETID: the kernel asks for the sake of file capabilities, too.
    """
    if not privileges.has_set_id(found.mode):
        return SetAttr()
    left = privileges.left_by(pid, found.mode, found.gid)
    return SetAttr() if left == stat.S_IMODE(found.mode) else SetAttr(mode=left)


def leave(tree: Tree, node: Node, nodeid: int, mode: int, left: int, fd: int | None = None) -> None:
    """Leave a file of mode `mode` the permission bits `left`; tell the kernel of a change."""
    if left != stat.S_IMODE(mode):
        tree.setattr(node, SetAttr(mode=left), fd)
        pyfuse3.invalidate_inode(nodeid, attr_only=True)


def _lost(found: Attributes, writers: Iterable[int] | None) -> int:
    """The bits that go if any of the writers writes."""
    mode = left = stat.S_IMODE(found.mode)
    if writers is None:
        left = privileges.without_set_id(mode, in_group=False)
    else:
        for pid in writers:
            left &= privileges.left_by(pid, mode, found.gid)
    return mode & ~left


def _content(found: Attributes) -> tuple[int, int]:
    return found.size, found.mtime_ns
