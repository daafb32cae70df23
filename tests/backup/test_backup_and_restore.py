"""A backup taken beside its service is whole, small the second time, and becomes a root again."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

import pytest

from snapfs import backup, tables
from snapfs.backup import restoring, storing, taking
from snapfs.metadata import Context, content
from snapfs.metadata.objects import Descriptor, Image
from snapfs.model import (
    AlreadyExists,
    Committed,
    DataLoss,
    FailedPrecondition,
    NotFound,
    ResourceExhausted,
    Unavailable,
)
from snapfs.snapshots import NoTrees, Snapshotter, fsck, holding, roots
from snapfs.store import ReadStore
from tests.backup.conftest import Root
from tests.support.daemon import eventually
from tests.support.overlay.kernel import mount, tmpfs, unmount
from tests.support.trees import describe, differences

pytestmark = pytest.mark.root

_REMOUNT, _RDONLY = 32, 1


def committed(root: Path) -> dict[str, Committed]:
    with Snapshotter(root, trees=NoTrees(), tables=tables.TABLES) as snapshotter:
        return {it.name: it for it in snapshotter.walk() if isinstance(it, Committed)}


def layers(root: Path) -> dict[str, Path]:
    found = committed(root)
    return {name: root / "layers" / str(it.id) / "fs" for name, it in found.items()}


def check_restored(root: Path, original: Path, names: set[str]) -> None:
    """See that a root is sound, has these snapshots, and their layers byte for byte."""
    assert fsck(root, tables=tables.TABLES, checks=tables.CHECKS).clean
    made, there = layers(root), layers(original)
    assert set(made) == names
    for name, layer in made.items():
        assert differences(describe(layer), describe(there[name])) == []


def flip(path: Path, at: int) -> None:
    times = path.stat()
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(raw)
    path.chmod(times.st_mode)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_restored_root_is_what_was_backed_up(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    root.commit("top", "base", b"other")
    root.snapshotter.view("look", "top")
    root.snapshotter.prepare("work", "top")
    digest = root.write_blob(b"blob" * 1000)
    taken = backup.take(root.path, tmp_path / "target")
    assert (taken.copied_layers, taken.copied_blobs, taken.left_out) == (2, 1, ("work",))
    last_id = root.snapshotter.stat("work").id
    root.close()
    done = backup.restore(tmp_path / "target", tmp_path / "new")
    assert done.left_out == ("work",)
    check_restored(tmp_path / "new", root.path, {"base", "top"})
    again = Root(tmp_path / "new")
    try:
        fd = again.metadata.content.open("default", digest)
        assert os.read(fd, 10_000) == b"blob" * 1000
        os.close(fd)
        assert {it.name for it in again.snapshotter.walk()} == {"base", "top", "look"}
        again.commit("third", "top")
        assert again.snapshotter.stat("third").id > last_id
    finally:
        again.close()


@pytest.mark.logs("volume.working_copy_made_anew")
def test_volumes_images_and_leases_are_restored(root: Root, tmp_path: Path) -> None:
    mounted = str(tmp_path / "srv" / "db")
    root.volumes.create("db", mount_path=mounted, size_bytes=1 << 30)
    root.volumes.create("bare")
    (root.volumes.layers("db")[0] / "file").write_text("kept")
    first = root.volumes.history.snapshot("db", "the first").snapshot
    (root.volumes.layers("db")[0] / "file").write_text("changed since")
    root.metadata.leases.create("default", "lease")
    held = Context("default", lease="lease")
    with root.metadata.content.writer(held, "whole") as writer:
        writer.write(b"manifest")
        digest = writer.commit().digest
    with root.metadata.content.writer(held, "half") as writer:
        writer.write(b"half")
    target = Descriptor(media_type="application/json", digest=digest, size_bytes=8)
    root.metadata.images.create(held, Image(name="example.com/image", target=target))
    root.metadata.snapshots("snapfs").prepare(held, "work")
    backup.take(root.path, tmp_path / "target")
    root.close()
    backup.restore(tmp_path / "target", tmp_path / "new")
    assert fsck(tmp_path / "new", tables=tables.TABLES, checks=tables.CHECKS).clean
    again = Root(tmp_path / "new")
    try:
        again.metadata.start()
        again.volumes.start()
        assert again.metadata.images.get("default", "example.com/image").target == target
        assert [it.id for it in again.metadata.leases.walk("default")] == ["lease"]
        assert [it.description for it in again.volumes.log("db")] == ["the first"]
        db = again.volumes.describe("db").volume
        assert (db.is_mounted, db.mount_path, db.base) == (False, mounted, first.id)
        shown = [layer / "file" for layer in again.volumes.layers("db")]
        assert [it.read_text() for it in shown if it.exists()] == ["kept"]
        assert not again.volumes.has_changed("db")
        (again.volumes.layers("db")[0] / "file").write_text("goes on")
        again.volumes.history.snapshot("db", "the second")
        assert len(again.volumes.log("db")) == 2
        again.volumes.remove("bare")
    finally:
        again.close()
    assert fsck(tmp_path / "new", tables=tables.TABLES, checks=tables.CHECKS).clean


def test_a_second_backup_copies_what_is_new_and_forgets_what_is_gone(
    root: Root, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    root.commit("base")
    root.commit("gone")
    first = root.write_blob(b"one")
    backup.take(root.path, target)
    root.commit("top", "base", b"new")
    root.snapshotter.remove("gone")
    root.metadata.content.delete("default", first)
    root.write_blob(b"two")
    taken = backup.take(root.path, target)
    assert (taken.copied_layers, taken.copied_blobs) == (1, 1)
    taken = backup.take(root.path, target)
    assert (taken.copied_layers, taken.copied_blobs) == (0, 0)
    assert len(list((target / "layers").iterdir())) == 2
    assert len(list((target / "content").glob("*/*"))) == 1
    assert len(list(target.glob("metadata*"))) == 1
    root.close()
    backup.restore(target, tmp_path / "new")
    check_restored(tmp_path / "new", root.path, {"base", "top"})


def test_programs_see_no_links_into_a_backup(root: Root, tmp_path: Path) -> None:
    upper = root.commit("base")
    before = describe(upper)
    backup.take(root.path, tmp_path / "target")
    assert differences(before, describe(upper)) == []


def test_no_copy_takes_over_an_acl_of_its_directory(root: Root, tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["setfacl", "-d", "-m", "u:1000:rwx", target], check=True)
    root.snapshotter.prepare("work")
    (root.upper("work") / "shared" / "deep").mkdir(parents=True)
    (root.upper("work") / "shared" / "deep" / "file").write_text("for its owner")
    (root.upper("work") / "shared" / "deep" / "file").chmod(0o600)
    subprocess.run(["setfacl", "-d", "-m", "u:1001:rwx", root.upper("work") / "shared"], check=True)
    root.snapshotter.commit("work", "base")
    backup.take(root.path, target)
    root.close()
    backup.restore(target, tmp_path / "new")
    check_restored(tmp_path / "new", root.path, {"base"})


def test_what_was_copied_before_an_interruption_is_not_copied_again(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    root.commit("base")
    backup.take(root.path, target)
    root.commit("top", "base")
    root.commit("more", "base")
    original, copied = storing.put_layer, []

    def put(*arguments: object) -> object:
        if copied:
            raise KeyboardInterrupt
        copied.append(arguments)
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_layer", put)
        with pytest.raises(KeyboardInterrupt):
            backup.take(root.path, target)
    assert len(backup.verify(target).layers) == 1  # the earlier one is as it was
    assert backup.take(root.path, target).copied_layers == 1
    assert len(backup.verify(target).layers) == 3


def test_a_restore_goes_on_where_it_was_interrupted(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    root.commit("top", "base")
    backup.take(root.path, tmp_path / "target")
    root.close()
    new, original, copied = tmp_path / "new", storing.put_layer, []

    def put(*arguments: object) -> object:
        if copied:
            raise KeyboardInterrupt
        copied.append(arguments)
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_layer", put)
        with pytest.raises(KeyboardInterrupt):
            backup.restore(tmp_path / "target", new)
    with pytest.raises(FailedPrecondition, match="restored in part only"):
        roots.check_whole(new)
    first = (new / "layers/1/fs").stat().st_ino
    backup.restore(tmp_path / "target", new)
    assert (new / "layers/1/fs").stat().st_ino == first
    roots.check_whole(new)
    check_restored(new, root.path, {"base", "top"})


def test_nobody_else_restores_there_or_writes_to_the_backup_meanwhile(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    target, new, original, refused = tmp_path / "target", tmp_path / "new", storing.put_layer, []
    backup.take(root.path, target)

    def put(*arguments: object) -> object:
        if not refused:
            with pytest.raises(Unavailable, match="another restore to") as one:
                backup.restore(target, new)
            with pytest.raises(Unavailable, match="another use of the backup") as other:
                backup.take(root.path, target)
            refused.extend([one, other])
            backup.verify(target)
        return original(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_layer", put)
        backup.restore(target, new)
    assert len(refused) == 2
    root.close()
    check_restored(new, root.path, {"base"})


def test_snapshots_removed_meanwhile_are_kept_until_they_are_copied(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    going = root.commit("going", "base")
    original, copied = storing.put_layer, []

    def put(source: Path, *others: object) -> object:
        if not copied:
            root.snapshotter.remove("going")
            (left,) = root.snapshotter.cleanup()
            assert "kept while a backup copies layers" in left.error
        copied.append(source)
        return original(source, *others)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_layer", put)
        taken = backup.take(root.path, tmp_path / "target")
    assert ([layer.id for layer in taken.record.layers], len(copied)) == ([1, 2], 2)
    eventually(lambda: not going.exists(), what="the removal")
    assert root.snapshotter.cleanup() == ()
    backup.verify(tmp_path / "target")
    root.close()
    backup.restore(tmp_path / "target", tmp_path / "new")
    assert set(layers(tmp_path / "new")) == {"base", "going"}


def test_a_snapshot_that_cannot_be_kept_until_it_is_copied_is_not_in_the_backup(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(holding, "LEAST_FREE", 1.0)  # as on a disk that is full
    root.commit("base")
    root.commit("going", "base")
    original, attempts = storing.put_layer, []

    def put(source: Path, *others: object) -> object:
        attempts.append(source)
        if len(attempts) == 2:
            root.snapshotter.remove("going")
            eventually(lambda: not source.exists(), what="the removal")
        return original(source, *others)  # type: ignore[arg-type]

    monkeypatch.setattr(storing, "put_layer", put)
    taken = backup.take(root.path, tmp_path / "target")
    assert [layer.id for layer in taken.record.layers] == [1]
    assert len(attempts) == 2
    backup.verify(tmp_path / "target")


def test_content_removed_meanwhile_is_kept_until_it_is_copied(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digests = [root.write_blob(bytes([number]) * 1000) for number in range(3)]
    paths = [root.metadata.content.path("default", it) for it in digests]
    original, copied = storing.put_blob, []

    def put(*arguments: object, **named: object) -> None:
        if not copied:
            for digest in digests:
                root.metadata.content.delete("default", digest)
            root.metadata.collector.collect()
            assert all(it.exists() for it in paths)
        copied.append(arguments)
        original(*arguments, **named)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(storing, "put_blob", put)
        taken = backup.take(root.path, tmp_path / "target")
    assert (len(taken.record.blobs), len(copied)) == (3, 3)
    backup.verify(tmp_path / "target")
    assert root.metadata.content.kept_until_ns is not None
    root.metadata.collector.collect()
    assert not any(it.exists() for it in paths)
    assert root.metadata.content.kept_until_ns is None
    assert root.snapshotter.fsck().clean
    assert backup.take(root.path, tmp_path / "target").record.blobs == ()


def test_the_collector_comes_back_for_content_that_was_kept(
    root: Root, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(content, "KEPT_NS", 200_000_000)
    digest = root.write_blob(b"blob" * 1000)
    path = root.metadata.content.path("default", digest)
    with holding.held(root.path):
        root.metadata.start()
        root.metadata.content.delete("default", digest)
        root.metadata.gc.trigger().result(timeout=60)
        assert path.exists()
    eventually(lambda: not path.exists(), what="the removal")


def test_what_cannot_be_kept_does_not_make_a_backup_begin_anew(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One pass copies all that is still there; the next one has nothing left to do."""
    monkeypatch.setattr(holding, "LEAST_FREE", 1.0)  # as on a disk that is full
    names = [f"layer{number}" for number in range(6)]
    for name in names:
        root.commit(name)
    digests = [root.write_blob(bytes([number]) * 1000) for number in range(24)]
    put_layer, put_blob, save = storing.put_layer, storing.put_blob, ReadStore.save
    copied: list[str] = []
    saved: list[object] = []

    def layer(source: Path, *others: object) -> object:
        if len(copied) == 1:
            for name in names[3:]:
                root.snapshotter.remove(name)
            assert root.snapshotter.cleanup() == ()
        copied.append(source.name)
        return put_layer(source, *others)  # type: ignore[arg-type]

    def blob(source: Path, target: Path, digest: str, *others: int, link: bool) -> None:
        if not any(":" in it for it in copied):
            for it in digests[12:]:
                root.metadata.content.delete("default", it)
        copied.append(digest)
        put_blob(source, target, digest, *others, link=link)

    def count(store: ReadStore, out: BinaryIO, *, aside: bool) -> int:
        saved.append(out)
        return save(store, out, aside=aside)

    monkeypatch.setattr(storing, "put_layer", layer)
    monkeypatch.setattr(storing, "put_blob", blob)
    monkeypatch.setattr(ReadStore, "save", count)
    taken = backup.take(root.path, tmp_path / "target")
    assert len(saved) == 2
    assert len(copied) == len(set(copied)) == 3 + 24
    assert (len(taken.record.layers), len(taken.record.blobs)) == (3, 12)
    assert (taken.copied_layers, taken.copied_blobs) == (3, 12)
    backup.verify(tmp_path / "target")
    root.close()
    backup.restore(tmp_path / "target", tmp_path / "new")
    check_restored(tmp_path / "new", root.path, set(names[:3]))


STOPPING = """
import os, signal, sys
from pathlib import Path
from snapfs import backup
from snapfs.backup import storing

put, stopped = storing.put_layer, []

def stop(*arguments):
    if not stopped:
        stopped.append(True)
        os.kill(os.getpid(), signal.SIGSTOP)
    return put(*arguments)

storing.put_layer = stop
taken = backup.take(Path(sys.argv[1]), Path(sys.argv[2]))
print(sorted(it.id for it in taken.record.layers))
"""


@pytest.mark.logs("hold.expired")
def test_a_backup_that_was_stopped_holds_up_no_removal_and_is_right_in_the_end(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    root.commit("base")
    going = root.commit("going", "base")
    root.commit("other", "base")
    digest = root.write_blob(b"blob" * 1000)
    blob = root.metadata.content.path("default", digest)
    command = [sys.executable, "-c", STOPPING, root.path, target]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert os.WIFSTOPPED(os.waitpid(process.pid, os.WUNTRACED)[1])
            root.snapshotter.remove("going")
            root.metadata.content.delete("default", digest)
            (left,) = root.snapshotter.cleanup()
            assert "kept while a backup copies layers" in left.error
            monkeypatch.setattr(holding, "LEASE_S", 2.0)
            eventually(lambda: not going.exists(), what="the removal")
            assert root.snapshotter.cleanup() == ()
            root.metadata.collector.collect()
            assert not blob.exists()
            process.send_signal(signal.SIGCONT)
            printed, _ = process.communicate(timeout=60)
        finally:
            process.kill()
    assert printed == "[1, 3]\n"
    assert backup.verify(target).blobs == ()
    root.close()
    backup.restore(target, tmp_path / "new")
    check_restored(tmp_path / "new", root.path, {"base", "other"})


@contextmanager
def on_tmpfs(place: Path, options: str) -> Iterator[Root]:
    """A root on a file system of its own, closed, with a layer that was committed."""
    with tmpfs(place, options):
        made = Root(place / "root")
        try:
            made.commit("base")
        finally:
            made.close()
        yield made


def test_a_root_whose_disk_is_full_is_backed_up(tmp_path: Path) -> None:
    with on_tmpfs(tmp_path / "disk", "size=4m") as root:
        with suppress(OSError), (root.path / "filler").open("wb", buffering=0) as file:
            while file.write(bytes(4096)):
                pass
        assert backup.take(root.path, tmp_path / "target").copied_layers == 1
        backup.verify(tmp_path / "target")


def test_a_root_on_a_read_only_file_system_is_backed_up(tmp_path: Path) -> None:
    with on_tmpfs(tmp_path / "disk", "size=16m") as root:
        mount("tmpfs", tmp_path / "disk", "", _REMOUNT | _RDONLY)
        assert backup.take(root.path, tmp_path / "target").copied_layers == 1
        backup.verify(tmp_path / "target")


def test_a_root_that_is_served_is_not_backed_up_through_a_read_only_mount(
    root: Root, tmp_path: Path
) -> None:
    """Its writer could not know of the reader: LMDB has no reader table there."""
    root.commit("base")
    with read_only(root.path, tmp_path / "seen") as seen:
        command = [sys.executable, "-c", TAKING, seen, tmp_path / "target"]
        refused = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert "is read-only here and written elsewhere: process" in refused.stderr
        root.close()
        with ReadStore.open(seen / "metadata", tables.TABLES):  # as a backup has it
            started = subprocess.run(
                [sys.executable, "-c", SERVING, root.path],
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            assert "is in use by another process" in started.stderr
        subprocess.run(command, timeout=60, check=True)
        subprocess.run([sys.executable, "-c", SERVING, root.path], timeout=60, check=True)


TAKING = "import sys; from pathlib import Path; from snapfs.backup import take; " + (
    "take(Path(sys.argv[1]), Path(sys.argv[2]))"
)
SERVING = """
import sys
from pathlib import Path
from snapfs.backup.contents import TABLES
from snapfs.store import Store
with Store.open(Path(sys.argv[1]) / "metadata", TABLES): pass
"""


@contextmanager
def read_only(source: Path, target: Path) -> Iterator[Path]:
    target.mkdir()
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        subprocess.run(["mount", "-o", "remount,bind,ro", target], check=True)
        yield target
    finally:
        unmount(target)


def test_it_is_the_target_that_is_named_when_it_is_full_or_read_only(
    root: Root, tmp_path: Path
) -> None:
    root.commit("base", data=os.urandom(1 << 20))
    backup.take(root.path, tmp_path / "whole")
    with tmpfs(tmp_path / "small", "size=512k") as small:
        full = f"cannot write to {small}/backup: no space left on device; free some space on its"
        with pytest.raises(ResourceExhausted, match=full):
            backup.take(root.path, small / "backup")
        with pytest.raises(ResourceExhausted, match=f"cannot write to {small}/new: no space left"):
            backup.restore(tmp_path / "whole", small / "new")
        mount("tmpfs", small, "", _REMOUNT | _RDONLY)
        with pytest.raises(FailedPrecondition, match=f"write to {small}/backup: read-only file"):
            backup.take(root.path, small / "backup")
        with pytest.raises(FailedPrecondition, match=f"write to {small}/other: read-only file"):
            backup.restore(tmp_path / "whole", small / "other")


def test_a_service_that_begins_as_a_restore_ends_may_take_its_mark(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")
    backup.take(root.path, tmp_path / "target")
    sync = restoring.sync_directory

    def begin(path: Path) -> None:
        sync(path)
        roots.check_whole(path)

    monkeypatch.setattr(restoring, "sync_directory", begin)
    backup.restore(tmp_path / "target", tmp_path / "new")
    root.close()
    check_restored(tmp_path / "new", root.path, {"base"})


def test_snapshots_that_go_faster_than_they_are_copied_end_it_with_a_reason(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.commit("base")

    def put(source: Path, *others: object) -> object:
        raise FileNotFoundError(source)

    monkeypatch.setattr(storing, "put_layer", put)
    monkeypatch.setattr(taking, "is_committed", lambda *_: False)
    with pytest.raises(Unavailable, match="removed faster than they can be copied"):
        backup.take(root.path, tmp_path / "target")


@pytest.mark.parametrize(
    ("what", "named"),
    [
        ("layers/1/fs/etc/file", "etc/file differs in content"),
        ("layers/1/fs/sparse", "sparse differs in content"),
        ("content", "is damaged in"),
        ("metadata", "saved store"),
        ("backup.json", "backup.json is damaged"),
    ],
)
def test_damage_of_a_backup_is_named_and_never_restored(
    root: Root, tmp_path: Path, what: str, named: str
) -> None:
    target = tmp_path / "target"
    root.commit("base", data=b"rather more data" * 100)
    root.write_blob(b"blob" * 1000)
    record = backup.take(root.path, target).record
    (blob,) = (target / "content").glob("*/*")
    places = {"content": blob, "metadata": target / record.metadata}
    path = places.get(what, target / what)
    if what == "content":
        path.unlink()
        path.write_bytes(b"blub" * 1000)
    elif what == "backup.json":
        path.write_bytes(path.read_bytes()[:50])
    else:
        flip(path, path.stat().st_size // 2)
    with pytest.raises(DataLoss, match=named):
        backup.verify(target)
    with pytest.raises(DataLoss, match=named):
        backup.restore(target, tmp_path / "new")
    assert not (tmp_path / "new" / "metadata").exists()


@pytest.mark.parametrize("how", ["found", "killed"])
def test_a_damaged_blob_is_never_taken_for_a_whole_one(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str
) -> None:
    target = tmp_path / "target"
    path = root.metadata.content.path("default", root.write_blob(b"blob" * 1000))
    flip(path, 5)
    if how == "killed":

        def killed(*_: object) -> None:
            raise KeyboardInterrupt

        with monkeypatch.context() as patch:
            patch.setattr(storing, "verify_blob", killed)
            with pytest.raises(KeyboardInterrupt):
                backup.take(root.path, target)
    for _ in range(2):
        taken = backup.take(root.path, target)
        assert (len(taken.damaged_content), taken.record.blobs) == (1, ())
        assert list((target / "content").glob("*/*")) == []
    flip(path, 5)
    assert backup.take(root.path, target).copied_blobs == 1
    backup.verify(target)
    assert [it.suffix for it in (target / "content").glob("*/*")] == [""]


def with_unsealed_copy(path: Path, target: Path) -> Root:
    """Back a layer up, not as it was committed, before it has a digest; return the sealed root."""
    unsealed = Root(path, seals=False)
    file = unsealed.commit("base") / "etc/file"
    flip(file, 2)
    backup.take(path, target)
    flip(file, 2)
    unsealed.close()
    sealed = Root(path)
    eventually(lambda: bool(sealed.snapshotter.stat("base").digest), what="the digest")  # type: ignore[union-attr]
    return sealed


def test_a_copy_that_is_older_than_the_digest_is_compared_with_it(tmp_path: Path) -> None:
    target = tmp_path / "target"
    root = with_unsealed_copy(tmp_path / "root", target)
    assert backup.take(root.path, target).copied_layers == 1
    assert backup.take(root.path, target).copied_layers == 0
    root.close()
    backup.restore(target, tmp_path / "new")
    check_restored(tmp_path / "new", tmp_path / "root", {"base"})


def test_a_copy_that_is_not_what_was_committed_is_not_restored(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "target"
    root = with_unsealed_copy(tmp_path / "root", target)
    monkeypatch.setattr(taking, "_is_of", lambda *_: True)
    backup.take(root.path, target)
    root.close()
    with pytest.raises(DataLoss, match=r"layer 1 of the backup .* is not what was committed"):
        backup.restore(target, tmp_path / "new")
    assert not (tmp_path / "new" / "metadata").exists()


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("blobs", [{"digest": "sha256:../../../precious", "size_bytes": 8}]),
        ("layers", [{"id": 1, "created_ns": 1, "digest": "none"}]),
        ("metadata", "../precious"),
    ],
)
def test_names_in_a_hostile_backup_lead_nowhere(
    root: Root, tmp_path: Path, field: str, value: object
) -> None:
    target = tmp_path / "target"
    root.commit("base")
    backup.take(root.path, target)
    record = json.loads((target / "backup.json").read_bytes())
    del record["sum"]
    (target / "backup.json").write_text(json.dumps(record | {field: value}))
    (tmp_path / "precious").write_bytes(b"precious")
    for act in (
        lambda: backup.verify(target),
        lambda: backup.restore(target, tmp_path / "new"),
        lambda: backup.take(root.path, target),
    ):
        with pytest.raises(DataLoss, match="a name or a digest in it is none"):
            act()
    assert (tmp_path / "precious").read_bytes() == b"precious"


def test_what_cannot_be_right_is_refused(root: Root, tmp_path: Path) -> None:
    root.commit("base")
    target = tmp_path / "target"
    with pytest.raises(FailedPrecondition, match="one inside the other"):
        backup.take(root.path, root.path / "backup")
    with pytest.raises(NotFound, match="not a root of snapfs"):
        backup.take(tmp_path / "nothing", target)
    with pytest.raises(NotFound, match="no complete backup"):
        backup.restore(tmp_path / "nothing", tmp_path / "new")
    backup.take(root.path, target)
    with pytest.raises(AlreadyExists, match="is not empty"):
        backup.restore(target, root.path)
    other = Root(tmp_path / "other")
    try:
        with pytest.raises(FailedPrecondition, match="a backup of another store"):
            backup.take(other.path, target)
    finally:
        other.close()
    backup.verify(target)


def test_a_full_target_leaves_the_earlier_backup_and_is_made_good(
    root: Root, tmp_path: Path
) -> None:
    target = tmp_path / "target"
    target.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", target], check=True)
    try:
        root.commit("base")
        backup.take(root.path, target)
        root.snapshotter.prepare("big")
        (root.upper("big") / "file").write_bytes(os.urandom(6 << 20))
        root.snapshotter.commit("big", "big-one")
        with pytest.raises((OSError, ResourceExhausted), match=r"[Nn]o space"):
            backup.take(root.path, target)
        assert len(backup.verify(target).layers) == 1
        subprocess.run(["mount", "-o", "remount,size=64m", target], check=True)
        assert backup.take(root.path, target).copied_layers == 1
        backup.verify(target)
    finally:
        subprocess.run(["umount", target], check=True)


def test_a_backup_reads_beside_a_writer_and_leaves_its_store_alone(
    root: Root, tmp_path: Path
) -> None:
    root.commit("base")
    before = root.snapshotter.store.revision
    backup.take(root.path, tmp_path / "target")
    backup.verify(tmp_path / "target")
    assert root.snapshotter.store.revision == before
    with ReadStore.open(root.path / "metadata", ()) as store, store.view() as tx:
        assert not list(tx.intents()) or root.snapshotter.fsck().clean
    shutil.rmtree(tmp_path / "target")
