"""Makes an upper layer self-contained: what the work directory holds is put where it is seen."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path

from . import xattrs
from .copyup import abandon, materialise, stash_name
from .core import MergedTree
from .metacopying import complete
from .node import Dir
from .types import TreeSpec
from .work import has_link_records


def steps(tree: MergedTree) -> Iterator[None]:
    """Put every name of every copied-up hard link into the upper layer and end the records.

    Yields after each directory.
    """
    with tree.allowance.suspended():
        yield from _settle_names(tree)
    for link in tree.links.copied():
        node = tree.inodes.find(tree.prefix | link.low)
        if node is None or node.link is not link:
            tree.links.end(link, None)
        elif node.parent is not None or tree.may_be_known(node):
            keep = stash_name(node) if node.parent is None else None
            node.link, node.stash = None, keep
            tree.links.end(link, keep)
        else:
            with tree.usage.losing(node):
                tree.links.end(link, None)
            node.link = None
            abandon(tree, node)


def is_settled(upper: Path, work: Path) -> bool:
    """Whether a layer that no tree has open stands for itself; so does one that is not there."""
    try:
        is_marked = xattrs.get(os.fsencode(upper), xattrs.METACOPIES) is not None
    except FileNotFoundError:
        return True
    return not is_marked and not has_link_records(work)


def settle_offline(upper: Path, work: Path, lowers: Sequence[Path]) -> None:
    """Settle an upper layer that no tree has open; nearly free when nothing is to be done."""
    if is_settled(upper, work):
        return
    tree = MergedTree(TreeSpec(1, tuple(lowers), upper, work))
    try:
        for _ in steps(tree):
            pass
        complete(tree)
    finally:
        tree.close()


def _settle_names(tree: MergedTree) -> Iterator[None]:
    """Walk the tree until every pending name is found; a moved directory can be anywhere."""
    waiting = [tree.root]
    while waiting and tree.links.copied():
        here = waiting.pop()
        wanted = {tree.prefix | link.low for link in tree.links.copied()}
        for entry in tree.readdir(here):
            if entry.type != stat.S_IFDIR and entry.ino not in wanted:
                continue
            node = tree.lookup(here, entry.name)
            if isinstance(node, Dir):
                waiting.append(node)
            elif node.link is not None:
                materialise(tree, node, here, entry.name)
        yield
