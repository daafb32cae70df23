"""Chains of snapshots as trees: who stands on whom."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from snapfs.cli import output, shapes
from snapfs.model import Kind, NotFound

if TYPE_CHECKING:
    from rich.text import Text
    from rich.tree import Tree

    from snapfs.service.records import Record

_STYLES = {Kind.COMMITTED: "bold", Kind.ACTIVE: "green", Kind.VIEW: "cyan"}


@dataclass(frozen=True, slots=True)
class Branch:
    """A snapshot and those that have it as parent, in the order of their names."""

    record: Record
    children: tuple[Branch, ...]


def plant(records: Sequence[Record], name: str | None = None) -> list[Branch]:
    """Return the trees of all `records`, or the one that begins at `name`.

    Works from the leaves up without recursion: chains may be thousands long.
    """
    by_name = {it.snapshot.name: it for it in records}
    if name is not None and name not in by_name:
        raise NotFound(f"snapshot {name!r} does not exist; `snapfs snapshot list` shows all")
    children: defaultdict[str, list[Branch]] = defaultdict(list)
    deepest_first = sorted(records, key=lambda it: (-len(it.snapshot.parent_ids), it.snapshot.name))
    for it in deepest_first:
        branch = Branch(it, tuple(children.pop(it.snapshot.name, ())))
        if it.snapshot.name == name:
            return [branch]
        parent = it.snapshot.parent
        # A parent that was removed while we listed does not hide its former children.
        children[parent if parent in by_name else ""].append(branch)
    return children[""]


def as_json(branch: Branch) -> dict[str, Any]:
    """Return the branch as nested objects, each with its `children`."""
    root: dict[str, Any] = {}
    todo = [(branch, root)]
    while todo:
        here, shape = todo.pop()
        shape.update(shapes.record(here.record), children=[{} for _ in here.children])
        todo.extend(zip(here.children, shape["children"], strict=True))
    return root


def draw(branch: Branch) -> Tree:
    """Return the branch as a drawing for a terminal."""
    from rich.tree import Tree

    root = Tree(_line(branch.record))
    todo = [(branch, root)]
    while todo:
        here, drawn = todo.pop()
        todo.extend((child, drawn.add(_line(child.record))) for child in here.children)
    return root


def _line(it: Record) -> Text:
    from rich.text import Text

    line = Text(output.printable(output.fitted(it.snapshot.name)), style=_STYLES[it.snapshot.kind])
    words = [it.snapshot.kind.word]
    if it.usage is not None and it.snapshot.kind is not Kind.VIEW:
        words.append(output.size(it.usage.size_bytes))
    line.append(f"  {', '.join(words)}", style="dim")
    for target in it.mounted_at:
        line.append(f"  mounted at {output.printable(str(target))}", style="yellow")
    return line
