"""Makes an upper layer self-contained: what the work directory holds is put where it is seen."""

from __future__ import annotations

import stat
from collections.abc import Sequence
from pathlib import Path

from . import lower
from .copyup import materialise, stash_name
from .core import MergedTree
from .node import Dir
from .types import TreeSpec
from .work import has_link_records


def settle(tree: MergedTree) -> None:
    """Put every name of every copied-up hard link into the upper layer and end the records."""
    wanted = {link.low for link in tree.links.copied()}
    if wanted:
        _settle_below(tree, tree.root, wanted)
    for link in tree.links.copied():
        node = tree.inodes.find(tree.prefix | link.low)
        keep = None
        if node is not None and node.link is link:
            keep = None if node.parent is not None else stash_name(node)
            node.link, node.stash = None, keep
        tree.links.end(link, keep)


def settle_offline(upper: Path, work: Path, lowers: Sequence[Path]) -> None:
    """Settle an upper layer that no tree has open; nearly free when nothing is to be done."""
    if not has_link_records(work):
        return
    tree = MergedTree(TreeSpec(1, tuple(lowers), upper, work))
    try:
        settle(tree)
    finally:
        tree.close()


def _settle_below(tree: MergedTree, top: Dir, wanted: set[int]) -> None:
    """Walk the directories that have a lower part, without recursion since trees may be deep."""
    waiting = [top]
    while waiting:
        here = waiting.pop()
        for name, packed in list(lower.tops(tree.index(here))):
            is_dir = lower.kind_of(packed) == stat.S_IFDIR
            if not is_dir and lower.low_of(packed) not in wanted:
                continue
            node = tree.find(here, name)
            if node is None:
                continue
            if isinstance(node, Dir):
                if node.stack:
                    waiting.append(node)
            elif node.link is not None:
                materialise(tree, node, here, name)
