"""Copies of metadata only, as overlayfs writes them with metacopy=on: found, never written.

Such a file is sparse and carries `trusted.overlay.metacopy`; its data is in a layer below.
"""

from __future__ import annotations

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


def data_of(tree: MergedTree, node: Node) -> tuple[Layer, bytes] | None:
    """Layer and path of a file's data, when that lies below it; None for any other file."""
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
