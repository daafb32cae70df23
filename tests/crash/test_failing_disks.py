"""A disk that answers with errors: they are told, what was acknowledged stays, a restart works."""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack, nullcontext, suppress
from pathlib import Path

import pytest

from snapfs import backup, seals, tables
from snapfs.metadata import Context, Metadata
from snapfs.model import Active, DataLoss, FailedPrecondition, SnapfsError
from snapfs.overlay import Tree, TreeSpec
from snapfs.snapshots import NoTrees, Snapshotter, Verdict, durability, roots, verify
from snapfs.snapshots.faults import refusing
from tests.crash import acts
from tests.support.daemon import clear, eventually, running
from tests.support.recorded_disk import RecordedDisk, attached

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow]

SIZES = {"ext4": 64 << 20, "xfs": 320 << 20}
WITHOUT_JOURNAL = "ext4 without a journal"
"""Loses data and goes on, where one with a journal refuses everything from then on."""
MKFS = {WITHOUT_JOURNAL: ("mkfs.ext4", "-O", "^has_journal")}


ON_EXT4 = pytest.mark.parametrize("disk", ["ext4"], indirect=True)
"""xfs shuts down, and the kernel ends who reads the store's map then (SIGBUS): a service's test."""
LOUD = (
    "store.broken",
    "snapshot.undo_failed",
    "tree.release_failed",
    "ids.not_given_back",
    "promises.not_settled",
    "layers.write_error",
    "layers.mark_failed",
)
"""What is logged when a disk fails under a snapshotter."""


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


class Disk:
    """A mounted disk whose writes, flushes or reads can be made to fail."""

    def __init__(self, recorded: RecordedDisk, place: Path, file_system: str) -> None:
        self.failing = recorded.failing
        self._device = recorded.device
        self.place = place
        self.outlives_errors = file_system == "ext4"
        self.mount()

    def mount(self, *options: str) -> None:
        run("mount", "-o", ",".join(("noatime", *options)), self._device, self.place)

    def remount(self) -> None:
        """Mount it anew, as after a restart of the machine."""
        run("umount", self.place)
        eventually(self._is_free, what="the last user of the disk to leave it")
        self.mount()

    def _is_free(self) -> bool:
        try:
            os.close(os.open(self._device, os.O_RDONLY | os.O_EXCL))
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise
            return False
        return True


@pytest.fixture(params=SIZES)
def disk(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Disk]:
    image, place = tmp_path / "image", tmp_path / "place"
    place.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZES.get(request.param, 64 << 20))
    run(*MKFS.get(request.param, (f"mkfs.{request.param}",)), "-q", image)
    with ExitStack() as stack:
        recorded = stack.enter_context(attached(image, tmp_path))
        made = Disk(recorded, place, request.param)
        stack.callback(run, "umount", place)
        yield made


def opened(root: Path) -> Snapshotter:
    return Snapshotter(
        root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS, deadline_s=20
    )


def upper(snapshotter: Snapshotter, key: str) -> Path:
    return snapshotter.root / "layers" / str(snapshotter.stat(key).id) / "fs"


@pytest.mark.logs(*LOUD)
@ON_EXT4
@pytest.mark.parametrize("failing", [("write",), ("flush",), ("write", "flush")], ids="+".join)
def test_a_commit_that_did_not_reach_the_disk_is_refused_and_made_again_later(
    disk: Disk, failing: tuple[str, ...]
) -> None:
    root = disk.place / "root"
    with opened(root) as snapshotter:
        snapshotter.prepare("a")
        acts.fill(upper(snapshotter, "a"), 1)
        base = snapshotter.commit("a", "base")
        snapshotter.prepare("work", "base")
        acts.fill(upper(snapshotter, "work"), 2)
        kept = seals.measure(upper(snapshotter, "base"))
        os.sync()
        with disk.failing(*failing):
            with pytest.raises(SnapfsError):
                snapshotter.commit("work", "lost")
            assert isinstance(snapshotter.stat("work"), Active)
            assert snapshotter.stat("base") == base
            with pytest.raises(SnapfsError):
                snapshotter.prepare("new", "base")
    disk.remount()
    with opened(root) as snapshotter:
        assert snapshotter.cleanup() == ()
        assert snapshotter.fsck().clean
        assert {it.name for it in snapshotter.walk()} == {"base", "work"}
        assert snapshotter.stat("base") == base
        assert seals.measure(upper(snapshotter, "base")) == kept
        snapshotter.commit("work", "made")
        assert snapshotter.fsck().clean


def test_a_file_that_cannot_be_read_is_named_by_a_check(disk: Disk) -> None:
    root = disk.place / "root"
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        snapshotter.prepare("a")
        acts.fill(upper(snapshotter, "a"), 1)
        snapshotter.commit("a", "base")
        eventually(
            lambda: getattr(snapshotter.stat("base"), "digest", b""), what="the layer's digest"
        )
        assert [it.verdict for it in verify(root)] == [Verdict.SOUND]
        with disk.failing("read"):
            (found,) = verify(root)
        assert found.verdict is Verdict.DAMAGED
        assert {it.path for it in found.damages} >= {b"etc/file2", b"etc/moved"}
        assert "cannot be read: Input/output error" in found.damages[0].what
        assert [it.verdict for it in verify(root)] == [Verdict.SOUND]


def test_a_copy_up_that_cannot_be_read_or_written_leaves_the_file_as_it_was(disk: Disk) -> None:
    lower, top, work = (disk.place / name for name in ("lower", "upper", "work"))
    for directory in (lower, top, work):
        directory.mkdir()
    data = os.urandom(200_000)
    (lower / "file").write_bytes(data)
    os.sync()
    tree = Tree(TreeSpec(1, (lower,), top, work))
    try:
        node = tree.lookup(tree.root, b"file")
        assert node is not None
        with (lower / "file").open("rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for failing in ("read", "write"):
            with disk.failing(failing), pytest.raises(OSError, match=r"Input/output|Read-only"):
                tree.open(node, os.O_RDWR)
            assert not node.up
            if disk.outlives_errors:
                assert os.listdir(top) == []
    finally:
        tree.close()
    disk.remount()
    assert (lower / "file").read_bytes() == data
    assert os.listdir(top) == []


def test_a_root_that_is_mounted_read_only_is_refused_with_the_way_out(disk: Disk) -> None:
    root = disk.place / "root"
    with opened(root) as snapshotter:
        snapshotter.prepare("a")
    run("umount", disk.place)
    disk.mount("ro")
    with pytest.raises((FailedPrecondition, SnapfsError), match=r"[Rr]ead-only|remount"):
        opened(root)
    disk.remount()
    with opened(root) as snapshotter:
        assert snapshotter.fsck().clean
        snapshotter.commit("a", "base")


def test_a_service_says_what_failed_and_its_successor_goes_on(disk: Disk, tmp_path: Path) -> None:
    base = tmp_path / "service"
    base.mkdir()
    (base / "root").symlink_to(disk.place)
    with running(base, arguments=("--root", str(disk.place / "root"))) as daemon:
        daemon.run("snapshot", "prepare", "work")
        daemon.run("snapshot", "commit", "work", "base")
        daemon.run("snapshot", "prepare", "--parent", "base", "next")
        with disk.failing("write", "flush"):
            refused = daemon.run("snapshot", "commit", "next", "lost", check=False)
            assert refused.exit_code == 1
            if disk.outlives_errors:
                names = {it["name"] for it in daemon.json("snapshot", "list")}
                assert names == {"base", "next"}
                assert daemon.json("status")["pid"] == daemon.pid
        daemon.stop()
        clear(base)
        disk.remount()
        daemon.start()
        assert daemon.run("fsck").exit_code == 0
        daemon.run("snapshot", "commit", "next", "made")


def committed(root: Path, *names: str) -> dict[str, bytes]:
    """Commit layers to a root; return the digest of each there is."""
    with opened(root) as snapshotter:
        for number, name in enumerate(names):
            snapshotter.prepare(f"{name}-key")
            acts.fill(upper(snapshotter, f"{name}-key"), number)
            snapshotter.commit(f"{name}-key", name)
        return {it.name: seals.measure(upper(snapshotter, it.name)) for it in snapshotter.walk()}


def is_refused(act: Callable[[], object]) -> None:
    with pytest.raises(SnapfsError, match=r"disk|read-only|Read-only") as error, refusing("do it"):
        act()
    assert isinstance(error.value, DataLoss | FailedPrecondition), error.value


@pytest.mark.parametrize("failing", [("write",), ("flush",), ("write", "flush")], ids="+".join)
def test_a_backup_that_does_not_reach_its_disk_leaves_the_earlier_one(
    disk: Disk, tmp_path: Path, failing: tuple[str, ...]
) -> None:
    root, target = tmp_path / "root", disk.place / "backup"
    committed(root, "one")
    first = backup.take(root, target).record
    before = committed(root, "two")
    with disk.failing(*failing):
        is_refused(lambda: backup.take(root, target))
    disk.remount()
    assert backup.verify(target) == first
    done = backup.take(root, target)
    assert backup.verify(target) == done.record
    assert len(done.record.layers) == 2
    assert committed(root) == before


@ON_EXT4
@pytest.mark.parametrize("failing", [("write",), ("flush",), ("write", "flush")], ids="+".join)
def test_a_restore_that_does_not_reach_its_disk_is_unfinished(
    disk: Disk, tmp_path: Path, failing: tuple[str, ...]
) -> None:
    root, target, new = tmp_path / "root", tmp_path / "backup", disk.place / "new"
    before = committed(root, "one", "two")
    backup.take(root, target)
    new.mkdir()
    os.sync()
    with disk.failing(*failing):
        is_refused(lambda: backup.restore(target, new))
    disk.remount()
    if (new / roots.RESTORING).exists():
        with pytest.raises(FailedPrecondition, match="restored in part only"):
            roots.check_whole(new)
    backup.verify(target)
    backup.restore(target, new)
    roots.check_whole(new)
    assert committed(new) == before


@pytest.mark.parametrize("which", ["root", "backup"])
def test_a_source_that_cannot_be_read_is_said_and_stays(
    disk: Disk, tmp_path: Path, which: str
) -> None:
    places = {it: (disk.place if it == which else tmp_path) / it for it in ("root", "backup")}
    root, target, new = places["root"], places["backup"], tmp_path / "new"
    before = committed(root, "one", "two")
    if which == "backup":
        backup.take(root, target)
    disk.remount()
    layer = (root if which == "root" else target) / "layers/1/fs/etc/file2"
    with disk.failing("read"), pytest.raises(OSError, match="Input/output"):
        layer.read_bytes()  # what is not in memory
    with opened(root) if which == "root" else nullcontext(), disk.failing("read"):
        if which == "root":
            # xfs may give nothing any more, where ext4 says of each layer that it cannot be read
            with nullcontext() if disk.outlives_errors else suppress(OSError):
                assert "one" in {it.name for it in backup.take(root, target).damaged}
        else:
            is_refused(lambda: backup.restore(target, new))
    assert not backup.take(root, target).damaged
    backup.verify(target)
    backup.restore(target, new)
    assert committed(new) == committed(root) == before


def test_content_that_cannot_be_read_is_named_and_in_a_later_backup(
    disk: Disk, tmp_path: Path
) -> None:
    root, content, target = tmp_path / "root", disk.place / "content", tmp_path / "backup"
    before = committed(root, "one")
    content.mkdir()
    (root / "content").symlink_to(content)
    with (
        opened(root) as opener,
        Metadata(opener.store, root / "content", {}) as metadata,
        metadata.content.writer(Context("default"), "ref") as writer,
    ):
        writer.write(os.urandom(1 << 20))
        digest = writer.commit().digest
    disk.remount()
    (path,) = content.glob("blobs/*/*")
    path.stat()  # the inode is in memory, and no data
    with disk.failing("read"):
        (damaged,) = backup.take(root, target).damaged_content
    assert (damaged.digest, "Input/output error" in damaged.what) == (digest, True)
    with pytest.raises(DataLoss, match=f"of a damaged root: content {digest}"):
        backup.restore(target, tmp_path / "new")
    whole = backup.take(root, target)
    assert (whole.damaged_content, whole.copied_layers, whole.copied_blobs) == ((), 0, 1)
    backup.restore(target, tmp_path / "new")
    assert committed(tmp_path / "new") == before


@pytest.mark.logs("layers.write_error")
@pytest.mark.parametrize("disk", [WITHOUT_JOURNAL], indirect=True)
def test_no_error_of_a_sync_is_passed_over(
    disk: Disk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of an error once; the data of a later commit may be lost by it too.

    The store is on another disk, and this one is well again when the first sync has failed: nothing
    else would keep the second from being committed.
    """
    syncfs = durability.syncfs

    def fail(fd: int) -> None:
        monkeypatch.undo()
        with disk.failing("write"):
            syncfs(fd)

    root, layers = tmp_path / "root", disk.place / "layers"
    layers.mkdir()
    root.mkdir()
    (root / "layers").symlink_to(layers)
    with opened(root) as snapshotter:
        for key in ("a", "b"):
            snapshotter.prepare(key)
        os.sync()
        for key in ("a", "b"):
            acts.fill(upper(snapshotter, key), 3)
        monkeypatch.setattr(durability, "syncfs", fail)
        for key in ("a", "b"):
            with pytest.raises(DataLoss, match="did not reach the disk"):
                snapshotter.commit(key, f"{key}-lost")
        assert {it.name for it in snapshotter.walk()} == {"a", "b"}
        with pytest.raises(DataLoss, match="did not reach the disk"):  # a second try
            snapshotter.commit("a", "a-lost")
    with opened(root) as snapshotter:  # another process: memory still shows what is not on disk
        with pytest.raises(DataLoss, match="did not reach the disk"):
            snapshotter.commit("a", "a-lost")
        snapshotter.prepare("new")
        acts.fill(upper(snapshotter, "new"), 4)
        snapshotter.commit("new", "sound")
        assert {it.name for it in snapshotter.walk()} == {"a", "b", "sound"}
