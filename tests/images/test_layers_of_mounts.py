"""Comparing and applying what mounts show, with our own content behind it."""

from __future__ import annotations

import errno
import hashlib
import os
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import attach
from snapfs.fuse.mounts import mount_table
from snapfs.images import UNCOMPRESSED, Asked, Differ, OwnContents, clear_copies, packing
from snapfs.images.differ import LayerWriter
from snapfs.images.packing import DOCKER_GZIP, TAR, TAR_GZIP, TAR_ZSTD
from snapfs.images.standing import PLACE
from snapfs.metadata import Context, Metadata
from snapfs.model import DataLoss, FailedPrecondition, Mount, NotFound, NotImplementedYet
from snapfs.overlay import LayerCopy
from snapfs.snapshots import Snapshotter

HERE = Context("default")


@pytest.fixture
def contents(metadata: Metadata) -> OwnContents:
    return OwnContents(metadata, HERE)


@pytest.fixture
def pair(snapshotter: Snapshotter) -> tuple[list[Mount], list[Mount]]:
    """Mounts of a base, and of an active snapshot on it with one changed file."""
    snapshotter.prepare("first")
    write(snapshotter, "first", "kept", b"kept")
    snapshotter.commit("first", "base")
    left = snapshotter.view("left", "base")
    right = snapshotter.prepare("right", "base")
    write(snapshotter, "right", "new", b"new" * 1000)
    return left, right


def write(snapshotter: Snapshotter, key: str, name: str, data: bytes) -> None:
    identity = snapshotter.stat(key).id
    (snapshotter.root / "layers" / str(identity) / "fs" / name).write_bytes(data)


@pytest.mark.parametrize("media_type", [TAR, TAR_GZIP, TAR_ZSTD, DOCKER_GZIP])
def test_a_layer_has_the_change_alone_in_the_form_that_was_asked_for(
    metadata: Metadata,
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    media_type: str,
) -> None:
    asked = Asked(media_type=media_type, labels={"said": "here"})
    packed = Differ(snapshotter).compare(contents, *pair, asked)
    info = metadata.content.info("default", packed.digest)
    data = metadata.content.path("default", packed.digest).read_bytes()
    assert packed.media_type == media_type
    assert (info.size_bytes, packed.size_bytes) == (len(data), len(data))
    assert packed.digest == f"sha256:{hashlib.sha256(data).hexdigest()}"
    assert info.labels["said"] == "here"
    assert info.labels.get(UNCOMPRESSED, packed.digest) == packed.diff_id
    if media_type == TAR_GZIP:
        with tarfile.open(metadata.content.path("default", packed.digest), "r:gz") as archive:
            assert archive.getnames() == ["new"]


def test_a_layer_made_twice_is_there_once_and_learns_its_label(
    metadata: Metadata,
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
) -> None:
    differ = Differ(snapshotter)
    first = differ.compare(contents, *pair, Asked())
    metadata.content.update("default", first.digest, {}, ["labels"])
    assert differ.compare(contents, *pair, Asked()) == first
    assert metadata.content.info("default", first.digest).labels == {UNCOMPRESSED: first.diff_id}
    assert list(metadata.content.statuses("default")) == []


def test_a_committed_snapshot_without_a_parent_is_one_layer_on_nothing(
    snapshotter: Snapshotter, contents: OwnContents, pair: tuple[list[Mount], list[Mount]]
) -> None:
    nothing = snapshotter.view("nothing", "")
    left, _ = pair
    packed = Differ(snapshotter).compare(contents, nothing, left, Asked(media_type=TAR))
    with (
        closing(contents.open(packed.digest, packed.size_bytes)) as file,
        tarfile.open(fileobj=file) as archive,
    ):
        assert archive.getnames() == ["kept"]


def test_mounts_that_are_not_one_layer_apart_are_left_to_others(
    metadata: Metadata,
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    tmp_path: Path,
) -> None:
    left, right = pair
    stranger = [Mount(type="bind", source=str(tmp_path / "2"), options=("rbind",))]
    nowhere = [Mount(type="bind", source=f"/{10**30}", options=("rbind",))]
    odd = ((right, left), (left, left), (left, stranger), (left, []), ([], right), (left, nowhere))
    for below, above in odd:
        with pytest.raises(NotImplementedYet):
            Differ(snapshotter).compare(contents, below, above, Asked())
    assert list(metadata.content.statuses("default")) == []
    assert list(metadata.content.walk("default")) == []


@pytest.mark.root
def test_what_was_compared_is_applied_to_another_snapshot(
    snapshotter: Snapshotter, contents: OwnContents, pair: tuple[list[Mount], list[Mount]]
) -> None:
    differ = Differ(snapshotter)
    packed = differ.compare(contents, *pair, Asked())
    target = snapshotter.prepare("x/extract-1", "base")
    applied = differ.apply(contents, packed.digest, packed.size_bytes, target)
    assert applied.digest == packed.diff_id
    upper = snapshotter.root / "layers" / str(snapshotter.stat("x/extract-1").id) / "fs"
    assert [it.name for it in upper.iterdir()] == ["new"]
    assert (upper / "new").read_bytes() == b"new" * 1000
    with pytest.raises(FailedPrecondition, match="another digest"):
        differ.apply(contents, packed.digest, packed.size_bytes + 1, target)


class Watching:
    """A place for layers that looks at its snapshotter whenever bytes come."""

    def __init__(self, inner: OwnContents, look: Callable[[], None]) -> None:
        self._inner = inner
        self._look = look
        self.label, self.open, self.close = inner.label, inner.open, inner.close

    def writer(self, ref: str) -> LayerWriter:
        self._look()
        return self._inner.writer(ref)


def test_writers_wait_neither_for_the_packing_nor_for_who_takes_the_layer(
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held, seen = [], []
    hold = snapshotter.held

    @contextmanager
    def counted(key: str) -> Iterator[object]:
        with hold(key) as layers:
            held.append(key)
            yield layers
            held.remove(key)

    pack = packing.pack

    def look(*arguments: Any, **more: Any) -> packing.Packed:
        seen.append(list(held))
        return pack(*arguments, **more)

    monkeypatch.setattr(snapshotter, "held", counted)
    monkeypatch.setattr(packing, "pack", look)
    watching = Watching(contents, lambda: seen.append(list(held)))
    Differ(snapshotter).compare(watching, *pair, Asked())
    assert seen == [[], []]
    assert list((snapshotter.root / PLACE).iterdir()) == []


def test_without_room_for_a_copy_another_differ_is_asked(
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(_: LayerCopy) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(LayerCopy, "make", full)
    with pytest.raises(NotImplementedYet, match="no room"):
        Differ(snapshotter).compare(contents, *pair, Asked())
    assert list((snapshotter.root / PLACE).iterdir()) == []


@pytest.mark.root
def test_an_active_snapshot_gives_the_layer_that_it_gives_when_it_is_committed(
    snapshotter: Snapshotter, contents: OwnContents, pair: tuple[list[Mount], list[Mount]]
) -> None:
    left, right = pair
    upper = snapshotter.root / "layers" / str(snapshotter.stat("right").id) / "fs"
    os.mknod(upper / "kept", stat.S_IFCHR, 0)  # a whiteout
    (upper / "opaque").mkdir(0o751)
    os.setxattr(upper / "opaque", "trusted.overlay.opaque", b"y")
    (upper / "opaque/file").write_bytes(b"f" * 5000)
    os.setxattr(upper / "opaque/file", "user.said", b"here")
    os.utime(upper / "opaque/file", ns=(0, 1_700_000_000_123_456_789))
    os.link(upper / "opaque/file", upper / "linked")
    (upper / "symlink").symlink_to("opaque/file")
    os.mkfifo(upper / "fifo")
    with (upper / "sparse").open("wb") as sparse:
        sparse.truncate(1 << 24)
    os.utime(upper / "opaque", ns=(0, 1_600_000_000_000_000_001))
    differ = Differ(snapshotter)
    active = differ.compare(contents, left, right, Asked())
    snapshotter.commit("right", "done")
    committed = differ.compare(contents, left, snapshotter.view("look", "done"), Asked())
    assert active == committed
    (snapshotter.root / PLACE / "of a killed service").mkdir()
    clear_copies(snapshotter)
    assert not (snapshotter.root / PLACE).exists()


def test_a_commit_that_fails_leaves_no_ingest(
    metadata: Metadata, contents: OwnContents, pair: tuple[list[Mount], list[Mount]]
) -> None:
    with closing(contents.writer("r")) as writer:
        writer.write(b"data")
        with pytest.raises(FailedPrecondition, match="bytes"):
            writer.commit(5, "", {})
    assert list(metadata.content.statuses("default")) == []


def test_a_disk_that_fails_at_the_commit_is_what_the_caller_hears_of(
    metadata: Metadata, contents: OwnContents, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: int) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with closing(contents.writer("r")) as writer:
        writer.write(b"data")
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DataLoss):
            writer.commit(4, "", {})
    assert list(metadata.content.statuses("default")) == []


def bind(path: Path) -> Mount:
    """Return a mount of a caller's own directory, with a file in it."""
    path.mkdir()
    (path / "precious").write_bytes(b"precious")
    return Mount(type="bind", source=str(path), options=("bind", "rw"))


@pytest.fixture
def scratch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where mounts of a differ are made; nothing is left of them, and callers keep their files."""
    made = tmp_path / "scratch"
    made.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(made))
    yield made
    assert list(made.iterdir()) == []
    assert [it.path for it in mount_table() if it.path.startswith(str(made))] == []
    for each in tmp_path.glob("caller-*"):
        assert (each / "precious").read_bytes() == b"precious"


@pytest.mark.root
def test_mounts_of_which_the_second_fails_lose_nobody_a_file(
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    scratch: Path,
    tmp_path: Path,
) -> None:
    differ = Differ(snapshotter)
    packed = differ.compare(contents, *pair, Asked())
    nothing = Mount(type="bind", source=str(tmp_path / "nothing"), options=("bind",))
    with pytest.raises(FailedPrecondition, match="cannot apply"):
        differ.apply(
            contents, packed.digest, packed.size_bytes, [bind(tmp_path / "caller-1"), nothing]
        )


@pytest.mark.root
def test_mounts_over_each_other_are_all_taken_off(
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    scratch: Path,
    tmp_path: Path,
) -> None:
    differ = Differ(snapshotter)
    packed = differ.compare(contents, *pair, Asked())
    both = [bind(tmp_path / "caller-1"), bind(tmp_path / "caller-2")]
    differ.apply(contents, packed.digest, packed.size_bytes, both)
    assert [it.name for it in (tmp_path / "caller-1").iterdir()] == ["precious"]
    assert (tmp_path / "caller-2" / "new").read_bytes() == b"new" * 1000


@pytest.mark.root
def test_a_mount_that_somebody_uses_is_hidden_and_loses_no_file(
    scratch: Path, tmp_path: Path
) -> None:
    with ExitStack() as stack:
        with attach.attached([bind(tmp_path / "caller-1")], "test-") as target:
            file = stack.enter_context((target / "precious").open("rb"))
        assert list(scratch.iterdir()) == []
        assert file.read() == b"precious"


def test_a_snapshot_that_gave_way_to_another_of_its_name_is_not_what_is_packed(
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def replaced(_: LayerCopy) -> None:
        snapshotter.remove("right")
        snapshotter.prepare("right")

    monkeypatch.setattr(LayerCopy, "warm", replaced)
    with pytest.raises(NotImplementedYet, match="right"):
        Differ(snapshotter).compare(contents, *pair, Asked())


@pytest.mark.parametrize("kind", ["active", "view"])
def test_a_snapshot_that_is_removed_while_it_is_packed_gives_no_layer(
    metadata: Metadata,
    snapshotter: Snapshotter,
    contents: OwnContents,
    pair: tuple[list[Mount], list[Mount]],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
) -> None:
    left, right = pair
    if kind == "view":
        snapshotter.commit("right", "done")
        right = snapshotter.view("right", "done")
    pack = packing.pack

    def gone(*arguments: Any, **more: Any) -> packing.Packed:
        next(snapshotter.root.glob("layers/*/fs/new")).unlink()  # as the removal begins
        packed = pack(*arguments, **more)
        for name in ("right", "done") if kind == "view" else ("right",):
            snapshotter.remove(name)
        return packed

    monkeypatch.setattr(packing, "pack", gone)
    with pytest.raises(NotFound, match="removed"):
        Differ(snapshotter).compare(contents, left, right, Asked())
    assert list(metadata.content.walk("default")) == []


def test_a_look_at_nothing_is_left_to_others(
    snapshotter: Snapshotter, contents: OwnContents
) -> None:
    with pytest.raises(NotImplementedYet):
        Differ(snapshotter).compare(
            contents, snapshotter.view("a", ""), snapshotter.view("b", ""), Asked()
        )
