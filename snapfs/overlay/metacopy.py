"""Copies of metadata only, as overlayfs writes them with metacopy=on: where their data is.

Such a file is sparse and carries `trusted.overlay.metacopy`; its data is in a layer below. Those of
a tree's own making are nodes that know (metacopying.py); any other is noticed as it is opened, and
not written.
"""

from __future__ import annotations

import contextlib
import errno
import os
from typing import TYPE_CHECKING

from . import lower, xattrs
from .layer import Layer

if TYPE_CHECKING:
    from .core import MergedTree
    from .node import Node


def holds_data(handle: int) -> bool:
    """Say cheaply whether an open file has data of its own, or none to have.

    Its blocks alone do not tell: they count one for attributes too. The file's offset stays 0.
    """
    real = os.fstat(handle)
    if real.st_blocks * 512 < real.st_size:
        return False
    try:
        if real.st_size and os.lseek(handle, 0, os.SEEK_DATA):
            os.lseek(handle, 0, os.SEEK_SET)
    except OSError as error:
        return error.errno != errno.ENXIO
    return True


def blocks(node: Node) -> int:
    """Return how many blocks the data takes that a metadata-only copy shows."""
    fd, path = _data(node)
    return os.stat(path, dir_fd=fd, follow_symlinks=False).st_blocks


def open_data(node: Node, flags: int) -> int:
    """Open the data of a metadata-only copy for reading; OSError(EIO) where it is to be written."""
    if flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC:
        raise OSError(errno.EIO, "the data of this metadata-only copy was not copied", node.name)
    fd, path = _data(node)
    return os.open(path, flags | os.O_NOATIME, dir_fd=fd)


def _data(node: Node) -> tuple[int, bytes]:
    if node.layer is None:
        raise OSError(errno.EIO, "the data of this metadata-only copy is in no layer", node.name)
    return node.layer.at(node.lower_path)


def say_where(tree: MergedTree, node: Node) -> None:
    """Write on a metadata-only copy that is about to lose its name where its data is, as overlayfs
    does: its name says so no more, to a process that comes later.

    Where there is no room for that, such a process cannot read it, and nothing else is lost.
    """
    if not node.metacopy or node.parent is None or not tree.spec.resumed:
        return
    name = os.path.basename(node.lower_path)
    place = b"%s/%s" % (node.parent.origin_path(), name)
    with contextlib.suppress(OSError):
        xattrs.put(tree.real_path(node), xattrs.REDIRECT, place)


def find_nameless(tree: MergedTree, path: bytes) -> tuple[Layer, bytes] | None:
    """Return layer and path of the data that `say_where` has written down at `path`."""
    place = lower.read_redirect(path)
    if place is None or not place.startswith(b"/"):
        return None
    return lower.find_data(tree.roots, tree.roots, 0, place)


def data_of(tree: MergedTree, node: Node) -> tuple[Layer, bytes] | None:
    """Layer and path of a file's data, when that lies below it; None for any other file."""
    if node.metacopy and node.layer is not None:
        return node.layer, node.lower_path
    path = tree.real_path(node)
    if xattrs.get(path, xattrs.METACOPY) is None:
        return None
    parent = node.parent
    found = None
    if parent is not None:
        layers = [place.layer for place in parent.stack]
        below = layers.index(node.layer) + 1 if node.layer in layers else 0
        name = lower.read_redirect(path) or node.name
        found = lower.find_data(tree.roots, parent.stack, below, name)
    if found is None:
        raise OSError(errno.EIO, "the data of this metadata-only copy is in no layer", path)
    return found


def data_handle(tree: MergedTree, node: Node, handle: int, flags: int) -> int:
    """Give back the open sparse file, or what holds its data when it is a metadata-only copy."""
    try:
        found = data_of(tree, node)
        if found is None:
            return handle
        if flags & os.O_ACCMODE != os.O_RDONLY:
            what = "a metadata-only copy cannot be written; mount it with metacopy=off and copy it"
            raise OSError(errno.EIO, what, node.name)
        layer, path = found
        fd, rest = layer.at(path)
        data = os.open(rest, flags | os.O_NOATIME, dir_fd=fd)
    except OSError:
        os.close(handle)
        raise
    os.close(handle)
    return data
