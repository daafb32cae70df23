"""The rules of the metastore, as functions of a transaction.

Owns what may follow what: which parent, which name, which kind, and in which order refusals are
checked (containerd `snapshots/storage`, bolt.go). Pure but for the transaction given: no clock,
no files. Functions that write may be run again by the store, with the same outcome.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any, TypeAlias

import msgspec

from snapfs.filters import Adaptor
from snapfs.model import (
    MAIN_LANE,
    Active,
    AlreadyExists,
    Committed,
    FailedPrecondition,
    InvalidArgument,
    Kind,
    Labels,
    LaneName,
    Mountable,
    NotFound,
    Snapshot,
    SnapshotId,
    Unavailable,
    Usage,
    View,
    check_labels,
    check_name,
)
from snapfs.snapshots.schema import (
    PARENT_EDGE,
    SCOPE,
    SEQUENCE,
    SNAPSHOTS,
    SnapshotBody,
    id_key,
)
from snapfs.store import ReadTx, Row

if TYPE_CHECKING:
    from snapfs.store import WriteTx

SnapshotRow: TypeAlias = Row[SnapshotBody]

_ALL_LABELS = "labels"
_ONE_LABEL = "labels."


def shown(name: str) -> str:
    """Return `name` as a message shows it: quoted, and cut when it is very long."""
    return repr(name) if len(name) <= 120 else f"{name[:120]!r}…"


def checked_name(name: str, what: str) -> str:
    """Return `name`, or raise InvalidArgument when a snapshot cannot be called so."""
    try:
        name.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {shown(name)} is not valid utf-8; rename it") from None
    return check_name(name, what)


def checked_labels(labels: Labels | None) -> dict[str, str]:
    """Return a copy of `labels` less those with an empty value, or raise InvalidArgument."""
    try:
        return {key: value for key, value in check_labels(labels or {}).items() if value}
    except UnicodeEncodeError:
        raise InvalidArgument("a label is not valid utf-8; write it anew") from None


def find(tx: ReadTx, name: str) -> SnapshotRow:
    """Return the row of a key or name, or raise NotFound."""
    row = tx.get(SNAPSHOTS, SCOPE, name)
    if row is None:
        raise NotFound(f"snapshot {shown(name)} does not exist")
    return row


def snapshot(tx: ReadTx, row: SnapshotRow) -> Snapshot:
    """Return what the row says, with the parent's name."""
    body, parent = row.body, ""
    if body.parent:
        above = tx.by_oid(SNAPSHOTS, body.parent)
        parent = above.name if above else ""
    return _snapshot(row, parent)


def _snapshot(row: SnapshotRow, parent: str) -> Snapshot:
    body = row.body
    common: dict[str, Any] = {
        "id": SnapshotId(body.id),
        "name": row.name,
        "parent": parent,
        "parent_ids": tuple(map(SnapshotId, body.chain)),
        "labels": body.labels,
        "created_ns": row.created_ns,
        "updated_ns": row.updated_ns,
        "owner": body.owner,
    }
    match Kind(body.kind):
        case Kind.ACTIVE:
            return Active(lane=lane(body), **common)
        case Kind.VIEW:
            return View(lane=lane(body), **common)
        case Kind.COMMITTED:
            usage = Usage(body.size_bytes, body.inodes)
            return Committed(usage=usage, digest=body.digest, **common)


def lane(body: SnapshotBody) -> LaneName:
    """Return the lane that shows a snapshot, for as long as it can be mounted."""
    return LaneName(body.lane) if body.lane else MAIN_LANE


def mountable(tx: ReadTx, key: str) -> Mountable:
    """Return an active or a view, or raise NotFound, or FailedPrecondition for a committed."""
    match snapshot(tx, find(tx, key)):
        case Active() | View() as found:
            return found
        case Committed():
            raise FailedPrecondition(
                f"snapshot {shown(key)} is committed, not active or view; "
                "prepare or view it under a key of its own"
            )


def new_id(tx: WriteTx) -> SnapshotId:
    """Return an id that no snapshot had before."""
    return SnapshotId(tx.sequence(SEQUENCE))


def check_create(tx: ReadTx, key: str, parent: str) -> SnapshotRow | None:
    """Return the parent's row, or None for a base; raise what forbids to create `key` on it.

    In this order: parent missing, NotFound; parent not committed, InvalidArgument; key exists,
    AlreadyExists.
    """
    above = None
    if parent:
        above = tx.get(SNAPSHOTS, SCOPE, parent)
        if above is None:
            raise NotFound(f"parent {shown(parent)} of snapshot {shown(key)} does not exist")
        if above.body.kind != Kind.COMMITTED.value:
            raise InvalidArgument(
                f"parent {shown(parent)} of snapshot {shown(key)} is not committed; commit it first"
            )
    if tx.get(SNAPSHOTS, SCOPE, key) is not None:
        raise AlreadyExists(f"snapshot {shown(key)} already exists; remove it or use another key")
    return above


def create(
    tx: WriteTx,
    kind: Kind,
    key: str,
    parent: str = "",
    labels: Labels | None = None,
    *,
    snapshot_id: SnapshotId | None = None,
    lane: LaneName = MAIN_LANE,
    owner: str = "",
) -> Mountable:
    """Write a new active or view; `snapshot_id` is one that the caller reserved before.

    It stays in its lane as long as it can be mounted, whatever becomes of its labels.
    """
    if kind is Kind.COMMITTED:
        raise InvalidArgument(f"snapshot {shown(key)}: only active and view snapshots are created")
    checked_name(key, "key")
    kept = checked_labels(labels)
    above = check_create(tx, key, parent)
    body = SnapshotBody(
        id=new_id(tx) if snapshot_id is None else snapshot_id,
        kind=kind.value,
        parent=above.oid if above else 0,
        chain=_chain_above(above),
        labels=kept,
        lane=lane,
        owner=owner,
    )
    made = _snapshot(tx.create(SNAPSHOTS, SCOPE, key, body), parent)
    assert not isinstance(made, Committed)  # noqa: S101 - follows from the check of kind
    return made


def _chain_above(parent: SnapshotRow | None) -> tuple[int, ...]:
    return (parent.body.id, *parent.body.chain) if parent else ()


def check_commit(tx: ReadTx, key: str, name: str, parent: str = "") -> SnapshotRow:
    """Return the row to commit, or raise what forbids it.

    In this order: name exists, AlreadyExists; key missing, NotFound; key not active,
    FailedPrecondition; then what is wrong with a parent given (see `_rebase`).
    """
    if tx.get(SNAPSHOTS, SCOPE, name) is not None:
        raise AlreadyExists(f"snapshot {shown(name)} already exists; commit under another name")
    row = find(tx, key)
    if row.body.kind != Kind.ACTIVE.value:
        kind = Kind(row.body.kind).word
        raise FailedPrecondition(f"snapshot {shown(key)} is {kind}; only an active is committed")
    _rebase(tx, row, parent)
    return row


def _rebase(tx: ReadTx, row: SnapshotRow, parent: str) -> SnapshotRow | None:
    """Return the row that `parent` adds under a parentless active, None when nothing changes.

    A parent that differs from the one there is: InvalidArgument; to add: missing, NotFound, not
    committed, FailedPrecondition (containerd 2.2, CommitActive).
    """
    if not parent:
        return None
    if row.body.parent:
        present = tx.by_oid(SNAPSHOTS, row.body.parent)
        if present is None or present.name != parent:
            raise InvalidArgument(
                f"snapshot {shown(row.name)} has another parent than {shown(parent)}; "
                "only one without a parent can be given one"
            )
        return None
    above = tx.get(SNAPSHOTS, SCOPE, parent)
    if above is None:
        raise NotFound(f"parent {shown(parent)} of snapshot {shown(row.name)} does not exist")
    if above.body.kind != Kind.COMMITTED.value:
        raise FailedPrecondition(
            f"parent {shown(parent)} of snapshot {shown(row.name)} is not committed; "
            "commit it first"
        )
    return above


def commit(
    tx: WriteTx,
    key: str,
    name: str,
    usage: Usage,
    labels: Labels | None = None,
    parent: str = "",
) -> Committed:
    """Turn the active `key` into the committed `name`; labels are replaced, the id stays."""
    checked_name(name, "name")
    kept = checked_labels(labels)
    row = check_commit(tx, key, name, parent)
    body = msgspec.structs.replace(
        row.body,
        kind=Kind.COMMITTED.value,
        labels=kept,
        size_bytes=usage.size_bytes,
        inodes=usage.inodes,
    )
    if above := _rebase(tx, row, parent):
        body = msgspec.structs.replace(body, parent=above.oid, chain=_chain_above(above))
    done = snapshot(tx, tx.update(row, body, name=name, created_ns=tx.now_ns))
    assert isinstance(done, Committed)  # noqa: S101 - the body says so
    return done


def commit_copy(
    tx: WriteTx,
    key: str,
    name: str,
    usage: Usage,
    labels: Labels | None = None,
    *,
    snapshot_id: SnapshotId,
    against: SnapshotId | None,
) -> Committed:
    """Write the committed `name`, a copy of the active `key`, which stays as it is.

    It lies over the committed snapshot `against`, or over the active's parent. Raises
    AlreadyExists, NotFound, FailedPrecondition for what is not active, Unavailable when `against`
    has been removed.
    """
    row = check_commit(tx, checked_name(key, "key"), checked_name(name, "name"))
    above = tx.by_oid(SNAPSHOTS, row.body.parent) if row.body.parent else None
    if against is not None:
        above = by_id(tx, against)
        if above is None:
            raise Unavailable(f"what the copy of snapshot {shown(key)} refers to is gone; repeat")
    body = SnapshotBody(
        id=snapshot_id,
        kind=Kind.COMMITTED.value,
        parent=above.oid if above else 0,
        chain=_chain_above(above),
        labels=checked_labels(labels),
        size_bytes=usage.size_bytes,
        inodes=usage.inodes,
    )
    done = snapshot(tx, tx.create(SNAPSHOTS, SCOPE, name, body))
    assert isinstance(done, Committed)  # noqa: S101 - the body says so
    return done


def update(
    tx: WriteTx, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None
) -> Snapshot:
    """Change the labels of any snapshot; `updated` becomes now.

    No path, or "labels", replaces all; "labels.K" sets K, or deletes it when `labels` has no or
    an empty value for it. Any other path is InvalidArgument.
    """
    row = find(tx, key)
    changed = dict(row.body.labels)
    for path in fieldpaths or (_ALL_LABELS,):
        if path == _ALL_LABELS:
            changed = dict(labels)
        elif path.startswith(_ONE_LABEL) and path != _ONE_LABEL:
            label = path.removeprefix(_ONE_LABEL)
            changed[label] = labels.get(label, "")
        else:
            raise InvalidArgument(
                f"field {path!r} of snapshot {shown(key)} cannot be changed; "
                'use "labels" or "labels.NAME"'
            )
    body = msgspec.structs.replace(row.body, labels=checked_labels(changed))
    return snapshot(tx, tx.update(row, body))


def rename(tx: WriteTx, name: str, new_name: str) -> Committed:
    """Give a committed snapshot another name; its children stay on it, and it is ours then.

    Raises NotFound, AlreadyExists, FailedPrecondition for one that is not committed.
    """
    row = find(tx, name)
    if row.body.kind != Kind.COMMITTED.value:
        raise FailedPrecondition(
            f"snapshot {shown(name)} is {Kind(row.body.kind).word}; only a committed one can be "
            "renamed"
        )
    body = msgspec.structs.replace(row.body, owner="")
    done = snapshot(tx, tx.update(row, body, name=checked_name(new_name, "name")))
    assert isinstance(done, Committed)  # noqa: S101 - the body says so
    return done


def seal(tx: WriteTx, snapshot_id: SnapshotId, digest: bytes) -> bool:
    """Record the digest of a committed layer; False when it is gone or has one."""
    row = by_id(tx, snapshot_id)
    if row is None or row.body.kind != Kind.COMMITTED.value or row.body.digest:
        return False
    tx.update(row, msgspec.structs.replace(row.body, digest=digest), spec=False)
    return True


def unsealed(tx: ReadTx) -> list[SnapshotId]:
    """Return the committed snapshots whose layer has no digest, the oldest first."""
    return sorted(
        SnapshotId(row.body.id)
        for row in rows(tx)
        if row.body.kind == Kind.COMMITTED.value and not row.body.digest
    )


def remove(tx: WriteTx, key: str) -> SnapshotBody:
    """Delete a snapshot of any kind and return its body; FailedPrecondition with children."""
    row = find(tx, key)
    if tx.has_referrers(row.oid, PARENT_EDGE):
        raise FailedPrecondition(
            f"cannot remove snapshot {shown(key)}: it has children; remove them first"
        )
    tx.delete(row)
    return row.body


def usage(tx: ReadTx, key: str) -> Usage:
    """Return the usage stored at commit; zero for an active or a view."""
    body = find(tx, key).body
    return Usage(body.size_bytes, body.inodes)


def batch(tx: ReadTx, after: str | None, count: int) -> list[Snapshot]:
    """Return the next `count` snapshots in the order of names, from behind the name `after`."""
    parents: dict[int, str] = {}
    found = []
    for row in islice(tx.rows(SNAPSHOTS, SCOPE, after=after), count):
        oid = row.body.parent
        if oid and oid not in parents:
            above = tx.by_oid(SNAPSHOTS, oid)
            parents[oid] = above.name if above else ""
        found.append(_snapshot(row, parents.get(oid, "")))
    return found


def rows(tx: ReadTx) -> Iterator[SnapshotRow]:
    """Yield every row, in the order of names."""
    return tx.rows(SNAPSHOTS, SCOPE)


def by_id(tx: ReadTx, snapshot_id: int) -> SnapshotRow | None:
    """Return the row of an id, of whatever kind."""
    return next(iter(tx.find(SNAPSHOTS, "id", id_key(snapshot_id), scope=SCOPE)), None)


def fields(found: Snapshot) -> Adaptor:
    """Show a snapshot to a filter: kind, name, parent and labels.K."""

    def field(path: tuple[str, ...]) -> str | None:
        match path[0]:
            case "kind":
                return found.kind.word
            case "name":
                return found.name
            case "parent":
                return found.parent
            case "labels":
                return found.labels.get(".".join(path[1:]))
            case _:
                return None

    return field
