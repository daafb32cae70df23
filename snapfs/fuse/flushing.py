"""What only the kernel knows of, before a tree holds still: dirty pages, and writers past us.

Dirty pages of shared mappings of files that are open through us: invalidating a node's pages makes
the kernel write them first. They exist only while a writable descriptor is open (a mapping holds
one), which in a lane without opens can be of any file. Pages of files that are written past us are
the layer's own; syncing the layer writes them.

Nothing takes a file back from who writes it past us. So a layer with such a file in it does not
hold still: whoever wants it to (a commit) is refused, and told the names.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Sequence
from itertools import islice

import pyfuse3
import trio

from snapfs import processes
from snapfs.fuse.backing import Entry
from snapfs.fuse.files import FileHandlers
from snapfs.fuse.incarnations import number_of
from snapfs.fuse.threads import notified
from snapfs.overlay import Node, identity

RELEASES_TIMEOUT_S = 1.0
"""For releases of files that are closed already: the kernel does not make close(2) wait for us."""
RELEASES_OF_UNBOUND_S = 0.1
"""The same, where some are expected to stay open."""
_REMOVED = "(removed)"
_FLUSHED_AT_ONCE = 64
"""Files in one turn of a thread: a database has hundreds open."""


async def flush_dirty_pages(operations: FileHandlers, files: Iterable[int]) -> None:
    """Return when what mappings of these files have changed was written through us."""
    inodes = iter(files)
    while batch := list(islice(inodes, _FLUSHED_AT_ONCE)):
        await notified(operations.threads.notify, _write_back, batch)


def _write_back(inodes: Sequence[int]) -> None:
    for ino in inodes:
        with contextlib.suppress(FileNotFoundError):  # the kernel has forgotten it since
            pyfuse3.invalidate_inode(ino)


async def native_writers(operations: FileHandlers, root: int) -> str:
    """Name the files of a layer that somebody may go on to write past us; empty when there are
    none.

    `root` is the number of the tree's root: after a restart nobody may have looked at it yet.

    To be called when no new one can be opened.
    """

    def in_layer() -> list[str]:
        return [name for name in _writers(operations, root) if name != _REMOVED]

    return processes.named(await _after_releases(operations, in_layer, RELEASES_TIMEOUT_S))


async def unbound_writers(operations: FileHandlers, root: int) -> list[str]:
    """Name all files that somebody may go on to write past us, removed ones last."""

    def everywhere() -> list[str]:
        return sorted(_writers(operations, root), key=lambda name: (name == _REMOVED, name))

    return await _after_releases(operations, everywhere, RELEASES_OF_UNBOUND_S)


async def _after_releases(
    operations: FileHandlers, found: Callable[[], list[str]], timeout_s: float
) -> list[str]:
    """Return what is found when nothing is, or when there is no time left."""
    with trio.move_on_after(timeout_s):
        while found():
            await operations.passing.writer_left.wait()
    return found()


def _writers(operations: FileHandlers, root: int) -> list[str]:
    return sorted(_name(operations, entry) for entry in operations.passing.writers(root))


def _name(operations: FileHandlers, entry: Entry) -> str:
    """Say where a file is; one without a name is in no layer."""
    ino = number_of(entry.nodeid)
    try:
        node = operations.forest.inodes.get(ino)
    except KeyError:
        return f"inode {ino & identity.LOW_MASK}"
    return _path(node).decode(errors="backslashreplace") if node.names() else _REMOVED


def _path(node: Node) -> bytes:
    names: list[bytes] = []
    here: Node | None = node
    while here is not None and here.parent is not None:
        names.append(here.name)
        here = here.parent
    return b"/" + b"/".join(reversed(names))
