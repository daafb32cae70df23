"""What is damaged in a root is named, all else is backed up, and nobody is given it unasked."""

from __future__ import annotations

import errno
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs import backup, snapshots, tables
from snapfs.backup import storing
from snapfs.model import Committed, DataLoss
from snapfs.snapshots import NoTrees, Snapshotter, Verdict, fsck
from tests.backup.conftest import Root
from tests.backup.test_backup_and_restore import flip, layers
from tests.support.daemon import eventually
from tests.support.trees import describe, differences

pytestmark = pytest.mark.root


def sealed(root: Root, count: int) -> None:
    def digests() -> int:
        rows = root.snapshotter.walk()
        return sum(1 for it in rows if isinstance(it, Committed) and it.digest)

    eventually(lambda: digests() == count, timeout_s=90, what="the digests")


@pytest.fixture
def rotten(root: Root) -> Path:
    """The layer `rotten`, with a bit flipped, above `base` and below `top`; `other` is sound."""
    root.commit("base")
    upper = root.commit("rotten", "base")
    root.commit("top", "rotten")
    root.commit("other", "base", b"other")
    sealed(root, 4)
    flip(upper / "etc/file", 2)
    return upper


def verdicts(root: Path) -> dict[str, Verdict]:
    return {it.name: it.verdict for it in snapshots.verify(root)}


def test_all_that_is_sound_is_in_the_first_backup_and_what_is_not_is_named(
    root: Root, rotten: Path, tmp_path: Path
) -> None:
    taken = backup.take(root.path, tmp_path / "target")
    (damaged,) = taken.damaged
    assert (damaged.name, damaged.above, damaged.is_copied) == ("rotten", ("top",), True)
    assert "etc/file differs in content" in damaged.what
    assert len(taken.record.layers) == 4
    named = r"'rotten' is damaged \(.*etc/file differs in content and 1 more\); on it stands 'top'"
    with pytest.raises(DataLoss, match=named):
        backup.verify(tmp_path / "target")


def test_damaged_snapshots_are_restored_only_when_asked_and_stay_known_as_such(
    root: Root, rotten: Path, tmp_path: Path
) -> None:
    target, new = tmp_path / "target", tmp_path / "new"
    backup.take(root.path, target)
    with pytest.raises(DataLoss, match=r"'rotten' is damaged .* with --damaged all is restored, 2"):
        backup.restore(target, new)
    assert not (new / "metadata").exists()
    done = backup.restore(target, new, as_damaged=True)
    assert [it.name for it in done.damaged] == ["rotten"]
    assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
    sound = dict.fromkeys(("base", "top", "other"), Verdict.SOUND)
    assert verdicts(new) == {**sound, "rotten": Verdict.DAMAGED}
    root.close()
    made, there = layers(new), layers(root.path)
    for name, layer in made.items():
        assert differences(describe(layer), describe(there[name])) == []


def test_a_sound_copy_outlives_the_layer_it_was_made_of(root: Root, tmp_path: Path) -> None:
    upper = root.commit("base")
    sealed(root, 1)
    target = tmp_path / "target"
    backup.take(root.path, target)
    flip(upper / "etc/file", 2)
    root.commit("later", "base")
    for recheck in (False, True):
        assert backup.take(root.path, target, recheck=recheck).damaged == ()
    backup.verify(target)
    backup.restore(target, tmp_path / "new")
    sealed(root, 2)
    assert verdicts(tmp_path / "new") == dict.fromkeys(("base", "later"), Verdict.SOUND)


@pytest.mark.parametrize("mend", ["removed", "put back"])
def test_the_next_backup_is_whole_once_the_damage_is_mended(
    root: Root, rotten: Path, tmp_path: Path, mend: str
) -> None:
    target = tmp_path / "target"
    backup.take(root.path, target)
    again = backup.take(root.path, target)
    assert ([it.name for it in again.damaged], again.copied_layers) == (["rotten"], 0)
    if mend == "removed":
        root.snapshotter.remove("top")
        root.snapshotter.remove("rotten")
    else:
        flip(rotten / "etc/file", 2)
    whole = backup.take(root.path, target)
    assert (whole.damaged, whole.copied_layers) == ((), int(mend == "put back"))
    backup.verify(target)
    backup.restore(target, tmp_path / "new")
    assert set(verdicts(tmp_path / "new").values()) == {Verdict.SOUND}


def unreadable(monkeypatch: pytest.MonkeyPatch, layer: Path) -> None:
    """Have the disk fail under a layer of the root."""
    put, look = storing.put_layer, storing.damage_of

    def failing(source: Path, *others: object, **more: object) -> object:
        if source == layer:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return put(source, *others, **more)  # type: ignore[arg-type]

    def told(source: Path, digest: bytes) -> str:
        return f"layer {layer} cannot be read" if source == layer else look(source, digest)

    monkeypatch.setattr(storing, "put_layer", failing)
    monkeypatch.setattr(storing, "damage_of", told)


HARMS: dict[str, Callable[[pytest.MonkeyPatch, Path], None]] = {
    "unreadable": unreadable,
    "gone": lambda _, layer: shutil.rmtree(layer),
}


@pytest.mark.parametrize("harm", HARMS)
def test_a_layer_that_cannot_be_copied_is_restored_without_files(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, harm: str
) -> None:
    root.commit("base")
    upper = root.commit("lost", "base")
    root.commit("top", "lost")
    target, new = tmp_path / "target", tmp_path / "new"
    with monkeypatch.context() as patch:
        HARMS[harm](patch, upper.parent)
        (damaged,) = backup.take(root.path, target).damaged
    assert (damaged.name, damaged.above, damaged.is_copied) == ("lost", ("top",), False)
    with pytest.raises(DataLoss, match="'lost' is damaged"):
        backup.restore(target, new)
    backup.restore(target, new, as_damaged=True)
    (problem,) = fsck(new, tables=tables.TABLES, checks=tables.CHECKS).problems
    assert problem.kind == "missing-directory"
    with Snapshotter(new, trees=NoTrees(), tables=tables.TABLES) as restored:
        restored.remove("top")
        restored.remove("lost")
    assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
    assert list(layers(new)) == ["base"]


def test_a_target_that_fails_is_not_taken_for_a_damaged_root(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    sealed(root, 1)

    def failing(*_: object) -> object:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(storing, "put_layer", failing)
    with pytest.raises(DataLoss, match="cannot be copied"):
        backup.take(root.path, tmp_path / "target")
