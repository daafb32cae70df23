"""Nothing is lost between a record, its message and the record made from that."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.model import Active, Committed, Mount, Snapshot, SnapshotId, Usage, View
from snapfs.service import wire
from snapfs.service.client import Client
from snapfs.service.convert import batches, time_ns, timestamp
from snapfs.service.records import (
    Change,
    ChangeKind,
    DaemonRecord,
    LaneRecord,
    Problem,
    Record,
    Requests,
)

texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)
numbers = st.integers(1, 2**63).map(SnapshotId)
times = st.integers(-62_135_596_800 * 10**9, 253_402_300_799 * 10**9)
usages = st.builds(Usage, st.integers(0, 2**62), st.integers(0, 2**62))
paths = st.binary(min_size=1, max_size=20).map(lambda raw: Path(os.fsdecode(b"/" + raw)))
common: dict[str, Any] = {
    "id": numbers,
    "name": texts,
    "parent": texts,
    "parent_ids": st.lists(numbers, max_size=3).map(tuple),
    "labels": st.dictionaries(texts, texts, max_size=3),
    "created_ns": times,
    "updated_ns": times,
}
snapshots: st.SearchStrategy[Snapshot] = st.one_of(
    st.builds(Active, **common),
    st.builds(View, **common),
    st.builds(Committed, **common, usage=usages),
)


@given(times)
def test_times_keep_their_nanoseconds(moment: int) -> None:
    assert time_ns(timestamp(moment)) == moment


@given(snapshots, st.none() | usages, st.lists(paths, max_size=3).map(tuple))
def test_records_survive(
    snapshot: Snapshot, usage: Usage | None, targets: tuple[Path, ...]
) -> None:
    if isinstance(snapshot, Committed):
        usage = snapshot.usage
    record = Record(snapshot=snapshot, usage=usage, layer=Path("/l/1/fs"), mounted_at=targets)
    raw = wire.record_to_wire(record).SerializeToString()
    message = wire.record_to_wire(record).FromString(raw)
    assert wire.record_from_wire(message) == record


@given(st.builds(Mount, type=texts, source=texts, target=texts, options=st.tuples(texts, texts)))
def test_mounts_survive(mount: Mount) -> None:
    assert wire.mount_from_wire(wire.mount_to_wire(mount)) == mount


@given(st.integers(0, 350))
def test_batches_lose_nothing(count: int) -> None:
    found = list(batches(range(count)))
    assert [number for batch in found for number in batch] == list(range(count))
    assert all(0 < len(batch) <= 100 for batch in found)


@pytest.mark.parametrize("kind", ChangeKind)
def test_changes_keep_paths_that_are_no_text(
    kind: ChangeKind, client: Client, snapshotter: Any
) -> None:
    change = Change(kind, b"a/\xff\n")
    snapshotter.answer = lambda *_: iter([change] * 250)
    assert list(client.diff("n")) == [change] * 250


def test_status_arrives_as_described(client: Client, status_record: DaemonRecord) -> None:
    assert client.status() == status_record


def test_lanes_survive(status_record: DaemonRecord) -> None:
    lanes = (
        LaneRecord(
            name="main",
            mode="passthrough",
            mountpoint=Path("/m"),
            state="serving",
            worker_pid=7,
            restarts=1,
            features={"channel": "", "no-open": "goes without"},
            counts={"nodes": 3, "lookups": 5},
            requests={"LOOKUP": Requests(fast=7, python=1), "STATFS": Requests(fast=0, python=2)},
        ),
        LaneRecord(
            name="b",
            mode="readonly",
            mountpoint=Path("/b"),
            state="starting",
            worker_pid=None,
            restarts=0,
        ),
    )
    record = DaemonRecord(
        **{
            **{name: getattr(status_record, name) for name in status_record.__slots__},
            "lanes": lanes,
            "warnings": ("removal of 7 fails: busy",),
        }
    )
    assert wire.status_from_wire(wire.status_to_wire(record)) == record


def test_problems_of_fsck_arrive(client: Client, snapshotter: Any) -> None:
    problem = Problem(kind="orphan", subject="layers/7", message="no row", repaired=True)

    class Report:
        problems = (problem,)

    asked: list[tuple[object, ...]] = []

    def fsck(*call: object) -> Report:
        asked.append(call)
        return Report()

    snapshotter.answer = fsck
    assert client.fsck(repair=True) == (problem,)
    assert asked == [("fsck", True)]


def test_an_update_passes_its_field_paths(client: Client, snapshotter: Any) -> None:
    asked: list[tuple[object, ...]] = []

    def update(*call: object) -> View:
        asked.append(call)
        return View(id=SnapshotId(1), name="k")

    snapshotter.answer = update
    client.update("k", {"a.b/c": "1"}, ["labels.a.b/c"])
    assert asked == [("update", "k", {"a.b/c": "1"}, ("labels.a.b/c",))]


def test_active_snapshots_are_measured_only_when_asked(client: Client, snapshotter: Any) -> None:
    active = Active(id=SnapshotId(3), name="k")
    view = View(id=SnapshotId(4), name="v")

    def answer(method: str, *_: object) -> Any:
        return Usage(4096, 1) if method == "usage" else iter([active, view])

    snapshotter.answer = answer
    assert [it.usage for it in client.list()] == [None, Usage()]
    assert [it.usage for it in client.list(measure=True)] == [Usage(4096, 1), Usage()]
