"""Content that is damaged in a root, or gone, is named; all else is backed up and restored."""

from __future__ import annotations

import errno
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs import backup, tables
from snapfs.backup import storing
from snapfs.metadata import Context, Descriptor, Image, Resource
from snapfs.metadata.blobs import blob_path
from snapfs.model import AlreadyExists, DataLoss
from snapfs.snapshots import Problem, fsck
from tests.backup.conftest import Root
from tests.backup.test_backup_and_restore import flip
from tests.backup.test_backups_of_damaged_roots import sealed
from tests.support.overlay.kernel import tmpfs

pytestmark = pytest.mark.root

SOUND, ROTTEN = b"sound" * 1000, b"rotten" * 1000
HERE = Context("default")
GC_CONFIG = "containerd.io/gc.ref.content.config"


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:100])


def replaced(path: Path) -> None:
    """Change a byte in a file of its own: a backup's link to the old one stays as it was."""
    raw = path.read_bytes()
    path.unlink()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])


def longer(path: Path) -> None:
    path.write_bytes(path.read_bytes() + b"\0")


HARMS: dict[str, Callable[[Path], None]] = {
    "flipped": lambda path: flip(path, 5),
    "replaced": replaced,
    "cut": cut,
    "empty": lambda path: path.write_bytes(b"") and None,
    "longer": longer,
    "gone": Path.unlink,
}
SAID = {"gone": "is gone"}


@pytest.fixture
def digests(root: Root) -> tuple[str, str]:
    """A layer and two blobs, of which the second will rot; return their digests."""
    root.commit("base")
    return root.write_blob(SOUND), root.write_blob(ROTTEN)


def path_of(root: Path, digest: str) -> Path:
    return blob_path(root / "content", digest)


def problems(root: Path) -> tuple[Problem, ...]:
    return fsck(root, tables=tables.TABLES, checks=tables.CHECKS).problems


def held(root: Root, digest: str) -> bytes:
    fd = root.metadata.content.open("default", digest)
    try:
        return os.read(fd, 1 << 20)
    finally:
        os.close(fd)


def fetch(root: Root, data: bytes, digest: str) -> None:
    """Write content as a client that fetches it does: it says first what it will be."""
    with root.metadata.content.writer(HERE, f"fetch-{digest}", expected=digest) as writer:
        assert not writer.virtual
        writer.write(data)
        assert writer.commit().digest == digest


@pytest.mark.parametrize("harm", HARMS)
def test_all_that_is_sound_is_backed_up_restored_and_the_rest_fetched_again(
    root: Root, tmp_path: Path, digests: tuple[str, str], harm: str
) -> None:
    sound, rotten = digests
    target, new = tmp_path / "target", tmp_path / "new"
    HARMS[harm](path_of(root.path, rotten))
    taken = backup.take(root.path, target)
    (damaged,) = taken.damaged_content
    assert damaged.digest == rotten
    assert SAID.get(harm, "has other bytes") in damaged.what
    assert [it.digest for it in taken.record.blobs] == [sound]
    assert (len(taken.record.layers), taken.damaged) == (1, ())
    with pytest.raises(DataLoss, match=f"of a damaged root: content {rotten} is damaged"):
        backup.verify(target)
    with pytest.raises(DataLoss, match="1 snapshots sound, this content without its bytes"):
        backup.restore(target, new)
    assert not (new / "metadata").exists()
    done = backup.restore(target, new, as_damaged=True)
    assert done.damaged_content == (damaged,)
    (problem,) = problems(new)
    assert problem.kind == "content"
    assert f"{rotten}: its file {path_of(new, rotten)} is gone; push or import it" in str(problem)
    restored = Root(new)
    try:
        assert held(restored, sound) == SOUND
        with pytest.raises(DataLoss, match="is gone; fetch it again"):
            held(restored, rotten)
        fetch(restored, ROTTEN, rotten)
        assert held(restored, rotten) == ROTTEN
        assert problems(new) == ()
        assert backup.take(new, tmp_path / "another").damaged_content == ()
    finally:
        restored.close()


@pytest.mark.parametrize("mend", ["fetched", "pushed unnamed", "put back", "removed"])
def test_the_next_backup_is_whole_once_the_damage_is_mended(
    root: Root, tmp_path: Path, digests: tuple[str, str], mend: str
) -> None:
    sound, rotten = digests
    target, path = tmp_path / "target", path_of(root.path, rotten)
    flip(path, 5)
    backup.take(root.path, target)
    again = backup.take(root.path, target)
    assert [it.digest for it in again.damaged_content] == [rotten]
    assert (again.copied_layers, again.copied_blobs) == (0, 0)
    if mend == "removed":
        root.metadata.content.delete("default", rotten)
    elif mend == "put back":
        flip(path, 5)
    else:
        path.rename(tmp_path / "aside")
        fetch(root, ROTTEN, rotten) if mend == "fetched" else root.write_blob(ROTTEN)
    whole = backup.take(root.path, target)
    assert whole.damaged_content == ()
    assert {it.digest for it in whole.record.blobs} == {sound, rotten} - (
        {rotten} if mend == "removed" else set()
    )
    assert backup.verify(target) == whole.record
    backup.restore(target, tmp_path / "new")
    assert problems(tmp_path / "new") == ()


def test_what_rots_in_a_file_that_root_and_backup_share_is_named_by_both(
    root: Root, tmp_path: Path, digests: tuple[str, str]
) -> None:
    _, rotten = digests
    target = tmp_path / "target"
    backup.take(root.path, target)
    path = path_of(root.path, rotten)
    assert path.stat().st_nlink == 2
    flip(path, 5)
    with pytest.raises(DataLoss, match=r"content .* is damaged in .*--recheck"):
        backup.verify(target)
    taken = backup.take(root.path, target, recheck=True)
    assert [it.digest for it in taken.damaged_content] == [rotten]
    assert path.stat().st_nlink == 1
    with pytest.raises(DataLoss, match="is as it was taken, but of a damaged root"):
        backup.verify(target)


@pytest.mark.parametrize("harm", HARMS)
@pytest.mark.parametrize("recheck", [False, True])
def test_a_sound_copy_on_another_disk_outlives_the_blob(
    root: Root, tmp_path: Path, digests: tuple[str, str], harm: str, recheck: bool
) -> None:
    with tmpfs(tmp_path / "place", "size=64m") as place:
        backup.take(root.path, place / "target")
        HARMS[harm](path_of(root.path, digests[1]))
        again = backup.take(root.path, place / "target", recheck=recheck)
        assert (again.damaged_content, again.copied_blobs) == ((), 0)
        backup.verify(place / "target")
        backup.restore(place / "target", tmp_path / "new")
    assert path_of(tmp_path / "new", digests[1]).read_bytes() == ROTTEN


def test_images_that_need_the_content_are_named_and_what_holds_it_stays(
    root: Root, tmp_path: Path
) -> None:
    rotten, other = root.write_blob(ROTTEN), root.write_blob(SOUND)
    manifest = root.write_blob(b"manifest")
    content = root.metadata.content
    content.update("default", manifest, {GC_CONFIG: rotten}, [f"labels.{GC_CONFIG}"])
    for name, digest in (("direct", rotten), ("by-manifest", manifest), ("sound", other)):
        root.metadata.images.create(HERE, Image(name=name, target=Descriptor("m", digest, 1)))
    root.metadata.leases.create("default", "lease")
    root.metadata.leases.add("default", "lease", Resource("content", rotten))
    path_of(root.path, rotten).unlink()
    (damaged,) = backup.take(root.path, tmp_path / "target").damaged_content
    assert damaged.images == (("default", "direct"), ("default", "by-manifest"))
    named = "needed by image 'direct' of namespace 'default', 'by-manifest' of namespace"
    with pytest.raises(DataLoss, match=named):
        backup.restore(tmp_path / "target", tmp_path / "new")
    backup.restore(tmp_path / "target", tmp_path / "new", as_damaged=True)
    restored = Root(tmp_path / "new")
    try:
        assert {it.name for it in restored.metadata.images.walk("default")} == {
            "direct",
            "by-manifest",
            "sound",
        }
        fetch(restored, ROTTEN, rotten)
        for name in ("direct", "by-manifest", "sound"):
            restored.metadata.images.delete("default", name)
        restored.metadata.collector.collect()
        assert held(restored, rotten) == ROTTEN  # for the lease's sake
    finally:
        restored.close()


def test_damaged_layers_and_content_are_named_together(root: Root, tmp_path: Path) -> None:
    upper = root.commit("rotten")
    root.commit("sound")
    digest = root.write_blob(ROTTEN)
    sealed(root, 2)
    flip(upper / "etc/file", 2)
    path_of(root.path, digest).unlink()
    taken = backup.take(root.path, tmp_path / "target")
    assert [it.name for it in taken.damaged] == ["rotten"]
    assert [it.digest for it in taken.damaged_content] == [digest]
    said = (
        rf"'rotten' is damaged .*; content {digest} is damaged .* with --damaged all is restored, "
        "1 snapshots sound, the damaged ones as they are, this content without its bytes"
    )
    with pytest.raises(DataLoss, match=said):
        backup.restore(tmp_path / "target", tmp_path / "new")


def test_a_blob_that_cannot_be_read_is_named(
    root: Root, tmp_path: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rotten = digests
    verify = storing.verify_blob

    def failing(path: Path, digest: str, *others: object) -> None:
        if digest == rotten:
            raise OSError(errno.EIO, os.strerror(errno.EIO), path)
        verify(path, digest, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "verify_blob", failing)
        (damaged,) = backup.take(root.path, tmp_path / "target").damaged_content
    assert (damaged.digest, "cannot be read" in damaged.what) == (rotten, True)
    assert backup.take(root.path, tmp_path / "target").damaged_content == ()


def test_a_target_that_fails_is_not_taken_for_damaged_content(
    root: Root, tmp_path: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    first = backup.take(root.path, target).record
    root.write_blob(b"more")

    def failing(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_blob", failing)
        with pytest.raises(DataLoss, match="cannot be copied"):
            backup.take(root.path, target)
    assert backup.verify(target) == first


def test_a_record_from_before_damaged_content_was_named_is_read(
    root: Root, tmp_path: Path, digests: tuple[str, str]
) -> None:
    target = tmp_path / "target"
    backup.take(root.path, target)
    record = json.loads((target / "backup.json").read_bytes())
    del record["sum"], record["damaged_blobs"]
    (target / "backup.json").write_text(json.dumps(record))
    assert len(backup.verify(target).blobs) == 2
    backup.restore(target, tmp_path / "new")
    assert backup.take(root.path, target).copied_blobs == 0


def test_a_restore_without_the_content_goes_on_after_a_later_backup_has_it(
    root: Root, tmp_path: Path, digests: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    _, rotten = digests
    target, new = tmp_path / "target", tmp_path / "new"
    path_of(root.path, rotten).unlink()
    backup.take(root.path, target)
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KeyboardInterrupt

        patch.setattr("snapfs.backup.restoring._restore_metadata", killed)
        with pytest.raises(KeyboardInterrupt):
            backup.restore(target, new, as_damaged=True)
    fetch(root, ROTTEN, rotten)
    backup.take(root.path, target)
    assert backup.restore(target, new).damaged_content == ()
    assert path_of(new, rotten).read_bytes() == ROTTEN
    assert problems(new) == ()


def test_sound_content_is_not_sent_twice(root: Root, digests: tuple[str, str]) -> None:
    with pytest.raises(AlreadyExists):
        root.metadata.content.writer(HERE, "again", expected=digests[0])
    with pytest.raises(AlreadyExists):
        root.write_blob(SOUND)
