"""Volumes on a real snapshotter without mounts: data, branches, crashes, what is let go when."""

from __future__ import annotations

import itertools
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapfs import anchors, volumes
from snapfs.anchors import Anchors
from snapfs.model import (
    AlreadyExists,
    DeadlineExceeded,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Usage,
)
from snapfs.overlay import LayerCopy, has_changed
from snapfs.overlay.stamps import FRESH_NS
from snapfs.snapshots import NoTrees, Snapshotter, copying, fsck
from snapfs.volumes import Volumes, ancestry, branches, groups, replacing
from snapfs.volumes.errors import (
    Ambiguous,
    BranchNotFound,
    SnapshotImportMismatch,
    VolumeNotFound,
    VolumeSnapshotNotFound,
)
from snapfs.volumes.model import Note
from snapfs.volumes.mounting import Bound
from snapfs.volumes.replacing import Manner
from tests.volumes.kit import ANN, NOW, Clock

TABLES = (*anchors.TABLES, *volumes.TABLES)
CHECKS = {**anchors.CHECKS, **volumes.CHECKS}


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "root"


@pytest.fixture
def snapshotter(root: Path, clock: Clock) -> Iterator[Snapshotter]:
    with Snapshotter(
        root, trees=NoTrees(), tables=TABLES, checks=CHECKS, copier=LayerCopy, clock_ns=clock
    ) as opened:
        yield opened
    assert fsck(root, tables=TABLES, checks=CHECKS).clean


@pytest.fixture
def db(snapshotter: Snapshotter, tmp_path: Path) -> Volumes:
    numbers = itertools.count(1)
    made = Volumes(
        snapshotter,
        tmp_path / "mounts",
        changed=has_changed,
        new_id=lambda: f"{next(numbers) * 0x1000003:08x}-0000-4000-8000-{next(numbers):012x}",
    )
    made.create("db", why=ANN)
    return made


def upper(db: Volumes, name: str = "db") -> Path:
    return db.layers(name)[0]


def read(db: Volumes, ref: str, name: str = "db", file: str = "file") -> str:
    """Return a file of a snapshot: the topmost layer that has it counts."""
    layers = db.layers(name, ref)
    return next((it / file).read_text() for it in layers if (it / file).exists())


def take(db: Volumes, text: str, name: str = "db", branch: str = "") -> str:
    (upper(db, name) / "file").write_text(text)
    return db.history.snapshot(name, text, branch=branch, why=Note(author="ann")).snapshot.id


def set_size(db: Volumes) -> int:
    (found,) = db.sets.walk()
    return found.size_bytes


def test_each_snapshot_has_what_the_volume_had(db: Volumes) -> None:
    ids = [take(db, text) for text in ("one", "two", "three")]
    assert [read(db, it) for it in ids] == ["one", "two", "three"]
    assert [it.description for it in db.log("db")] == ["three", "two", "one"]
    assert [it.depth for it in db.log("db")] == [3, 2, 1]


def test_a_snapshot_without_a_message_is_refused(db: Volumes) -> None:
    with pytest.raises(InvalidArgument, match="needs a message"):
        db.history.snapshot("db", "  ")


def test_a_volume_of_a_taken_name_leaves_nothing(db: Volumes, snapshotter: Snapshotter) -> None:
    before = [it.name for it in snapshotter.walk()]
    with pytest.raises(AlreadyExists):
        db.create("db")
    with pytest.raises(InvalidArgument):
        db.create("a b")
    with pytest.raises(InvalidArgument):
        db.create("other", mount_path="relative")
    assert [it.name for it in snapshotter.walk()] == before
    assert [it.name for it in db.walk()] == ["db"]


def test_a_reset_keeps_what_other_branches_use_for_ever(db: Volumes, clock: Clock) -> None:
    first, second = take(db, "one"), take(db, "two")
    db.branches.create("db", "side")
    third = take(db, "three")
    db.history.reset("db", first, why=ANN)
    assert not any(upper(db).iterdir())
    assert read(db, third) == "three"
    clock.now_ns += 10**12
    assert db.history.prune(clock.now_ns) == 1
    with pytest.raises(VolumeSnapshotNotFound):
        db.resolve("db", third)
    assert read(db, second) == "two"
    assert [it.id for it in db.log("db", "side")] == [second, first]


def test_a_branch_that_went_on_refuses_who_stands_behind(db: Volumes) -> None:
    take(db, "one")
    db.clone("db", "other", branch="theirs")
    db.history.switch("other", "main")
    take(db, "two", "other")
    with pytest.raises(FailedPrecondition, match="has gone on"):
        take(db, "three")
    take(db, "three", branch="mine")
    assert [it.name for it in db.branches.of("db")] == ["main", "mine"]
    with pytest.raises(AlreadyExists):
        take(db, "four", branch="main")


def test_a_snapshot_without_a_branch_forks_only_when_others_went_on(db: Volumes) -> None:
    first = take(db, "one")
    take(db, "two")
    db.history.switch("db", first)
    take(db, "detached")
    assert [it.name for it in db.branches.of("db")] == ["main", ""]
    take(db, "further")
    assert [it.description for it in db.log("db")] == ["further", "detached", "one"]
    assert len(db.branches.of("db")) == 2


def test_a_branch_that_follows_a_remotes_does_not_grow_here(
    db: Volumes, snapshotter: Snapshotter
) -> None:
    """The next sync would move it away from what was taken here, which travels with none."""
    first, second = take(db, "one"), take(db, "two")
    (volume,) = db.walk()

    def track(tx):
        tip = ancestry.find(tx, volume.set_id, second)
        branch = "00000000-0000-4000-8000-00000000000b"
        branches.create(tx, tip.body.set, branch, "bob/main", tip, ANN, tracking=True)

    db.history.reset("db", first)
    snapshotter.store.update(track)
    db.history.switch("db", "bob/main")
    with pytest.raises(FailedPrecondition, match="--branch"):
        take(db, "three")
    take(db, "three", branch="mine")
    db.history.switch("db", second)
    take(db, "four")
    tips = {it.name: it.tip for it in db.branches.of("db")}
    assert tips["bob/main"] == second
    assert sorted(tips) == ["", "bob/main", "main", "mine"]


def test_changes_are_not_lost_in_a_switch(db: Volumes) -> None:
    first = take(db, "one")
    take(db, "two")
    assert not db.has_changed("db")
    (upper(db) / "file").write_text("more")
    assert db.has_changed("db")
    with pytest.raises(FailedPrecondition, match="no snapshot has"):
        db.history.switch("db", first)
    assert (upper(db) / "file").read_text() == "more"
    db.history.switch("db", first, discard=True)
    assert not db.has_changed("db")


def test_what_is_remembered_of_files_counts_until_the_host_starts_again(
    db: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A power cut may leave a file with the times of one state and the data of another."""
    (upper(db) / "kept").write_text("kept")
    take(db, "one")
    take(db, "two")
    time.sleep(2 * FRESH_NS / 1e9)  # what is younger is copied again in any case
    db.history.snapshot("db", "older")
    with next(it / "file" for it in db.layers("db", "HEAD")).open("r+") as copy:
        copy.write("TWO")  # as if the copy had what the file lost
    assert db.history.snapshot("db", "at rest").files == 0
    boot = tmp_path / "boot"
    boot.write_text("the next one\n")
    monkeypatch.setattr(copying, "BOOT_ID", boot)
    assert db.has_changed("db")
    assert db.history.snapshot("db", "after the cut").files == 2
    assert [read(db, "HEAD", file=it) for it in ("file", "kept")] == ["two", "kept"]
    assert read(db, "HEAD^^") == "TWO"
    assert not db.has_changed("db")


def test_a_start_of_the_host_is_no_change_of_a_volume(
    db: Volumes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (upper(db) / "kept").write_text("kept")
    for text in ("one", "two"):
        take(db, text)
    boot = tmp_path / "boot"
    boot.write_text("the next one\n")
    monkeypatch.setattr(copying, "BOOT_ID", boot)
    assert not db.has_changed("db")
    (upper(db) / "kept").write_text("KEPT")
    assert db.has_changed("db")


def test_a_volume_is_unchanged_after_the_longest_chain_of_copies(
    db: Volumes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copying, "LONGEST_CHAIN", 2)
    for text in ("one", "two", "three", "four"):
        take(db, text)
        assert not db.has_changed("db")
        assert read(db, "HEAD") == text


def test_a_branch_moved_meanwhile_makes_the_snapshot_fail_whole(
    db: Volumes, snapshotter: Snapshotter, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As by a sync, which does not take a volume's lock."""
    take(db, "one")
    take(db, "two")
    before = {it.name for it in snapshotter.walk()}
    set_id = db.walk()[0].set_id
    make = LayerCopy.make

    def make_and_move(copy: LayerCopy) -> None:
        make(copy)

        def move(tx):
            main = branches.resolve(tx, set_id, "main")
            tip = ancestry.by_oid(tx, main.body.tip)
            branches.move(tx, main, ancestry.by_oid(tx, tip.body.parent), Note())

        snapshotter.store.update(move)

    monkeypatch.setattr(LayerCopy, "make", make_and_move)
    with pytest.raises(SnapshotImportMismatch):
        take(db, "three")
    assert {it.name for it in snapshotter.walk()} == before
    assert snapshotter.cleanup() == ()
    assert {int(it.name) for it in (root / "layers").iterdir()} == {
        it.id for it in snapshotter.walk()
    }


@pytest.mark.logs("volume.groups_left_frozen")
def test_a_group_that_does_not_run_again_keeps_no_other_frozen_nor_the_service_down(
    db: Volumes, tmp_path: Path
) -> None:
    bad, good = tmp_path / "bad", tmp_path / "good"
    (bad / "cgroup.freeze").mkdir(parents=True)  # not to be written
    good.mkdir()
    (good / "cgroup.freeze").write_text("1")
    note = db.common.frozen_groups
    note.write_text(f"{bad}\n{good}\n")
    db.start()
    assert (good / "cgroup.freeze").read_text() == "0"
    assert note.exists()


def test_a_look_at_volumes_is_in_nobodys_way(db: Volumes) -> None:
    """Nor is who removes one, or replaces its working copy, in the way of the look."""
    first = take(db, "one")
    db.clone("db", "other")
    usage, changes = db.common.data.usage, [lambda: db.history.reset("db", first)]

    def change_and_measure(key: str) -> Usage:
        if changes:
            changes.pop()()
        return usage(key)

    db.common.data.usage = change_and_measure  # type: ignore[method-assign]
    found = db.describe_all()
    assert next(found).volume.key == db.walk()[0].key
    db.remove("other")
    assert list(found) == []


@pytest.mark.parametrize("unified", [True, False])
def test_a_group_that_is_gone_runs_nothing(tmp_path: Path, unified: bool) -> None:
    group = groups.Group(tmp_path / "gone", unified=unified)
    assert not group.is_frozen()
    group.freeze()
    group.thaw()


def test_groups_are_frozen_for_one_volume_at_a_time(
    db: Volumes, snapshotter: Snapshotter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the second wrote over what names the groups of the first, and found it gone later."""
    impatient = Volumes(snapshotter, tmp_path / "mounts", changed=has_changed, deadline_s=0.1)
    monkeypatch.setattr(
        impatient.common.data, "tree", lambda _key, path: Bound("0:0", "/no-tree", path)
    )
    first = take(db, "one")

    @contextmanager
    def replaced(*_: Any) -> Iterator[None]:
        if not tried:
            for manner in (Manner(), Manner(pause=True)):
                tried.append(manner)
                impatient.history.reset("other", "HEAD", manner=manner)
        yield

    tried: list[Manner] = []
    monkeypatch.setattr(replacing, "replaced", replaced)
    impatient.create("other")
    (upper(db, "other") / "file").write_text("")
    impatient.history.snapshot("other", "one")
    with pytest.raises(DeadlineExceeded, match="pausing"):
        impatient.history.reset("db", first, manner=Manner(pause=True))
    assert tried == [Manner(), Manner(pause=True)]


def test_data_that_is_mounted_stays_with_its_snapshot(
    db: Volumes, snapshotter: Snapshotter, clock: Clock
) -> None:
    """FlockerHub took the row first, and then lost the data or did not (D8, D11)."""
    first, second = take(db, "one"), take(db, "two")
    blob = db.resolve("db", second).blob
    snapshotter.view("look", blob)
    db.history.reset("db", first)
    clock.now_ns += 10**12
    assert db.history.prune(clock.now_ns) == 0
    assert read(db, second) == "two"
    snapshotter.remove("look")
    assert set_size(db) == sum(db.resolve("db", it).size_bytes for it in (first, second))
    assert db.history.prune(clock.now_ns) == 1
    assert set_size(db) == db.resolve("db", first).size_bytes > 0
    with pytest.raises(NotFound):
        snapshotter.stat(blob)


def test_what_a_crash_left_goes_at_the_next_start(db: Volumes, snapshotter: Snapshotter) -> None:
    take(db, "one")
    kept = {it.name for it in snapshotter.walk()}
    key, blob = f"@volume/{uuid.uuid4()}/", f"@volume-snapshot/{uuid.uuid4()}/{uuid.uuid4()}"
    snapshotter.prepare(f"{key}00000001")
    snapshotter.prepare(f"{key}00000002")
    snapshotter.commit(f"{key}00000002", blob)
    snapshotter.prepare(f"{key}00000003", blob)
    others = {"mine", "volume/7/of-a-name-space", "volume-snapshot/8/sha256:layer", "@volume/mine"}
    for other in others:
        snapshotter.prepare(other)
    db.start()
    assert {it.name for it in snapshotter.walk()} == kept | others
    assert read(db, "HEAD") == "one"


def test_a_removed_volume_leaves_its_history_or_all_goes(
    db: Volumes, snapshotter: Snapshotter
) -> None:
    take(db, "one")
    db.clone("db", "other")
    with pytest.raises(FailedPrecondition, match="has volumes: other"):
        db.remove("db", history=True)
    assert [it.name for it in db.walk()] == ["db", "other"]
    db.remove("db")
    db.remove("other")
    with pytest.raises(VolumeNotFound):
        db.describe("db")
    db.clone("db", "again", ref="main")
    assert read(db, "main", "again") == "one"
    db.remove("again", history=True)
    assert list(snapshotter.walk()) == []


def test_a_volume_without_snapshots_leaves_nothing(db: Volumes, snapshotter: Snapshotter) -> None:
    db.remove("db")
    assert list(snapshotter.walk()) == []
    db.create("db")


def test_references_find_what_they_say(db: Volumes, clock: Clock) -> None:
    first = take(db, "one")
    between = clock.now_ns
    second = take(db, "two")
    db.branches.create("db", "side", ref="HEAD^")
    for ref, expected in {
        "HEAD": second,
        "": second,
        "HEAD^": first,
        "HEAD~1": first,
        "main": second,
        "main^": first,
        "side": first,
        f"main@{{{between}}}": first,
        f"HEAD@{{{between}}}": first,
        second[:8]: second,
        second[:8] + second[-4:]: second,
        f"{second}^": first,
    }.items():
        assert db.resolve("db", ref).id == expected, ref
    for bad, error in {
        "HEAD^^": VolumeSnapshotNotFound,
        "nothing": VolumeSnapshotNotFound,
        "nothing@{1}": BranchNotFound,
        f"main@{{{NOW - 1}}}": NotFound,
        "main@{yesterday}": InvalidArgument,
        "a b": InvalidArgument,
        "HEAD^^^^^^~": InvalidArgument,
        "0000": (VolumeSnapshotNotFound, Ambiguous),
    }.items():
        with pytest.raises(error):
            db.resolve("db", bad)


def test_heads_and_tips_have_a_history_with_author_and_reason(
    db: Volumes, snapshotter: Snapshotter
) -> None:
    take(db, "one")
    take(db, "two")
    db.history.reset("db", "HEAD^", why=Note(author="bob", reason="regret"))
    histories = Anchors(snapshotter.store)
    for prefix in ("branch/", "volume/"):
        (head,) = histories.walk(prefix)
        entries = histories.history(head.name)
        assert [it.reason for it in entries] == ["regret", "two", "one"]
        assert [it.author for it in entries] == ["bob", "ann", "ann"]
