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
from collections.abc import Iterable, Sequence
from itertools import islice

import pyfuse3
import trio

from snapfs.fuse.backing import Entry
from snapfs.fuse.files import FileHandlers
from snapfs.fuse.incarnations import number_of
from snapfs.fuse.threads import notified
from snapfs.overlay import Node, identity

RELEASES_TIMEOUT_S = 1.0
"""For releases of files that are closed already: the kernel does not make close(2) wait for us."""
_NAMED = 5
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
    """Name the files that somebody may go on to write past us; empty when there are none.

    `root` is the number of the tree's root: after a restart nobody may have looked at it yet.

    To be called when no new one can be opened.
    """
    with trio.move_on_after(RELEASES_TIMEOUT_S):
        while _named_writers(operations, root):
            await operations.passing.writer_left.wait()
    return named(_named_writers(operations, root))


def named(paths: Sequence[str]) -> str:
    """Return paths for a message: the first few, and how many more."""
    names = ", ".join(paths[:_NAMED])
    return f"{names} and {len(paths) - _NAMED} more" if len(paths) > _NAMED else names


def _named_writers(operations: FileHandlers, root: int) -> list[str]:
    found = (_name(operations, entry) for entry in operations.passing.writers(root))
    return sorted(name for name in found if name)


def _name(operations: FileHandlers, entry: Entry) -> str:
    """Say where a file is; empty for one without a name, which is in no layer."""
    ino = number_of(entry.nodeid)
    try:
        node = operations.forest.inodes.get(ino)
    except KeyError:
        return f"inode {ino & identity.LOW_MASK}"
    return _path(node).decode(errors="backslashreplace") if node.names() else ""


def _path(node: Node) -> bytes:
    names: list[bytes] = []
    here: Node | None = node
    while here is not None and here.parent is not None:
        names.append(here.name)
        here = here.parent
    return b"/" + b"/".join(reversed(names))
