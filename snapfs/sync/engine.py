"""A sync of one set with one remote, from beginning to end.

    look at both sides -> plan -> conflicts that are decided, as rows -> the set's and snapshots'
    own fields -> branch by branch: layers, history, the change there, the change here -> what both
    sides have now, and open conflicts, as rows

Everything may be cut short anywhere, on either side: layers that came are found by the next sync,
a value that loses is in a row before it is replaced (a later look finds both sides at peace),
each change is whole or not there, and a change carries the versions that it was made from, so that
a side that was changed meanwhile says "moved" and a new round looks at both sides again. What both
sides had last is recorded only when both have said that they have it.
"""

from __future__ import annotations

import threading
import uuid
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial

import msgspec
import structlog

from snapfs.model import SnapfsError, Unavailable
from snapfs.store import ReadTx, WriteTx
from snapfs.sync import applying, conflicts, planning, remotes
from snapfs.sync.items import GONE, NO_CELL, SET, Tree
from snapfs.sync.merging import Conflict
from snapfs.sync.peer import DONE, Answer, Peer
from snapfs.sync.planning import BranchPlan, Change, Direction, Fate, Layer, Plan
from snapfs.sync.replica import Replica
from snapfs.sync.schema import LASTS, LastBody
from snapfs.sync.threeway import Policy, Value
from snapfs.transfer import Packed
from snapfs.volumes import Note, branches
from snapfs.volumes.errors import VolumeSetNotFound
from snapfs.volumes.ids import BranchId, VolumeSetId, VolumeSnapshotId, short

log = structlog.get_logger(__name__)

ROUNDS = 8
"""How often a sync looks anew at sides that change under it, before it gives up for now."""


class Progress(msgspec.Struct, frozen=True, array_like=True):
    """How far the data of a branch has come."""

    branch: str
    to_here: bool
    layer: int
    """Which of `layers` it is, from 1."""
    layers: int
    chunks: int
    """Of those of this layer that have to travel, how many have."""
    chunks_wanted: int
    sent_bytes: int
    """Of this layer, as they travelled."""


Say = Callable[[Progress], None]


class BranchReport(msgspec.Struct, frozen=True, array_like=True):
    """What became of a branch."""

    id: str
    name: str
    fate: str
    """A value of planning.Fate, or "failed"."""
    message: str = ""

    @property
    def is_well(self) -> bool:
        return self.fate not in _ILL


FAILED = "failed"
_CHANGED = frozenset(it.value for it in (Fate.PULLED, Fate.PUSHED, Fate.MERGED, Fate.DELETED))
_ILL = frozenset((FAILED, Fate.DIVERGED.value, Fate.NAME_TAKEN.value, Fate.CONFLICT.value))


@dataclass
class Report:
    """What a sync did."""

    set_id: VolumeSetId
    remote: str
    branches: list[BranchReport] = field(default_factory=list)
    conflicts: list[Conflict] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Changes of the set or of snapshots that a side would not do."""
    changes: list[str] = field(default_factory=list)
    """Those that were done, for people."""
    layers: int = 0
    sent_bytes: int = 0
    received_bytes: int = 0

    @property
    def is_well(self) -> bool:
        """Whether both sides now have the same of all that the direction allows."""
        is_open = any(not it.winner for it in self.conflicts)
        return not self.refused and not is_open and all(it.is_well for it in self.branches)


class _Moved(Exception):
    """A side changed while a round went on."""


@dataclass(frozen=True, slots=True)
class Request:
    """What to sync, and how."""

    set_id: VolumeSetId
    direction: Direction
    policy: Policy = Policy.THEIRS
    author: str = ""


class Engine:
    """The syncs of one root. Thread-safe; one sync of a set at a time."""

    def __init__(self, here: Replica) -> None:
        self.here = here
        self._lock = threading.Lock()
        self._under_way: set[VolumeSetId] = set()

    def sync(
        self, remote: str, there: Peer, request: Request, say: Say = lambda _it: None
    ) -> Report:
        """Sync a set with a remote that answers through `there`.

        Raises VolumeSetNotFound when neither side has it, FailedPrecondition when another store
        answers than before, Unavailable when the connection is lost or a sync of the set is under
        way; what was done until then stays, and another sync goes on from there.
        """
        store = there.hello().store
        self.here.store.update(lambda tx: remotes.recognise(tx, remote, store))
        with self._only(request.set_id):
            return _Sync(self.here, there, remote, request, say).run()

    @contextmanager
    def _only(self, set_id: VolumeSetId) -> Iterator[None]:
        with self._lock:
            if set_id in self._under_way:
                raise Unavailable(f"volume set {set_id} is being synced already; try again later")
            self._under_way.add(set_id)
        try:
            yield
        finally:
            with self._lock:
                self._under_way.discard(set_id)


class _Sync:
    def __init__(self, here: Replica, there: Peer, remote: str, request: Request, say: Say) -> None:
        self._here, self._there, self._remote, self._say = here, there, remote, say
        self._set_id, self._request = request.set_id, request
        words = f"{request.direction.value} with {remote}"
        self._why_here = Note(author=request.author, reason=words)
        self._why_there = Note(author=request.author, reason=request.direction.value)
        self._report = Report(request.set_id, remote)
        self._carried: set[tuple[str, bool]] = set()
        self._earlier: dict[str, BranchReport] = {}
        """What became of branches in rounds that had to begin anew."""
        self._patience = ROUNDS // 2
        """How often it looks anew because a name may have become free."""
        self._last = LastRows(here, remote, request.set_id)

    def run(self) -> Report:
        for _ in range(ROUNDS):
            try:
                self._round()
            except _Moved:
                continue
            return self._report
        raise Unavailable(
            f"volume set {self._set_id} changed under each of {ROUNDS} attempts; try again later"
        )

    def _round(self) -> None:
        report = self._report
        self._earlier |= {it.id: it for it in report.branches if it.fate in _CHANGED}
        report.branches, report.refused = [], []
        theirs, ours = self._there.describe(self._set_id), self._here.describe(self._set_id)
        if theirs.set_item is None and ours.set_item is None:
            raise VolumeSetNotFound(f"volume set {self._set_id} exists neither here nor there")
        plan = self._plan(theirs, ours)
        self._keep(plan.conflicts)
        agreed = dict(plan.common)
        for change in self._do(plan.there, plan.here):
            agreed.pop(change.item.key, None)
        waiting = [it for it in plan.branches if it.fate is Fate.NAME_TAKEN]
        others = [it for it in plan.branches if it.fate is not Fate.NAME_TAKEN]
        failed = {it.id for it in others if not self._branch(it)}
        if waiting and self._may_be_free(it for it in others if it.id not in failed):
            raise _Moved
        failed |= {it.id for it in waiting if not self._branch(it)}
        for identity in failed:
            agreed.pop(f"branch/{identity}", None)
        self._settle(plan, agreed)

    def _may_be_free(self, done: Iterable[BranchPlan]) -> bool:
        """Say whether a name that was taken may be free by now; not for ever."""
        has_changed = any(it.here or it.there for it in done)
        self._patience -= has_changed
        return has_changed and self._patience >= 0

    def _plan(self, theirs: Tree, ours: Tree) -> Plan:
        request = self._request
        known = self._last.read()
        return planning.plan(
            theirs, ours, known, request.policy, request.direction, self._here.dot()
        )

    def _keep(self, found: Sequence[Conflict]) -> None:
        """Record what is decided, and report it with what earlier rounds have decided."""
        keys = {it.key for it in found}
        earlier = (it for it in self._report.conflicts if it.winner and it.key not in keys)
        self._report.conflicts = [*earlier, *found]
        if decided := [it for it in found if it.winner]:
            keep = partial(conflicts.keep, set_id=self._set_id, remote=self._remote, found=decided)
            self._here.store.update(keep)

    def _do(self, there: Iterable[Change], here: Iterable[Change]) -> Iterator[Change]:
        """Do changes, there first; yield those that were refused."""
        there, here = list(there), list(here)
        for number, (change, answer) in enumerate(self._answers(there, here)):
            if answer.state != DONE.state:
                self._report.refused.append(answer.message)
                yield change
            elif said := _said(change, "there" if number < len(there) else "here"):
                self._report.changes.append(said)

    def _answers(self, there: list[Change], here: list[Change]) -> list[tuple[Change, Answer]]:
        answered = []
        if there:
            answers = self._there.apply(self._set_id, there, self._why_there)
            answered += list(zip(there, answers, strict=True))
        if here:
            answers = self._here.apply(self._set_id, here, self._why_here)
            answered += list(zip(here, answers, strict=True))
        if any(answer.state == "moved" for _, answer in answered):
            raise _Moved
        return answered

    # One branch

    def _branch(self, branch: BranchPlan) -> bool:
        """Bring a branch as far as it goes and report it; say whether both sides have it now."""
        fate, message = branch.fate.value, ""
        try:
            self._carry(branch)
            if branch.fate in (Fate.DIVERGED, Fate.NAME_TAKEN):
                message = self._keep_apart(branch)
            else:
                self._finish(branch)
        except _Refused as refused:
            fate, message = FAILED, str(refused)
        except (Unavailable, _Moved):
            raise
        except (SnapfsError, OSError) as error:
            fate, message = FAILED, str(error)
        except Exception as error:  # what the other side says is to stop one branch at most
            log.exception("sync.branch_failed", branch=branch.id, remote=self._remote)
            fate, message = FAILED, f"unexpected {type(error).__name__}; see the service's log"
        report = BranchReport(branch.id, branch.name, fate, message)
        if branch.fate is Fate.SAME and fate != FAILED:
            report = self._earlier.get(branch.id, report)
        self._report.branches.append(report)
        return fate != FAILED

    def _carry(self, branch: BranchPlan) -> None:
        for number, layer in enumerate(branch.layers, 1):
            if (layer.snapshot, layer.to_here) not in self._carried:
                say = partial(self._tell, branch, layer, number)
                self._carry_one(layer, say)
                self._carried.add((layer.snapshot, layer.to_here))
                self._report.layers += 1

    def _carry_one(self, layer: Layer, say: Callable[[int, int, int], None]) -> None:
        source, sink = (self._there, self._here) if layer.to_here else (self._here, self._there)
        snapshot = VolumeSnapshotId(layer.snapshot)
        parent = VolumeSnapshotId(layer.parent) if layer.parent else None
        offer = source.offer(self._set_id, snapshot)

        def chunks(wanted: list[bytes]) -> Iterator[Packed]:
            sent = 0
            say(0, len(wanted), 0)
            for count, packed in enumerate(source.chunks(self._set_id, snapshot, wanted), 1):
                sent += len(packed.data)
                self._count(layer, len(packed.data))
                yield packed
                say(count, len(wanted), sent)

        def manifest() -> Iterator[bytes]:
            for part in source.manifest(self._set_id, snapshot):
                self._count(layer, len(part))
                yield part

        sink.receive(self._set_id, snapshot, parent, offer, manifest(), chunks)

    def _count(self, layer: Layer, size_bytes: int) -> None:
        if layer.to_here:
            self._report.received_bytes += size_bytes
        else:
            self._report.sent_bytes += size_bytes

    def _tell(
        self, branch: BranchPlan, layer: Layer, number: int, done: int, wanted: int, sent: int
    ) -> None:
        self._say(
            Progress(branch.name, layer.to_here, number, len(branch.layers), done, wanted, sent)
        )

    def _finish(self, branch: BranchPlan) -> None:
        self._exchange_history(branch)
        there = [branch.there] if branch.there else []
        here = [branch.here] if branch.here else []
        for _, answer in self._answers(there, here):
            if answer.state != DONE.state:
                raise _Refused(answer.message)
        self._attach(branch)
        if self._here.store.update(partial(self._end, branch=branch)):
            self._exchange_history(branch)

    def _exchange_history(self, branch: BranchPlan) -> None:
        wanted = [BranchId(branch.id)]
        direction = self._request.direction
        if direction.changes_here and (theirs := self._there.facts(self._set_id, wanted)):
            self._here.merge_facts(theirs)
        if direction.changes_there and (ours := self._here.facts(self._set_id, wanted)):
            self._there.merge_facts(ours)

    def _attach(self, branch: BranchPlan) -> None:
        """Say that data came which no change of the branch says."""
        for side, to_here, change in (
            (self._here, True, branch.here),
            (self._there, False, branch.there),
        ):
            tips = [VolumeSnapshotId(it.snapshot) for it in branch.layers if it.to_here == to_here]
            if tips and change is None:
                side.attach(self._set_id, tips[-1:])

    # What is kept apart

    def _keep_apart(self, branch: BranchPlan) -> str:
        """Keep their tip as <remote>/<name>; return what a report says of it."""
        name = f"{self._remote}/{branch.name or branch.id[:8]}"
        if not self._request.direction.changes_here:
            return "fetch it with pull, then merge or choose with `snapfs conflict resolve`"
        track = partial(self._track, branch=branch, name=name)
        self._here.store.update(track)
        return f"theirs is kept as {name}"

    def _track(self, tx: WriteTx, branch: BranchPlan, name: str) -> None:
        tip = VolumeSnapshotId(branch.their_tip)
        applying.bring(tx, self._set_id, branch.their_line)
        applying.attach(tx, self._set_id, tip)
        new = BranchId(str(uuid.uuid5(uuid.UUID(self._set_id), name)))
        applying.track(tx, self._set_id, name, tip, new, self._why_here)

    def _end(self, tx: WriteTx, branch: BranchPlan) -> bool:
        """Leave a branch that is at peace in order; say whether its history has a new entry.

        What was kept of theirs goes, unless a volume is on it. A history that ends otherwise than
        the branch, because a move that lost was the later one, gets an entry of what won.
        """
        row = branches.named(tx, self._set_id, f"{self._remote}/{branch.name or branch.id[:8]}")
        if row is not None and not applying.is_in_use(tx, row):
            branches.remove(tx, row, self._why_here)
        return applying.affirm(tx, self._set_id, BranchId(branch.id), self._why_here)

    # The end

    def _settle(self, plan: Plan, agreed: dict[str, dict[str, Value]]) -> None:
        found = plan.conflicts
        still_open = [it for it in found if not it.winner]

        def settle(tx: WriteTx) -> None:
            conflicts.keep(tx, self._set_id, self._remote, still_open)
            conflicts.forget(tx, self._set_id, self._remote, found, plan.common)
            conflicts.forget_deleted(tx, self._set_id)
            self._last.write(tx, agreed)

        self._here.store.update(settle)


def _said(change: Change, where: str) -> str:
    """Return what a change of a set or a snapshot did, in words; empty when it is a new one."""
    item = change.item
    what = "set" if item.kind == SET else f"{item.kind} {short(item.id)}"
    names = sorted(
        name
        for name, cell in item.cells.items()
        if cell.value != change.seen.get(name, NO_CELL).value
    )
    if item.is_gone and GONE in names:
        return f"{what}: deleted {where}"
    if not names or all(cell == NO_CELL for cell in change.seen.values()):
        return ""
    return f"{what}: {', '.join(names)} changed {where}"


class _Refused(Exception):
    """A side would not do a change."""


class LastRows:
    """What both sides of a remote and a set had last, by key of item."""

    def __init__(self, here: Replica, remote: str, set_id: VolumeSetId) -> None:
        self._store = here.store
        self._scope = f"{remote}/{set_id}"

    def read(self) -> dict[str, dict[str, Value]]:
        """Return the values of every item."""
        with self._store.view() as tx:
            return _read(tx, self._scope)

    def write(self, tx: WriteTx, agreed: dict[str, dict[str, Value]]) -> None:
        """Record what both sides have said that they have."""
        for key, values in agreed.items():
            row = tx.get(LASTS, self._scope, key)
            body = LastBody(values)
            if row is None:
                tx.create(LASTS, self._scope, key, body)
            elif row.body != body:
                tx.update(row, body)


def _read(tx: ReadTx, scope: str) -> dict[str, dict[str, Value]]:
    return {row.name: row.body.values for row in tx.rows(LASTS, scope)}
