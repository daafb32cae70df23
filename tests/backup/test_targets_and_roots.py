"""A backup writes over nothing that is not its own, and only a restore makes a root of it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs import backup, tables
from snapfs.backup import storing, taking
from snapfs.metadata.blobs import blob_path
from snapfs.model import DataLoss, FailedPrecondition, NotFound
from snapfs.snapshots import fsck, roots
from tests.backup.conftest import Root
from tests.backup.test_kill_at_every_step_of_backups import drafts, is_killed_at

pytestmark = pytest.mark.root


def all_in(place: Path) -> dict[str, bytes]:
    """Return the files below a directory, and the directories as if they were empty files."""
    return {
        str(it.relative_to(place)): it.read_bytes() if it.is_file() else b""
        for it in place.rglob("*")
    }


def fill(place: Path, *names: str) -> None:
    for name in names:
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).write_text(name)


@pytest.mark.parametrize(
    "names",
    [
        ("keep",),
        ("layers/photos/p", "layers/17/fs/a"),
        ("content/books/b", "content/sha256/c"),
        ("metadata-99",),
        (".git/HEAD", "README"),
    ],
)
def test_a_directory_with_something_else_is_refused_and_stays_as_it_was(
    root: Root, tmp_path: Path, names: tuple[str, ...]
) -> None:
    root.commit("base")
    fill(tmp_path / "target", *names)
    before = all_in(tmp_path / "target")
    with pytest.raises(FailedPrecondition, match="is no backup and not empty"):
        backup.take(root.path, tmp_path / "target")
    assert all_in(tmp_path / "target") == before


@pytest.mark.parametrize("names", [("metadata/data.mdb",), ("snapfs.json",), ("empty/x",)])
@pytest.mark.parametrize("has_record", [False, True])
def test_a_root_is_refused_as_a_target(
    root: Root, tmp_path: Path, names: tuple[str, ...], has_record: bool
) -> None:
    root.commit("base")
    target = tmp_path / "target"
    if has_record:
        backup.take(root.path, target)
    fill(target, *names)
    before = all_in(target)
    with pytest.raises(FailedPrecondition, match="is a root of snapfs"):
        backup.take(root.path, target)
    assert all_in(target) == before


def test_another_root_is_as_it_was_after_it_was_named_as_a_target(
    root: Root, tmp_path: Path
) -> None:
    root.commit("base")
    other = Root(tmp_path / "other")
    try:
        other.commit("one", data=b"of the other")
        other.commit("two", "one")
        before = all_in(other.path / "layers")
        with pytest.raises(FailedPrecondition, match="is a root of snapfs"):
            backup.take(root.path, other.path)
        assert all_in(other.path / "layers") == before
        assert other.snapshotter.fsck().clean
    finally:
        other.close()


def test_a_backup_of_another_store_is_as_it_was(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    other = Root(tmp_path / "other")
    try:
        other.commit("one")
        backup.take(other.path, tmp_path / "target")
    finally:
        other.close()
    before = all_in(tmp_path / "target")
    with pytest.raises(FailedPrecondition, match="a backup of another store"):
        backup.take(root.path, tmp_path / "target")
    assert all_in(tmp_path / "target") == before


def test_what_somebody_put_into_a_backup_stays(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    root.write_blob(b"one")
    target = tmp_path / "target"
    backup.take(root.path, target)
    names = (
        "keep",
        "layers/photos/p",
        "layers/170/fs/a",
        "content/books/b",
        "content/sha256/c",
        "metadata-of-mine",
    )
    fill(target, *names)
    root.commit("top", "base")
    backup.take(root.path, target)
    for name in names:
        assert (target / name).read_text() == name


def test_an_empty_directory_and_a_new_disk_are_targets(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    for name in ("empty", "disk"):
        (tmp_path / name).mkdir()
    (tmp_path / "disk" / "lost+found").mkdir()
    for name in ("empty", "disk", "new"):
        taken = backup.take(root.path, tmp_path / name)
        assert backup.verify(tmp_path / name) == taken.record
        assert not (tmp_path / name / roots.BACKUP_BEGUN).exists()


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_a_killed_first_backup_is_finished_by_the_next(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    root.commit("going", "base")
    root.write_blob(b"one")
    for step in range(1, 200):
        target = tmp_path / f"target-{step}"
        if not is_killed_at(step, lambda: backup.take(root.path, target)):  # noqa: B023  # at once
            break
        done = backup.take(root.path, target)
        assert backup.verify(target) == done.record
        assert not (target / roots.BACKUP_BEGUN).exists()
        assert drafts(target) == []
    assert step > 15, f"only {step} steps were counted"


def test_the_mark_is_there_before_anything_is_copied(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    target, seen = tmp_path / "target", set[str]()

    def save(self: object) -> None:
        seen.update(os.listdir(target))
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(taking._Taking, "_save", save)
        with pytest.raises(InterruptedError):
            backup.take(root.path, target)
    assert seen == {"lock", roots.BACKUP_BEGUN}
    with pytest.raises(FailedPrecondition, match="is a backup, not a root"):
        roots.attach(target)


def test_a_layer_that_was_given_up_is_deleted_by_the_next_backup(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    root.commit("going", "base")
    root.write_blob(b"one")
    target = tmp_path / "target"

    def put(*others: object, **options: object) -> None:
        raise InterruptedError

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_blob", put)
        with pytest.raises(InterruptedError):
            backup.take(root.path, target)
    assert {it.name for it in (target / "layers").iterdir()} == {"1", "2"}
    root.snapshotter.remove("going")
    assert backup.take(root.path, target).copied_layers == 0
    assert {it.name for it in (target / "layers").iterdir()} == {"1"}


@pytest.mark.parametrize("below", [".", "x"])
def test_a_backup_is_opened_by_nothing_but_a_restore(
    root: Root, tmp_path: Path, below: str
) -> None:
    root.commit("base")
    target = tmp_path / "target"
    backup.take(root.path, target)
    before = all_in(target)
    for act in (roots.attach, roots.init):
        with pytest.raises(FailedPrecondition, match="is a backup, not a root; `snapfs restore"):
            act(target)
    with pytest.raises(FailedPrecondition, match="one inside the other"):
        backup.restore(target, target / below)
    assert all_in(target) == before


def test_a_parent_that_is_missing_is_not_made(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    with pytest.raises(FailedPrecondition, match=r"no directory .*/disk/a; mount the disk"):
        backup.take(root.path, tmp_path / "disk" / "a" / "backup")
    assert not (tmp_path / "disk").exists()
    backup.take(root.path, tmp_path / "backup")
    with pytest.raises(FailedPrecondition, match=r"no directory .*/disk/a; mount the disk of the"):
        backup.restore(tmp_path / "backup", tmp_path / "disk" / "a" / "root")
    assert not (tmp_path / "disk").exists()


def test_a_restore_that_cannot_begin_makes_no_directory(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    with pytest.raises(NotFound, match="no complete backup"):
        backup.restore(tmp_path / "nothing", tmp_path / "new")
    assert not (tmp_path / "new").exists()
    backup.take(root.path, tmp_path / "backup")
    (tmp_path / "file").touch()
    with pytest.raises(FailedPrecondition, match="is not a directory; name another with --root"):
        backup.restore(tmp_path / "backup", tmp_path / "file")


@pytest.mark.parametrize(
    ("target", "why"), [("/etc/passwd", "is not a directory"), ("/proc/x", "no directory can be")]
)
def test_a_target_that_can_be_no_directory_is_said_to_be_none(
    root: Root, target: str, why: str
) -> None:
    with pytest.raises(FailedPrecondition, match=why):
        backup.take(root.path, Path(target))


def test_a_restore_of_a_damaged_backup_names_the_way_out(root: Root, tmp_path: Path) -> None:
    root.commit("base", data=b"rather more data")
    target = tmp_path / "target"
    backup.take(root.path, target)
    (target / "layers/1/fs/etc/file").write_bytes(b"other")
    with pytest.raises(DataLoss, match=r"`snapfs backup --recheck .*/target`"):
        backup.restore(target, tmp_path / "new")
    backup.take(root.path, target, recheck=True)
    backup.restore(target, tmp_path / "new")


def test_a_restore_goes_on_with_a_backup_that_was_taken_anew(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    root.commit("going", "base")
    going, kept = root.write_blob(b"going"), root.write_blob(b"kept")
    target, new = tmp_path / "target", tmp_path / "new"
    backup.take(root.path, target)
    damaged = target / "content" / kept.replace(":", "/")
    damaged.unlink()  # it is the root's own file
    damaged.write_bytes(b"other")
    with pytest.raises(DataLoss):
        backup.restore(target, new)
    left = blob_path(new / "content", going)
    fill(new, "layers/9.part/fs/file", f"{left.relative_to(new)}.part")
    root.snapshotter.remove("going")
    root.metadata.content.delete("default", going)
    root.commit("top", "base")
    backup.take(root.path, target, recheck=True)
    record = backup.restore(target, new).record
    assert sorted(os.listdir(new / "layers")) == [str(layer.id) for layer in record.layers]
    assert not left.exists()
    assert drafts(new) == []
    assert blob_path(new / "content", kept).read_bytes() == b"kept"
    assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean


def test_a_restore_does_not_go_on_with_a_backup_of_another_store(
    root: Root, tmp_path: Path
) -> None:
    root.commit("base", data=b"rather more data")
    other = Root(tmp_path / "other")
    try:
        backup.take(other.path, tmp_path / "another")
    finally:
        other.close()
    target, new = tmp_path / "target", tmp_path / "new"
    backup.take(root.path, target)
    (target / "layers/1/fs/etc/file").write_bytes(b"other")
    with pytest.raises(DataLoss):
        backup.restore(target, new)
    before = all_in(new)
    with pytest.raises(FailedPrecondition, match="a backup of another store; empty it"):
        backup.restore(tmp_path / "another", new)
    assert all_in(new) == before
