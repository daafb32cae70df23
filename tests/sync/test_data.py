"""The data of snapshots goes with them, each layer once, and wherever a sync was cut short."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.model import Unavailable
from snapfs.overlay import has_changed
from snapfs.snapshots import copying
from snapfs.sync.peer import Peer
from snapfs.sync.threeway import Policy
from snapfs.transfer import stock
from snapfs.volumes import Volumes
from snapfs.volumes.ids import VolumeSetId
from tests.sync.kit import Breaking, Host
from tests.transfer.kit import everything, seen

MakeHost = Callable[[str], Host]
MIB = 1 << 20


def _write(data: bytes) -> Callable[[Path], None]:
    def write(layer: Path) -> None:
        (layer / "table").write_bytes(data)

    return write


def database(ann: Host) -> tuple[VolumeSetId, list[str]]:
    """Make a set with three snapshots of a file that changes a little; return their ids."""
    source = random.Random(1)
    set_id = ann.new_set()
    data = bytearray(source.randbytes(4 * MIB))
    made = [ann.fork(set_id, "main")]
    ann.fill(set_id, made[0], _write(bytes(data)))
    for _ in range(2):
        made.append(ann.extend(set_id, "main"))
        data[MIB : MIB + 8192] = source.randbytes(8192)
        ann.fill(set_id, made[-1], _write(bytes(data)), made[-2])
    return set_id, made


def _same_data(ann: Host, bob: Host, set_id: VolumeSetId, made: list[str]) -> None:
    for snapshot in made:
        blobs = [it.show(set_id, snapshot).blob for it in (ann, bob)]
        assert all(blobs)
        one, other = (
            seen(it.snapshotter.layers(blob)[0]) for it, blob in zip((ann, bob), blobs, strict=True)
        )
        assert one == other


@pytest.mark.parametrize("way", ["push", "pull"])
def test_data_comes_with_a_branch_and_is_sent_once(host: MakeHost, way: str) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    report = ann.push(bob, set_id) if way == "push" else bob.pull(ann, set_id)
    assert report.is_well
    assert report.layers == 3
    assert bob.set(set_id).size_bytes == sum(bob.show(set_id, it).size_bytes for it in made) > 0
    moved = report.sent_bytes + report.received_bytes
    assert 4 * MIB < moved < 4.2 * MIB
    _same_data(ann, bob, set_id, made)
    again = ann.sync(bob, set_id)
    assert (again.layers, again.sent_bytes, again.received_bytes) == (0, 0, 0)


def test_data_that_came_later_than_its_snapshot_is_fetched(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    snapshot = ann.fork(set_id, "main")
    ann.sync(bob, set_id)
    assert bob.show(set_id, snapshot).blob == ""
    ann.fill(set_id, snapshot, everything)
    assert ann.sync(bob, set_id).layers == 1
    _same_data(ann, bob, set_id, [snapshot])


def test_a_diverged_branch_is_fetched_with_its_data(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    ann.sync(bob, set_id)
    ann.extend(set_id, "main")
    theirs = bob.extend(set_id, "main")
    bob.fill(set_id, theirs, _write(b"theirs"), made[-1])
    ann.sync(bob, set_id)
    assert ann.tips(set_id)["bob/main"] == theirs
    _same_data(ann, bob, set_id, [theirs])


def test_a_set_that_a_person_lets_go_takes_its_data_along(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    ann.sync(bob, set_id)
    ann.fill(set_id, ann.extend(set_id, "main"), _write(b"more"), made[-1])
    bob.delete_set(set_id)
    ann.sync(bob, set_id)
    ann.settle(ann.conflicts()[0].number, Policy.THEIRS)
    assert ann.contents(set_id) is None
    assert list(ann.snapshotter.walk()) == []


@pytest.mark.parametrize("way", ["push", "pull"])
def test_a_snapshot_that_does_not_stand_on_the_one_before_travels(
    host: MakeHost, way: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After 64 copies, or a start of the host, a volume is copied whole, over what it grew from."""
    monkeypatch.setattr(copying, "LONGEST_CHAIN", 2)
    monkeypatch.setattr(stock, "SEARCHED", 0)
    ann, bob = host("ann"), host("bob")
    volumes = Volumes(ann.snapshotter, tmp_path / "mounts", changed=has_changed)
    source = random.Random(2)
    set_id = volumes.create("db").set_id

    def take(name: str) -> str:
        layer = volumes.layers(name)[0]
        (layer / "small").write_bytes(source.randbytes(10))
        return volumes.history.snapshot(name, "one more").snapshot.id

    (volumes.layers("db")[0] / "table").write_bytes(source.randbytes(MIB))
    made = [take("db") for _ in range(2)]
    volumes.clone("db", "trial")
    (volumes.layers("trial")[0] / "more").write_bytes(source.randbytes(MIB))
    made += [take("trial")]
    sync = ann.push if way == "push" else bob.pull
    sync(bob if way == "push" else ann, set_id)
    made += [take(name) for name in ("trial", "db") for _ in range(4)]
    report = sync(bob if way == "push" else ann, set_id)
    assert [it.fate for it in report.branches] == ["pushed" if way == "push" else "pulled"] * 2
    _same_data(ann, bob, set_id, made)
    assert report.sent_bytes + report.received_bytes < MIB / 4
    there = [bob.snapshotter.stat(bob.show(set_id, it).blob) for it in made[-4:]]
    assert [len(it.parent_ids) for it in there] == [2, 0, 1, 2]


def test_layers_that_two_branches_share_travel_once(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    ann.branch_at(set_id, "second", made[-1])
    ann.branch_at(set_id, "third", made[1])
    assert ann.sync(bob, set_id).layers == 3


@pytest.mark.parametrize("way", ["sync", "push", "pull"])
@pytest.mark.parametrize("is_done", [False, True])
def test_a_connection_may_break_at_any_call(host: MakeHost, way: str, is_done: bool) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    here, there = (bob, ann) if way == "pull" else (ann, bob)
    breaks = 0
    for at in range(100):

        def break_it(peer: Peer, at: int = at) -> Peer:
            return Breaking(peer, at, is_done=is_done)  # type: ignore[return-value]

        try:
            report = getattr(here, way)(there, set_id, through=break_it)
        except Unavailable:
            breaks += 1
            continue
        break
    assert breaks > 5
    assert report.is_well
    assert ann.contents(set_id) == bob.contents(set_id)
    _same_data(ann, bob, set_id, made)
    ann.sync(bob, set_id)
    assert ann.history(set_id, "main") == bob.history(set_id, "main")


def test_a_branch_whose_data_is_damaged_does_not_stop_the_others(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    apart = ann.fork(set_id, "apart")
    ann.fill(set_id, apart, _write(b"apart"))
    layer = ann.snapshotter.layers(ann.show(set_id, made[0]).blob)[0]
    ann.replica.stock.of(ann.show(set_id, made[0]).blob)
    with (layer / "table").open("r+b") as file:
        file.write(b"damaged")
    report = ann.push(bob, set_id)
    assert {it.name: it.fate for it in report.branches} == {"main": "failed", "apart": "pushed"}
    assert not report.is_well
    assert bob.tips(set_id) == {"apart": apart}


@pytest.mark.logs("sync.branch_failed")
def test_a_branch_of_which_the_other_side_says_nonsense_does_not_stop_the_others(
    host: MakeHost,
) -> None:
    ann, bob = host("ann"), host("bob")
    set_id, made = database(ann)
    apart = ann.fork(set_id, "apart")
    ann.fill(set_id, apart, _write(b"apart"))

    class Nonsense:
        def __getattr__(self, name: str) -> object:
            method = getattr(ann.replica, name)

            def manifest(of: VolumeSetId, snapshot: str) -> Iterator[bytes]:
                yield from [1] if snapshot == made[0] else method(of, snapshot)

            return manifest if name == "manifest" else method

    report = bob.pull(ann, set_id, through=lambda _peer: Nonsense())
    assert {it.name: it.fate for it in report.branches} == {"main": "failed", "apart": "pulled"}
    assert bob.tips(set_id) == {"apart": apart}
