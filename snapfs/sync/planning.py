"""What a sync of a set is to do, from what both sides have. Pure.

Nothing here moves anything: a plan has changes for either side, each with the cells that it was
made from, so that a side that has moved meanwhile refuses it; the layers that have to come first;
and for each branch what became of it. Branches are planned one by one: one that has diverged, or
whose name is taken, is reported, and the others go on.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import msgspec

from snapfs.sync import merging, versions
from snapfs.sync.items import BRANCH, GONE, NAME, SET, SETTLED, SNAPSHOT, TIP, Cell, Item, Tree
from snapfs.sync.lineage import Lineage
from snapfs.sync.merging import Conflict, Dot, Merged
from snapfs.sync.threeway import Policy, Value


class Direction(enum.Enum):
    """Which side may change."""

    SYNC = "sync"
    PUSH = "push"
    PULL = "pull"

    @property
    def changes_here(self) -> bool:
        return self is not Direction.PUSH

    @property
    def changes_there(self) -> bool:
        return self is not Direction.PULL


class Fate(enum.Enum):
    """What became of a branch."""

    SAME = "up to date"
    PULLED = "pulled"
    PUSHED = "pushed"
    MERGED = "merged"
    DIVERGED = "diverged"
    NAME_TAKEN = "name taken"
    DELETED = "deleted"
    CONFLICT = "conflict"
    AHEAD = "ahead"
    """Changed here only, and nothing was pushed."""
    BEHIND = "behind"
    """Changed there only, and nothing was pulled."""


class Change(msgspec.Struct, frozen=True, array_like=True):
    """What one side is to do to one item, if its cells are still those that were seen."""

    item: Item
    """With the cells that it is to have, of those that change."""
    seen: dict[str, Cell]
    snapshots: tuple[Item, ...] = ()
    """Of a branch: what leads to its tip and that side lacks, oldest first."""
    sight: dict[str, dict[str, Cell]] = {}
    """Of a deletion: by key of item, the cells of all that goes with it."""


@dataclass(frozen=True, slots=True)
class Layer:
    """A snapshot whose data one side lacks and the other has."""

    snapshot: str
    parent: str
    """Empty for a root."""
    to_here: bool
    size_bytes: int = 0


@dataclass(frozen=True, slots=True)
class BranchPlan:
    """One branch: what is to be done on either side, and what it is called in a report."""

    id: str
    name: str
    fate: Fate
    here: Change | None = None
    there: Change | None = None
    layers: tuple[Layer, ...] = ()
    their_tip: str = ""
    """Of one that has diverged or whose name is taken: what is kept as <remote>/<name>."""
    their_line: tuple[Item, ...] = ()
    """What leads to their tip and is not here, oldest first."""


@dataclass(frozen=True, slots=True)
class Plan:
    """All that a sync of a set is to do."""

    here: tuple[Change, ...]
    """Changes of the set and of snapshots that both have, on this side."""
    there: tuple[Change, ...]
    branches: tuple[BranchPlan, ...]
    conflicts: tuple[Conflict, ...]
    common: dict[str, dict[str, Value]]
    """By key of item: what both sides have when all of this is done."""


Known = Mapping[str, Mapping[str, Value]]
"""By key of item, the values that both sides are known to have had last."""


def plan(
    theirs: Tree, ours: Tree, known: Known, policy: Policy, direction: Direction, dot: Dot
) -> Plan:
    """Return what to do; `dot` is the change of this store by which conflicts are decided."""
    return _Planning(theirs, ours, known, policy, direction, dot).run()


class _Planning:
    def __init__(
        self,
        theirs: Tree,
        ours: Tree,
        known: Known,
        policy: Policy,
        direction: Direction,
        dot: Dot,
    ) -> None:
        self.theirs, self.ours, self.known = theirs, ours, known
        self.policy, self.direction, self.dot = policy, direction, dot
        self.their_items, self.our_items = theirs.by_key, ours.by_key
        self.their_snapshots = theirs.of_kind(SNAPSHOT)
        self.our_snapshots = ours.of_kind(SNAPSHOT)
        self.lineage = Lineage(self.their_snapshots, self.our_snapshots)
        self.conflicts: list[Conflict] = []
        self.common: dict[str, dict[str, Value]] = {}
        self.here: list[Change] = []
        self.there: list[Change] = []

    def run(self) -> Plan:
        is_gone = self._set()
        branches: list[BranchPlan] = []
        if not is_gone:
            self._snapshots()
            branches.extend(self._branches())
        return Plan(
            tuple(self.here),
            tuple(self.there),
            tuple(branches),
            tuple(self.conflicts),
            self.common,
        )

    def _set(self) -> bool:
        """Plan the set's own fields; say whether it is, or stays, deleted on a side."""
        key = f"{SET}/{self.ours.set_id}"
        theirs, ours = self._both(key)
        merged = self._merge(theirs, ours)
        if theirs.is_gone != ours.is_gone and GONE in merged.cells and not _has_contest(merged):
            kept, gone = (ours, theirs) if theirs.is_gone else (theirs, ours)
            trees = (self.ours, self.theirs) if theirs.is_gone else (self.theirs, self.ours)
            if not merging.knows_of_deletion(kept, gone) and _grew_apart(
                *trees, gone.cell(SETTLED).version
            ):
                merged = merging.contest_deletion(merged, theirs, ours, self.policy, self.dot)
        self.conflicts.extend(map(self._in_sight, merged.conflicts))
        self._change(merged, theirs, ours)
        return _is_gone(merged, theirs, ours)

    def _in_sight(self, conflict: Conflict) -> Conflict:
        """Add to a contested deletion of the set what its branches are where it is."""
        if conflict.field != GONE:
            return conflict
        ours, theirs = (
            cell if cell.value else Cell(None, versions.join(cell.version, _past(tree)))
            for cell, tree in ((conflict.ours, self.ours), (conflict.theirs, self.theirs))
        )
        return msgspec.structs.replace(conflict, ours=ours, theirs=theirs)

    def _snapshots(self) -> None:
        """Plan the fields of snapshots that both sides have; others come with branches."""
        for identity in self.their_snapshots.keys() & self.our_snapshots.keys():
            theirs, ours = self.their_snapshots[identity], self.our_snapshots[identity]
            if theirs.cells != ours.cells:
                merged = self._merge(theirs, ours)
                self._note(merged)
                self._change(merged, theirs, ours)

    def _branches(self) -> Iterator[BranchPlan]:
        names = _Names(self.theirs, self.ours)
        keys = {
            it.key for tree in (self.theirs, self.ours) for it in tree.items if it.kind == BRANCH
        }
        for key in sorted(keys):
            yield self._branch(key, names)

    def _branch(self, key: str, names: _Names) -> BranchPlan:
        theirs, ours = self._both(key)
        shown = ours.value(NAME) or theirs.value(NAME)
        merged = self._with_known_tip(self._merge(theirs, ours), theirs, ours)
        if taken := names.clash(merged, theirs, ours):
            return self._kept_apart(ours.id, shown, Fate.NAME_TAKEN, taken)
        self._note(merged)
        is_kept = not theirs.is_gone and not ours.is_gone
        if is_kept and any(it.field == TIP and not it.winner for it in merged.conflicts):
            return self._kept_apart(ours.id, shown, Fate.DIVERGED, theirs.value(TIP))
        if any(not it.winner for it in merged.conflicts):
            fate = Fate.CONFLICT
        else:
            fate = self._fate(merged, theirs, ours)
        here, there = self._changes(merged, theirs, ours)
        is_gone = _is_gone(merged, theirs, ours)
        here = here and self._with_snapshots(here, self.our_snapshots, is_gone=is_gone)
        there = there and self._with_snapshots(there, self.their_snapshots, is_gone=is_gone)
        layers = [
            *self._layers(merged, is_gone=is_gone, to_here=True),
            *self._layers(merged, is_gone=is_gone, to_here=False),
        ]
        return BranchPlan(ours.id, shown, fate, here, there, tuple(layers))

    def _with_known_tip(self, merged: Merged, theirs: Item, ours: Item) -> Merged:
        """Let a branch that one side deleted and the other keeps have the tip of who keeps it.

        Whoever deleted it may have moved it before, to what neither side has any more.
        """
        gone, tip = merged.cells.get(GONE), merged.cells.get(TIP)
        if theirs.is_gone == ours.is_gone or tip is None or (gone and gone.value is not None):
            return merged
        kept = ours if theirs.is_gone else theirs
        if tip.value == kept.value(TIP):
            return merged
        cell = Cell(kept.value(TIP), versions.change(tip.version, *self.dot))
        return Merged({**merged.cells, TIP: cell}, merged.conflicts)

    def _kept_apart(self, identity: str, name: str, fate: Fate, their_tip: str) -> BranchPlan:
        """Plan nothing for a branch but to keep their tip beside ours, if this side may change."""
        if not self.direction.changes_here:
            return BranchPlan(identity, name, fate, their_tip=their_tip)
        line = self.lineage.down_to(their_tip)
        lacking = tuple(it for it in line if it.id not in self.our_snapshots)
        layers = tuple(self._lacking(their_tip, to_here=True))
        return BranchPlan(
            identity, name, fate, layers=layers, their_tip=their_tip, their_line=lacking
        )

    def _fate(self, merged: Merged, theirs: Item, ours: Item) -> Fate:
        is_gone = merged.cells.get(GONE)
        new_here = _differs(merged, ours)
        new_there = _differs(merged, theirs)
        if is_gone and is_gone.value is not None and (new_here or new_there):
            return Fate.DELETED
        if new_here and new_there:
            return Fate.MERGED
        if new_here:
            return Fate.PULLED if self.direction.changes_here else Fate.BEHIND
        if new_there:
            return Fate.PUSHED if self.direction.changes_there else Fate.AHEAD
        return Fate.SAME

    def _with_snapshots(
        self, change: Change, present: Mapping[str, Item], *, is_gone: bool
    ) -> Change:
        tip = change.item.cell(TIP).value
        if not tip or is_gone:
            return change
        lacking = tuple(it for it in self.lineage.down_to(tip) if it.id not in present)
        return msgspec.structs.replace(change, snapshots=lacking)

    def _layers(self, merged: Merged, *, is_gone: bool, to_here: bool) -> Iterator[Layer]:
        """Yield the layers that a branch needs on a side, where its tip is to be there."""
        allowed = self.direction.changes_here if to_here else self.direction.changes_there
        tip = merged.cells.get(TIP)
        if not allowed or is_gone or tip is None or not tip.value:
            return
        yield from self._lacking(tip.value, to_here=to_here)

    def _lacking(self, tip: str, *, to_here: bool) -> Iterator[Layer]:
        source, sink = self.their_snapshots, self.our_snapshots
        if not to_here:
            source, sink = sink, source
        for item in self.lineage.down_to(tip):
            has = item.id in sink and sink[item.id].has_data
            if not has and item.id in source and source[item.id].has_data:
                yield Layer(item.id, item.parent, to_here)

    # Merging one item

    def _both(self, key: str) -> tuple[Item, Item]:
        """Return an item as either side has it; one that a side has not is empty there."""
        theirs, ours = self.their_items.get(key), self.our_items.get(key)
        some = theirs or ours
        if some is None:
            kind, _, identity = key.partition("/")
            some = Item(kind, identity, {})
        empty = msgspec.structs.replace(some, cells={}, has_data=False)
        theirs, ours = theirs or empty, ours or empty
        return _with_fixed(theirs, ours), _with_fixed(ours, theirs)

    def _merge(self, theirs: Item, ours: Item) -> Merged:
        rules = merging.NO_RULES
        if ours.kind == BRANCH and not theirs.is_gone and not ours.is_gone:
            rules = {TIP: self.lineage.tips}
        last = self.known.get(ours.key)
        if theirs.is_gone and ours.is_gone:  # nobody minds what a deleted thing was
            merged = merging.merge(theirs, ours, last, Policy.THEIRS, self.dot)
            return Merged(merged.cells, ())
        return merging.merge(theirs, ours, last, self.policy, self.dot, rules)

    def _note(self, merged: Merged) -> None:
        self.conflicts.extend(merged.conflicts)

    def _change(self, merged: Merged, theirs: Item, ours: Item) -> None:
        here, there = self._changes(merged, theirs, ours)
        if here:
            self.here.append(here)
        if there:
            self.there.append(there)

    def _changes(
        self, merged: Merged, theirs: Item, ours: Item
    ) -> tuple[Change | None, Change | None]:
        """Return what each side is to do, as far as the direction allows it."""
        to_here = _news(merged, ours) if self.direction.changes_here else {}
        to_there = _news(merged, theirs) if self.direction.changes_there else {}
        if self.direction is Direction.PUSH:
            to_there = {k: v for k, v in to_there.items() if v.value == ours.cell(k).value}
        modified_ns = max(theirs.modified_ns, ours.modified_ns)
        self.common[ours.key] = _common(_after(theirs.cells, to_there), _after(ours.cells, to_here))
        return (
            _as_change(self.ours, ours, to_here, modified_ns),
            _as_change(self.theirs, theirs, to_there, modified_ns),
        )


class _Names:
    """Which branches of either side have which name."""

    def __init__(self, theirs: Tree, ours: Tree) -> None:
        self._theirs, self._ours = _by_name(theirs), _by_name(ours)

    def clash(self, merged: Merged, theirs: Item, ours: Item) -> str:
        """Return their tip when a branch cannot have the name that it is to have; else nothing.

        The name is some other branch's on the side where it would be new.
        """
        name = merged.cells.get(NAME)
        if name is None or not name.value or _is_gone(merged, theirs, ours):
            return ""
        for mine, others in ((ours, self._ours), (theirs, self._theirs)):
            is_new = mine.is_gone or mine.value(NAME) != name.value
            other = others.get(name.value) if is_new else None
            if other is not None and other.id != mine.id:
                return (theirs if others is self._ours else other).value(TIP)
        return ""


def _by_name(tree: Tree) -> dict[str, Item]:
    return {it.value(NAME): it for it in tree.of_kind(BRANCH).values() if it.value(NAME)}


def _with_fixed(item: Item, other: Item) -> Item:
    """Return an item with what never changes of it, which a side that deleted it has forgotten."""
    if item.created_ns or not other.created_ns:
        return item
    return msgspec.structs.replace(
        item, parent=other.parent, creator=other.creator, created_ns=other.created_ns
    )


def _news(merged: Merged, item: Item) -> dict[str, Cell]:
    return {name: cell for name, cell in merged.cells.items() if item.cell(name) != cell}


def _is_gone(merged: Merged, theirs: Item, ours: Item) -> bool:
    """Say whether an item is deleted after a merge, or on a side where that is undecided."""
    if GONE in merged.cells:
        return merged.cells[GONE].value is not None
    return theirs.is_gone or ours.is_gone


def _differs(merged: Merged, item: Item) -> bool:
    return any(item.cell(name).value != cell.value for name, cell in merged.cells.items())


def _as_change(tree: Tree, item: Item, news: dict[str, Cell], modified_ns: int) -> Change | None:
    if not news:
        return None
    wanted = msgspec.structs.replace(item, cells=news, modified_ns=modified_ns)
    sight = going_with(tree, item.key) if wanted.is_gone else {}
    return Change(wanted, {name: item.cell(name) for name in news}, sight=sight)


def going_with(tree: Tree, key: str) -> dict[str, dict[str, Cell]]:
    """Return the cells of all that goes when an item is deleted: itself, of a set its branches."""
    kind = key.partition("/")[0]
    return {
        it.key: it.cells
        for it in tree.items
        if it.key == key or (kind == SET and it.kind == BRANCH)
    }


def _after(cells: Mapping[str, Cell], news: Mapping[str, Cell]) -> dict[str, Cell]:
    return {**cells, **news}


def _common(one: Mapping[str, Cell], other: Mapping[str, Cell]) -> dict[str, Value]:
    """Return the fields that both sides have the same value of."""
    return {
        name: cell.value
        for name, cell in one.items()
        if name in other and other[name].value == cell.value
    }


def _has_contest(merged: Merged) -> bool:
    return any(it.field == GONE for it in merged.conflicts)


def _past(tree: Tree) -> versions.Version:
    return versions.join_all(it.past for it in tree.of_kind(BRANCH).values())


def _grew_apart(kept: Tree, gone: Tree, settled: versions.Version) -> bool:
    """Say whether a set has branches that whoever deleted it had not seen as they are."""
    seen = {it.id: it for it in gone.items if it.kind == BRANCH}
    return any(
        merging.changed_apart(branch, seen.get(branch.id, Item(BRANCH, branch.id, {})), settled)
        for branch in kept.of_kind(BRANCH).values()
    )
