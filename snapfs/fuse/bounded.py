"""Writes to a tree with a quota: what does not fit is not written.

Near the limit a write is measured by the blocks that its range lacks. What other requests are about
to take counts as taken; when that alone is in the way, they are waited for.
"""

from __future__ import annotations

import errno
import os
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import trio

from snapfs.fuse.trees import LOOK_AGAIN_S, Shown
from snapfs.overlay import Node, Tree
from snapfs.overlay.freeing import LET_GO_S

OTHERS_S = 1.0
"""For requests under way to end, before they count as having taken what they may."""
_PAGE_BYTES = 4096


@asynccontextmanager
async def admitted(
    shown: Shown, tree: Tree, node: Node, fd: int, offset_bytes: int, length_bytes: int
) -> AsyncIterator[int]:
    """Give the length of a write, or another change of a range, that may be made in the block.

    It is less than asked for when the quota ends there; OSError(EDQUOT) when nothing fits.
    """
    fits, takes = await _fitting(shown, tree, fd, offset_bytes, length_bytes)
    if length_bytes and not fits:
        raise exceeded()
    tree.usage.note(node)
    try:
        with tree.allowance.reserving(takes):
            yield fits
    finally:
        tree.usage.note(node)
    if tree.allowance.exceeded:
        await shown.relieve()
        tree.allowance.used(exactly=True)


async def _fitting(
    shown: Shown, tree: Tree, fd: int, offset_bytes: int, length_bytes: int
) -> tuple[int, int]:
    now_s = time.monotonic()
    deadline_s, removed_s = now_s + OTHERS_S, now_s + LET_GO_S
    relieved = False
    while True:
        fits, takes = tree.allowance.fitting(fd, offset_bytes, length_bytes)
        if fits == length_bytes:
            return fits, takes
        now_s = time.monotonic()
        others = tree.allowance.reserved and now_s < deadline_s
        if others or (tree.usage.held_blocks and now_s < removed_s):
            await trio.sleep(LOOK_AGAIN_S)
        elif not relieved:
            relieved = True
            await shown.relieve()
            tree.allowance.used(exactly=True)
        else:
            return fits, takes


def may_be_cut(offset_bytes: int) -> bool:
    """Whether a write may be done in part: the kernel drops the rest of a page of a mapping.

    Pages are written back from where one begins.
    """
    return offset_bytes % _PAGE_BYTES != 0


def exceeded() -> OSError:
    return OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))
