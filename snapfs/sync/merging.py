"""Merging two states of an item, field by field. Pure.

Where one side's state of a field came out of the other's, it is the newer one and counts. Where
both changed it apart, the three-way rule decides with what both are known to have had last; what
that calls a conflict a policy decides, and it is reported with all three values.

What is decided gets a version that has both pasts in it, so whoever hears of it later knows that it
is newer than either. What is left undecided keeps its versions.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import msgspec

from snapfs.sync import versions
from snapfs.sync.items import GONE, SET, SETTLED, Cell, Item
from snapfs.sync.threeway import Last, Outcome, Policy, Unknown, Value, decide, three_way
from snapfs.sync.versions import NOTHING, Order, Version


class Conflict(msgspec.Struct, frozen=True, array_like=True):
    """A field that both sides changed apart, and who won: "ours", "theirs", or "" for nobody."""

    kind: str
    id: str
    field: str
    ours: Cell
    theirs: Cell
    last: str | None
    """What both are known to have had; None for absent or unknown."""
    winner: str

    @property
    def key(self) -> str:
        return f"{self.kind}/{self.id}/{self.field}"


class Dot(NamedTuple):
    """A change that a store makes."""

    store: str
    number: int


class Merged(NamedTuple):
    """What an item is to be, on both sides, and what was in conflict."""

    cells: dict[str, Cell]
    """For each field; of one that is left undecided, there is none."""
    conflicts: tuple[Conflict, ...]


Rule = Callable[[Value, Value, Last], Outcome]
"""What becomes of a field that was changed apart: theirs, ours, last."""

NO_RULES: Mapping[str, Rule] = {}


def merge(
    theirs: Item,
    ours: Item,
    last: Mapping[str, Value] | None,
    policy: Policy,
    dot: Dot,
    rules: Mapping[str, Rule] = NO_RULES,
) -> Merged:
    """Merge two states of an item.

    `last` has the values that both are known to have had, None when there were none. `rules` are
    those of fields for which three_way will not do, and whose conflicts no policy decides.
    """
    cells: dict[str, Cell] = {}
    conflicts: list[Conflict] = []
    for name in sorted(theirs.cells.keys() | ours.cells.keys()):
        known: Last = Unknown.UNKNOWN if last is None else last.get(name)
        there, here = theirs.cell(name), ours.cell(name)
        outcome = _outcome(there, here, known, rules.get(name, three_way))
        if outcome is Outcome.CONFLICT:
            outcome = decide(outcome, Policy.FAIL if name in rules else _policy(ours, name, policy))
            conflicts.append(_conflict(ours, name, here, there, known, outcome))
        if outcome is not Outcome.CONFLICT:
            cells[name] = _merged(there, here, outcome, dot)
    return _with_deletion(Merged(cells, tuple(conflicts)), theirs, ours, policy, dot)


def _outcome(theirs: Cell, ours: Cell, last: Last, rule: Rule) -> Outcome:
    match versions.compare(ours.version, theirs.version):
        case Order.BEFORE:
            return Outcome.TAKE
        case Order.AFTER:
            return Outcome.GIVE
        case Order.SAME | Order.APART:
            return (
                Outcome.SAME if ours.value == theirs.value else rule(theirs.value, ours.value, last)
            )


def _policy(item: Item, name: str, policy: Policy) -> Policy:
    """Return what decides a conflict of a field: of the deletion of a set, a person alone.

    What goes with a set comes back from nowhere; a branch's snapshots are still its set's.
    """
    return Policy.FAIL if (item.kind, name) == (SET, GONE) else policy


def _merged(theirs: Cell, ours: Cell, outcome: Outcome, dot: Dot) -> Cell:
    joined = versions.join(ours.version, theirs.version)
    chosen = theirs if outcome is Outcome.TAKE else ours
    is_newer = chosen.version == joined and theirs.version != ours.version
    if outcome is Outcome.SAME or is_newer:
        return Cell(chosen.value, joined)
    return Cell(chosen.value, versions.change(joined, *dot))


def _conflict(
    item: Item, name: str, ours: Cell, theirs: Cell, last: Last, outcome: Outcome
) -> Conflict:
    winner = {Outcome.TAKE: "theirs", Outcome.GIVE: "ours"}.get(outcome, "")
    known = None if isinstance(last, Unknown) else last
    return Conflict(item.kind, item.id, name, ours, theirs, known, winner)


def _with_deletion(merged: Merged, theirs: Item, ours: Item, policy: Policy, dot: Dot) -> Merged:
    """Let a deletion meet what the other side changed without knowing of it: a conflict."""
    if theirs.is_gone == ours.is_gone or GONE not in merged.cells:
        return merged
    gone, kept = (theirs, ours) if theirs.is_gone else (ours, theirs)
    if knows_of_deletion(kept, gone) or not changed_apart(kept, gone):
        return merged
    return contest_deletion(merged, theirs, ours, policy, dot)


def contest_deletion(merged: Merged, theirs: Item, ours: Item, policy: Policy, dot: Dot) -> Merged:
    """Return a merge in which one side deleted what the other changed in ignorance of that."""
    decided = decide(Outcome.CONFLICT, _policy(ours, GONE, policy))
    conflict = _conflict(ours, GONE, _sight(ours), _sight(theirs), None, decided)
    conflicts = (*merged.conflicts, conflict)
    if decided is Outcome.CONFLICT:
        return Merged({}, conflicts)
    winner = theirs if decided is Outcome.TAKE else ours
    joined = versions.join(theirs.cell(GONE).version, ours.cell(GONE).version)
    cell = Cell(winner.cell(GONE).value, versions.change(joined, *dot))
    return Merged({**merged.cells, GONE: cell}, conflicts)


def _sight(item: Item) -> Cell:
    """Return whether an item is deleted, with all that who decides on that has in sight."""
    cell = item.cell(GONE)
    return cell if item.is_gone else Cell(cell.value, item.past)


def knows_of_deletion(kept: Item, gone: Item) -> bool:
    """Say whether an item is kept by somebody who had seen that it was deleted."""
    return versions.compare(kept.cell(GONE).version, gone.cell(GONE).version) is Order.AFTER


def changed_apart(kept: Item, gone: Item, settled: Version = NOTHING) -> bool:
    """Say whether an item has changes that whoever deleted it, or its set, had not seen.

    `settled` is what was in sight when somebody settled for the deletion of its set.
    """
    known = versions.join(settled, gone.cell(SETTLED).version)
    return any(
        versions.compare(cell.version, versions.join(gone.cell(name).version, known))
        in (Order.AFTER, Order.APART)
        for name, cell in kept.cells.items()
        if name not in (GONE, SETTLED)
    )
