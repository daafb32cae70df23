"""Changed snapshots become images, images become files, and come back the same."""

from __future__ import annotations

import os
import shutil
import tarfile
from collections.abc import Callable
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapfs import anchors
from snapfs.fuse import attach
from snapfs.images import (
    Catalog,
    Committer,
    Exporter,
    Importer,
    Platform,
    Progress,
    Statement,
    Wanted,
)
from snapfs.metadata import TABLES, Context, Metadata
from snapfs.model import FailedPrecondition, NotFound, Unavailable
from snapfs.snapshots import NoTrees, Snapshotter
from tests.images.kit import Layout, directory, file, hardlink, symlink, tree

pytestmark = pytest.mark.root

EPOCH_S = 1_700_000_000
WANTED = Wanted(platform=Platform("amd64", "linux"))
FIXED = Statement(epoch_s=EPOCH_S)
NAME = "example.org/made:1"
BASE = [
    directory("etc"),
    file("etc/hosts", b"127.0.0.1"),
    file("etc/passwd", b"root"),
    directory("old"),
    file("old/a"),
    directory("kept"),
    file("kept/b"),
    hardlink("kept/c", "kept/b"),
    symlink("bin", "usr/bin"),
    directory("usr"),
    directory("usr/bin"),
]
Show = Callable[[str], Path]


@contextmanager
def writable(snapshotter: Snapshotter, key: str, parent: str, target: Path) -> Any:
    """Mount a new active snapshot for changes."""
    snapshotter.prepare(key, parent)
    target.mkdir()
    for mount in snapshotter.mounts(key):
        attach.attach(mount, target)
    try:
        yield target
    finally:
        attach.detach(target)


def change(root: Path) -> None:
    """Change a tree in every way that a layer can say."""
    (root / "etc/hosts").write_bytes(b"::1")
    (root / "etc/passwd").unlink()
    (root / "new").mkdir(mode=0o750)
    (root / "new/file").write_bytes(b"new" * 1000)
    os.link(root / "new/file", root / "new/link")
    os.setxattr(root / "new/file", "user.mark", b"\xff\x00raw")
    os.mkfifo(root / "new/pipe")
    os.mknod(root / "new/null", 0o20666, os.makedev(1, 3))
    (root / "new/sym").symlink_to("../etc")
    os.utime(root / "new/file", ns=(EPOCH_S * 10**9 - 1, EPOCH_S * 10**9 - 1))
    for name, mtime_ns in (("ancient", -1_500_000_000), ("eve", -1)):
        (root / name).touch()
        os.utime(root / name, ns=(mtime_ns, mtime_ns))
    shutil.rmtree(root / "old")
    (root / "old").mkdir()
    (root / "old/other").write_bytes(b"o")
    (root / "bin").unlink()
    (root / "bin").mkdir()
    os.chown(root / "kept", 7, 8)
    (root / ("l" * 255)).write_bytes(b"long")


@pytest.fixture
def imported(importer: Importer, layout: Layout, metadata: Metadata) -> str:
    """Import the base image; return its snapshot."""
    layout.image([BASE])
    importer.import_path("default", layout.root, WANTED)
    return Catalog(metadata).get("default", NAME).snapshot


def test_a_changed_snapshot_becomes_an_image_that_shows_the_same_tree(
    metadata: Metadata, snapshotter: Snapshotter, imported: str, shown: Show, tmp_path: Path
) -> None:
    with writable(snapshotter, "w/extract-1", imported, tmp_path / "w") as root:
        change(root)
        before = tree(root)
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=Statement(comment="changed")
    )
    assert tree(shown(made.snapshot)) == before
    assert len(made.layers) == 2
    assert made.layers[0].chain_id == imported
    assert Catalog(metadata).verify("default", "mine") == []
    metadata.collector.collect()
    assert Catalog(metadata).get("default", "mine").snapshot == made.snapshot
    with pytest.raises(NotFound):
        snapshotter.stat("w/extract-1")


def test_the_layer_holds_the_change_and_nothing_else(
    metadata: Metadata, snapshotter: Snapshotter, imported: str, tmp_path: Path
) -> None:
    with writable(snapshotter, "w/extract-1", imported, tmp_path / "w") as root:
        (root / "etc/hosts").write_bytes(b"::1")
        (root / "etc/passwd").unlink()
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=FIXED
    )
    path = metadata.content.path("default", made.layers[-1].descriptor.digest)
    with tarfile.open(path) as archive:
        assert archive.getnames() == ["etc", "etc/hosts", "etc/.wh.passwd"]


def test_an_image_without_history_gets_a_step_for_each_layer(
    metadata: Metadata,
    snapshotter: Snapshotter,
    importer: Importer,
    layout: Layout,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    layout.image([BASE, [file("more")]], history=False)
    importer.import_path("default", layout.root, WANTED)
    imported = Catalog(metadata).get("default", NAME)
    assert imported.created_by == ("", "")
    with writable(snapshotter, "w/extract-1", imported.snapshot, tmp_path / "w") as root:
        (root / "new").touch()
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=Statement(created_by="me")
    )
    assert Catalog(metadata).get("default", "mine").created_by == ("", "", "me")
    assert made.created_by == ("", "", "me")


def test_the_same_change_has_the_same_digest(
    metadata: Metadata, snapshotter: Snapshotter, imported: str, tmp_path: Path
) -> None:
    digests = set()
    for number in range(2):
        key = f"w/extract-{number}"
        with writable(snapshotter, key, imported, tmp_path / f"w{number}") as root:
            change(root)
        made = Committer(metadata, snapshotter).commit(
            "default", key, f"mine:{number}", statement=FIXED
        )
        digests.add(made.image.target.digest)
    assert len(digests) == 1


class StopError(Exception):
    pass


def stop(*_arguments: Any) -> Any:
    raise StopError


def interrupted(
    metadata: Metadata, snapshotter: Snapshotter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Commit `w/extract-1`, and end in the middle."""
    with monkeypatch.context() as patched:
        patched.setattr(Committer, "_write_layer", stop)
        with pytest.raises(StopError):
            Committer(metadata, snapshotter).commit(
                "default", "w/extract-1", "mine", statement=FIXED
            )
    with pytest.raises(NotFound):
        snapshotter.stat("w/extract-1")


def test_an_interrupted_commit_goes_on_when_it_is_asked_for_again(
    metadata: Metadata,
    snapshotter: Snapshotter,
    imported: str,
    shown: Show,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with writable(snapshotter, "w/extract-1", imported, tmp_path / "w") as root:
        (root / "first").touch()
    interrupted(metadata, snapshotter, monkeypatch)
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=FIXED
    )
    assert (shown(made.snapshot) / "first").exists()
    left = {it.name for it in snapshotter.walk() if not it.name.startswith("look/")}
    assert left == {imported, made.snapshot}


def test_an_interrupted_commit_makes_room_for_one_of_a_new_snapshot_of_its_key(
    metadata: Metadata,
    snapshotter: Snapshotter,
    imported: str,
    shown: Show,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for number in range(2):
        with writable(snapshotter, "w/extract-1", imported, tmp_path / f"w{number}") as root:
            (root / f"{number}").touch()
        if not number:
            interrupted(metadata, snapshotter, monkeypatch)
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=FIXED
    )
    assert (shown(made.snapshot) / "1").exists()
    assert not (shown(made.snapshot) / "0").exists()
    left = {it.name for it in snapshotter.walk() if not it.name.startswith("look/")}
    assert left == {imported, made.snapshot}


def test_a_commit_takes_no_strangers_place_and_none_that_is_in_use(
    metadata: Metadata, snapshotter: Snapshotter, imported: str, tmp_path: Path
) -> None:
    with writable(snapshotter, "w/extract-1", imported, tmp_path / "w") as root:
        (root / "mine").touch()
    snapshotter.prepare("image-commit/w/extract-1", imported)
    committer = Committer(metadata, snapshotter)

    def commit(name: str) -> None:
        committer.commit("default", "w/extract-1", name, statement=FIXED, report=again)

    def again(_step: Progress) -> None:
        with pytest.raises(Unavailable, match="is being made an image"):
            commit("other")

    with pytest.raises(FailedPrecondition, match="'image-commit/w/extract-1' is active"):
        commit("mine")
    assert {it.name for it in snapshotter.walk()} >= {"w/extract-1", "image-commit/w/extract-1"}
    snapshotter.remove("image-commit/w/extract-1")
    commit("mine")
    assert [it.image.name for it in Catalog(metadata).walk("default")] == [NAME, "mine"]


def test_an_image_from_scratch(
    metadata: Metadata, snapshotter: Snapshotter, shown: Show, tmp_path: Path
) -> None:
    with writable(snapshotter, "w/extract-1", "", tmp_path / "w") as root:
        (root / "hello").write_bytes(b"world")
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "scratch", statement=FIXED
    )
    assert len(made.layers) == 1
    assert (shown(made.snapshot) / "hello").read_bytes() == b"world"


def test_what_does_not_stand_on_an_image_is_refused_and_stays_active(
    metadata: Metadata, snapshotter: Snapshotter
) -> None:
    snapshotter.prepare("a")
    snapshotter.commit("a", "plain")
    snapshotter.prepare("b", "plain")
    committer = Committer(metadata, snapshotter)
    with pytest.raises(FailedPrecondition, match="no image"):
        committer.commit("default", "b", "mine", statement=FIXED)
    with pytest.raises(FailedPrecondition, match="only an active"):
        committer.commit("default", "plain", "mine", statement=FIXED)
    with pytest.raises(NotFound):
        committer.commit("default", "none", "mine", statement=FIXED)
    assert snapshotter.stat("b").kind.word == "active"


def test_an_exported_image_is_the_same_on_another_root(
    metadata: Metadata, snapshotter: Snapshotter, imported: str, tmp_path: Path
) -> None:
    with writable(snapshotter, "w/extract-1", imported, tmp_path / "w") as root:
        change(root)
    made = Committer(metadata, snapshotter).commit(
        "default", "w/extract-1", "mine", statement=Statement()
    )
    path = tmp_path / "mine.tar"
    Exporter(metadata).export("default", ["mine", NAME], path)
    again = tmp_path / "again.tar"
    Exporter(metadata).export("default", ["mine", NAME], again)
    assert path.read_bytes() == again.read_bytes()

    tables = (*anchors.TABLES, *TABLES)
    with (
        Snapshotter(tmp_path / "other", trees=NoTrees(), tables=tables) as there,
        Metadata(there.store, tmp_path / "other/content", {"snapfs": there}) as elsewhere,
    ):
        Importer(elsewhere, there).import_path("team", path, WANTED)
        copy = Catalog(elsewhere).get("team", "mine")
        assert copy.image.target.digest == made.image.target.digest
        assert [it.chain_id for it in copy.layers] == [it.chain_id for it in made.layers]
        ours, theirs = tmp_path / "ours", tmp_path / "theirs"
        for root, keeper in ((ours, snapshotter), (theirs, there)):
            with writable(keeper, "look/extract-1", made.snapshot, root):
                tree_of = tree(root)
            if root is ours:
                expected = tree_of
        assert tree_of == expected


def test_an_export_refuses_to_overwrite_and_leaves_nothing_half_written(
    metadata: Metadata, imported: str, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.mkdir()
    (target / "there.tar").write_bytes(b"mine")
    exporter = Exporter(metadata)
    with pytest.raises(FailedPrecondition, match="exists"):
        exporter.export("default", [NAME], target / "there.tar")
    with pytest.raises(NotFound):
        exporter.export("default", ["none"], target / "new.tar")
    assert [path.name for path in target.iterdir()] == ["there.tar"]
    assert imported


def test_verify_finds_a_flipped_bit_and_a_missing_file(metadata: Metadata, imported: str) -> None:
    catalog = Catalog(metadata)
    assert catalog.verify("default", NAME) == []
    digest = catalog.get("default", NAME).layers[0].descriptor.digest
    path = metadata.content.path("default", digest)
    data = bytearray(path.read_bytes())
    data[100] ^= 1
    path.chmod(0o600)
    path.write_bytes(data)
    assert [digest in text for text in catalog.verify("default", NAME)] == [True]
    path.unlink()
    assert [digest in text for text in catalog.verify("default", NAME)] == [True]
    assert Context("default").lease == ""


@pytest.mark.logs("gc.snapshot_kept")
def test_a_snapshot_on_its_way_out_is_wanted_again(
    metadata: Metadata, snapshotter: Snapshotter, importer: Importer, layout: Layout, imported: str
) -> None:
    """Removed while a snapshot stands on it, it stays; an import takes it back into use."""
    snapshotter.prepare("user", imported)
    metadata.images.delete("default", NAME)
    assert metadata.collector.collect().failed == [f"snapfs/{imported}"]
    importer.import_path("default", layout.root, WANTED)
    snapshotter.remove("user")
    metadata.collector.collect()
    assert Catalog(metadata).get("default", NAME).snapshot == imported
    assert snapshotter.stat(imported).name == imported
