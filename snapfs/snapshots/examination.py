"""Comparing a root's metadata with its layer directories, and mending what is safe to mend.

A dry run changes nothing. A repair deletes only what is proven to be an orphan: a directory whose
id this store gave out and has no row for. Data that is gone is not invented: a committed snapshot
without its directory is reported, for a person to remove.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeAlias

import msgspec

from snapfs.model import Kind, NotFound, SnapfsError, SnapshotId, Unavailable
from snapfs.snapshots import records
from snapfs.snapshots.erase import erase
from snapfs.snapshots.faults import refusing
from snapfs.snapshots.holding import Holds
from snapfs.snapshots.layers import LayerDirectories, sync_directory
from snapfs.snapshots.records import SnapshotRow, shown
from snapfs.snapshots.recovery import Promises, promise_removal, promises
from snapfs.snapshots.schema import SEQUENCE, SNAPSHOTS, TABLES, SnapshotBody
from snapfs.snapshots.usage import measure
from snapfs.store import ReadStore, ReadTx, Store, Table, WriteTx

ERASE_S = 3600.0
"""Longest time that a repair works at one orphan."""


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is not as it should be."""

    kind: str
    """store, orphan-directory, unknown-directory, missing-directory, stale-intent, broken-chain
    or wrong-usage; or the kind of another room's check (`Checks`)."""
    subject: str
    """The snapshot, directory or intent."""
    message: str
    """What is wrong and what can be done."""
    repaired: bool = False


Checks: TypeAlias = Mapping[str, Callable[[ReadTx, Path], Iterable[str]]]
"""What other rooms verify of their rows: by kind of problem, a function that says what is wrong.

It is given the root for what else of the room is there. It may be asked twice: while a service
changes rows and files, only what is wrong both times is.
"""

NO_CHECKS: Checks = {}


@dataclass(frozen=True, slots=True)
class Report:
    """What a check found; empty is clean."""

    problems: tuple[Problem, ...] = ()

    @property
    def clean(self) -> bool:
        return not self.problems


@dataclass(frozen=True, slots=True)
class _Finding:
    problem: Problem
    mend: Callable[[Store], None] | None = None
    """Mends it, or raises SnapfsError; None where a person must decide."""


def fsck(
    root: Path,
    *,
    tables: Sequence[Table[Any]] = (),
    checks: Checks = NO_CHECKS,
    repair: bool = False,
) -> Report:
    """Check a root that no daemon serves; a repair takes the writer's lock for itself.

    `tables` and `checks` are those of other rooms that keep their rows in the same store.

    Raises NotFound when there is no root, FailedPrecondition when a daemon holds it (repair).
    """
    layers = LayerDirectories(root)
    if not (root / "metadata").is_dir():
        raise NotFound(f"{root} is not a root of snapfs: it has no metadata; give another --root")
    if repair:
        with Store.open(root / "metadata", (*TABLES, *tables)) as store:
            return examine(store, layers, checks=checks, repair=True)
    with ReadStore.open(root / "metadata", (*TABLES, *tables)) as reader:
        return examine(reader, layers, checks=checks, repair=False)


def examine(
    store: Store | ReadStore,
    layers: LayerDirectories,
    *,
    checks: Checks = NO_CHECKS,
    repair: bool,
    under_way: Callable[[], frozenset[int]] | None = None,
) -> Report:
    """Check everything; `under_way` says a serving process's own intents, None when none serves.

    What changes while it is looked at is looked at again before it is reported.
    """
    problems = [Problem("store", f"{it.where} {it.key}".strip(), it.what) for it in store.check()]
    with refusing(f"check {layers.root}"):
        for kind, check in checks.items():
            found = _found_twice(store, layers.root, check)
            problems += [Problem(kind, "", what) for what in found]
        for finding in _Examination(store, layers, under_way).findings():
            problems.append(_settled(finding, store, repair=repair))
    return Report(tuple(problems))


def _found_twice(
    store: Store | ReadStore, root: Path, check: Callable[[ReadTx, Path], Iterable[str]]
) -> list[str]:
    """Return what a check says of a root, and says again of what is there by then."""
    with store.view() as tx:
        found = list(check(tx, root))
    if not found:
        return []
    with store.view() as tx:
        again = set(check(tx, root))
    return [it for it in found if it in again]


def _settled(finding: _Finding, store: Store | ReadStore, *, repair: bool) -> Problem:
    if not repair or finding.mend is None or not isinstance(store, Store):
        return finding.problem
    try:
        finding.mend(store)
    except SnapfsError as error:
        message = f"{finding.problem.message}; mending it failed: {error}"
        return replace(finding.problem, message=message)
    return replace(finding.problem, repaired=True)


class _Examination:
    """One look at a root; directories are listed before the metadata is read."""

    def __init__(
        self,
        store: Store | ReadStore,
        layers: LayerDirectories,
        under_way: Callable[[], frozenset[int]] | None,
    ) -> None:
        self._store = store
        self._layers = layers
        self._present = layers.ids() if layers.path.exists() else []
        with store.view() as tx:
            self._promises = promises(tx)
            self._last_id = tx.last_sequence(SEQUENCE)
            self._rows: Mapping[int, SnapshotRow] = {row.oid: row for row in records.rows(tx)}
        # Asked after the intents were read: what was promised since is not among them.
        self._under_way = under_way() if under_way is not None else None

    def findings(self) -> Iterator[_Finding]:
        yield from self._directories()
        yield from self._intents()
        for row in self._rows.values():
            yield from self._chain(row)
            if row.body.kind != Kind.VIEW.value:
                yield from self._directory(row)

    # Directories without a row

    def _directories(self) -> Iterator[_Finding]:
        known = {row.body.id for row in self._rows.values()}
        for identity in self._present:
            if identity in known or self._explained(identity):
                continue
            path = self._layers.directory(identity)
            if not path.exists():
                continue
            if identity > self._last_id:
                yield _Finding(_unknown(path, "an id that this store never gave out"))
            else:
                problem = Problem(
                    "orphan-directory", str(path), "no snapshot has this directory; delete it"
                )
                yield _Finding(problem, lambda store, it=identity: self._delete(store, it))  # type: ignore[misc]
        for path in self._layers.strangers() if self._layers.path.exists() else ():
            yield _Finding(_unknown(path, "not a layer directory"))

    def _explained(self, identity: SnapshotId) -> bool:
        """Say whether an intent accounts for a directory without a row."""
        return self._promises.covers(identity)

    def _delete(self, store: Store, identity: SnapshotId) -> None:
        """Delete an orphan under a removal intent, after making sure once more that it is one.

        When that fails the intent goes too: the next look then finds the orphan again.
        """

        def promise(tx: WriteTx) -> int | None:
            if records.by_id(tx, identity) is not None:
                return None
            return promise_removal(tx, identity)

        intent = store.update(promise)
        if intent is None:
            return
        try:
            self._erase(identity)
        finally:
            store.update(lambda tx: tx.clear_intent(intent))

    def _erase(self, identity: SnapshotId) -> None:
        path = self._layers.directory(identity)
        with refusing(f"delete {path}"):
            if Holds(self._layers.root).any():
                raise Unavailable(f"{path} is kept while a backup copies layers; try again later")
            erase(path, budget_s=ERASE_S)
            sync_directory(self._layers.path)

    # Intents

    def _intents(self) -> Iterator[_Finding]:
        ours = self._under_way if self._under_way is not None else frozenset()
        for number, reserved in self._promises.creating.items():
            if number not in ours and self._is_promised(number):
                yield self._stale(
                    number,
                    f"ids {reserved.first} to {reserved.last} are reserved for snapshots "
                    "that nobody is creating; the next start undoes them",
                )
        if self._under_way is None:
            for number, identity in self._promises.removing.items():
                yield self._stale(
                    number,
                    f"the removal of {self._layers.directory(identity)} was promised; "
                    "the next start does it",
                )

    def _is_promised(self, number: int) -> bool:
        """Say whether an intent is still there."""
        with self._store.view() as tx:
            return any(number == found for found, _ in tx.intents())

    def _stale(self, number: int, message: str) -> _Finding:
        problem = Problem("stale-intent", f"intent {number}", message)
        return _Finding(problem, lambda store: self._finish(store, number))

    def _finish(self, store: Store, number: int) -> None:
        """Delete what an intent stands for, then the intent."""
        for identity in _doomed(self._promises, number, self._present):
            with store.view() as tx:
                is_live = records.by_id(tx, identity) is not None
            if not is_live:
                self._erase(identity)
        store.update(lambda tx: tx.clear_intent(number))

    # Rows

    def _chain(self, row: SnapshotRow) -> Iterator[_Finding]:
        said, parent = row.body.chain, self._rows.get(row.body.parent)
        if row.body.parent and parent is None:
            message = (
                f"its parent, row {row.body.parent}, does not exist; remove it and make it anew"
            )
            yield _Finding(_about(row, "broken-chain", message))
            return
        if parent is not None and parent.body.kind != Kind.COMMITTED.value:
            message = f"its parent {shown(parent.name)} is not committed; commit that first"
            yield _Finding(_about(row, "broken-chain", message))
        actual = self._walked(row)
        if actual is not None and actual != said:
            message = f"its chain is stored as {said} and by its parents is {actual}"
            yield _Finding(
                _about(row, "broken-chain", message),
                lambda store: self._amend(store, row, chain=actual),
            )

    def _walked(self, row: SnapshotRow) -> tuple[int, ...] | None:
        """Return the chain by following parents, or None when that leads nowhere or in a circle."""
        chain: list[int] = []
        oid, seen = row.body.parent, {row.oid}
        while oid:
            above = self._rows.get(oid)
            if above is None or oid in seen:
                return None
            seen.add(oid)
            chain.append(above.body.id)
            oid = above.body.parent
        return tuple(chain)

    def _directory(self, row: SnapshotRow) -> Iterator[_Finding]:
        upper, work = self._layers.upper(row.body.id), self._layers.work(row.body.id)
        is_active = row.body.kind == Kind.ACTIVE.value
        missing = [path for path in (upper, *((work,) if is_active else ())) if not path.is_dir()]
        if missing and self._still(row):
            yield self._missing(row, missing, upper)
        elif not missing and not is_active:
            yield from self._usage(row, upper)

    def _missing(self, row: SnapshotRow, missing: list[Path], upper: Path) -> _Finding:
        where = " and ".join(map(str, missing))
        if row.body.kind == Kind.COMMITTED.value:
            message = f"{where}: gone, and its data with it; remove the snapshot and its children"
            return _Finding(_about(row, "missing-directory", message))
        lost = "; its changes are lost" if upper in missing else ""
        problem = _about(row, "missing-directory", f"{where}: gone{lost}")
        return _Finding(problem, lambda _store: self._remake(row))

    def _remake(self, row: SnapshotRow) -> None:
        chain = row.body.chain
        with refusing(f"make the layer directory of snapshot {shown(row.name)}"):
            self._layers.make(
                SnapshotId(row.body.id), SnapshotId(chain[0]) if chain else None, exist_ok=True
            )

    def _usage(self, row: SnapshotRow, upper: Path) -> Iterator[_Finding]:
        try:
            found = measure(upper)
        except FileNotFoundError:  # removed meanwhile
            return
        stored = (row.body.size_bytes, row.body.inodes)
        actual = (found.size_bytes, found.inodes)
        if stored != actual and self._still(row):
            message = "usage is stored as {} bytes, {} inodes and is {} bytes, {} inodes".format(
                *stored, *actual
            )
            yield _Finding(
                _about(row, "wrong-usage", message),
                lambda store: self._amend(store, row, size_bytes=actual[0], inodes=actual[1]),
            )

    def _still(self, row: SnapshotRow) -> bool:
        """Say whether the row is as it was read."""
        with self._store.view() as tx:
            now = tx.by_oid(SNAPSHOTS, row.oid)
        return now is not None and now.body == row.body

    def _amend(self, store: Store, row: SnapshotRow, **changes: object) -> None:
        body: SnapshotBody = msgspec.structs.replace(row.body, **changes)
        store.update(lambda tx: tx.update(row, body, expect_mod_rev=row.mod_rev))


def _doomed(left: Promises, number: int, present: list[SnapshotId]) -> Iterator[SnapshotId]:
    """Yield the ids whose directories the intent `number` stands for."""
    if number in left.removing:
        yield left.removing[number]
    elif number in left.creating:
        yield from (identity for identity in present if identity in left.creating[number])


def _about(row: SnapshotRow, kind: str, message: str) -> Problem:
    return Problem(kind, f"snapshot {shown(row.name)}", message)


def _unknown(path: Path, why: str) -> Problem:
    return Problem(
        "unknown-directory", str(path), f"{why}; nothing deletes it: move it away yourself"
    )
