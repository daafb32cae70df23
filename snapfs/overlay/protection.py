"""Where a file's immutable and append-only flags are kept; fileflags.py says what they forbid.

INVARIANT: a layer in which anything carries PROTATTR has PROTECTED on its root.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

from snapfs import ioctls

from . import xattrs
from .core import MergedTree
from .filecalls import (
    FS_APPEND_FL,
    FS_IMMUTABLE_FL,
    FS_NOATIME_FL,
    FS_SYNC_FL,
    get_flags,
    set_flags,
    statx,
)
from .layer import Layer
from .node import Dir, Node

IMMUTABLE = FS_IMMUTABLE_FL
APPEND = FS_APPEND_FL
PROTECTING = IMMUTABLE | APPEND
_LETTERS = {b"a": APPEND, b"i": IMMUTABLE}
_CARRIED = FS_SYNC_FL | FS_NOATIME_FL
"""Flags that a copy takes over (overlayfs, OVL_COPY_FS_FLAGS_MASK), next to the protecting ones."""


def protection(tree: MergedTree, node: Node) -> int:
    """Return which of IMMUTABLE and APPEND a node has; free for upper files where none has."""
    found = 0
    if node.is_above:
        layer = tree.upper_layer
    else:
        layer = node.stack[0].layer if isinstance(node, Dir) else _layer(node)
        found = statx(*tree.where(node)).attributes & PROTECTING
    if layer.is_protected:
        found |= decode(xattrs.get(tree.real_path(node), xattrs.PROTATTR))
    return found


def _layer(node: Node) -> Layer:
    if node.layer is None:
        raise ValueError(f"node {node.ino} is in no layer")
    return node.layer


def decode(value: bytes | None) -> int:
    """Read a protattr."""
    return sum(flag for letter, flag in _LETTERS.items() if value is not None and letter in value)


def encode(flags: int) -> bytes:
    """Write a protattr as overlayfs does; empty when nothing is protected."""
    return b"".join(letter for letter, flag in _LETTERS.items() if flags & flag)


def store(tree: MergedTree, node: Node, flags: int) -> None:
    """Protect an upper file, or take its protection away."""
    tree.usage.note(node)
    if flags:
        announce(tree)
        xattrs.put(tree.real_path(node), xattrs.PROTATTR, encode(flags))
    elif tree.upper_layer.is_protected:
        xattrs.drop(tree.real_path(node), xattrs.PROTATTR)


def announce(tree: MergedTree) -> None:
    """Mark the upper layer before the first file in it is protected."""
    if not tree.upper_layer.is_protected:
        tree.usage.note(tree.root)
        xattrs.put(tree.upper_layer.proc(b"."), xattrs.PROTECTED, b"y")
        tree.upper_layer.is_protected = tree.handed.protects = True


def of_source(tree: MergedTree, node: Node, attributes: int) -> bytes:
    """Return the protattr of a lower file's copy, empty when nothing protects it, and mark the
    upper layer for it; `attributes` are what statx(2) says of the file."""
    found = attributes & PROTECTING
    if _layer(node).is_protected:
        found |= decode(xattrs.get(tree.real_path(node), xattrs.PROTATTR))
    if found:
        announce(tree)
    return encode(found)


def of_lower(tree: MergedTree, node: Node) -> int:
    """Return what a node's copy is to be protected by, and mark the upper layer for it."""
    found = protection(tree, node)
    if found:
        announce(tree)
    return found


def carry(source: bytes, target: int, protecting: int) -> None:
    """Give the copy behind a descriptor the flags of what it is a copy of, and `protecting`.

    Flags that the target's file system does not know are left out, as overlayfs does.
    """
    if protecting:
        os.setxattr(target, xattrs.PROTATTR, encode(protecting))
    wanted = _flags_of(source) & _CARRIED
    if wanted:
        with _where_there_are_flags():
            set_flags(target, get_flags(target) | wanted)


def _flags_of(path: bytes) -> int:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC)
    found = 0
    try:
        with _where_there_are_flags():
            found = get_flags(fd)
    finally:
        os.close(fd)
    return found


@contextlib.contextmanager
def _where_there_are_flags() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in ioctls.NO_SUCH:
            raise
