"""Checklist M5 and M6: ingests, commits, sharing."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapfs.metadata import Context, Metadata, Resource, Wish
from snapfs.model import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    Unavailable,
)
from snapfs.store import Store
from tests.metadata.kit import Backend, Clock, digest_of, write

HERE, THERE = Context("here"), Context("there")
DATA = b"some bytes of a layer" * 1000
DIGEST = digest_of(DATA)


def read(metadata: Metadata, namespace: str, digest: str) -> bytes:
    fd = metadata.content.open(namespace, digest)
    with os.fdopen(fd, "rb") as file:
        return file.read()


def test_what_was_written_is_read_again(metadata: Metadata) -> None:
    digest = write(metadata, HERE, DATA, {"k": "v"})
    assert digest == DIGEST
    info = metadata.content.info("here", digest)
    assert (info.size_bytes, info.labels) == (len(DATA), {"k": "v"})
    assert read(metadata, "here", digest) == DATA
    assert [each.digest for each in metadata.content.walk("here")] == [digest]
    assert list(metadata.content.statuses("here")) == []


def test_an_ingest_shows_how_far_it_is_and_goes_on_where_it_stopped(metadata: Metadata) -> None:
    with metadata.content.writer(HERE, "r", expected=DIGEST, total_bytes=len(DATA)) as writer:
        writer.write(DATA[:100])
        status = metadata.content.status("here", "r")
        assert (status.offset_bytes, status.total_bytes) == (100, len(DATA))
        with pytest.raises(Unavailable):
            metadata.content.writer(HERE, "r")
    with metadata.content.writer(HERE, "r") as writer:
        assert writer.status().offset_bytes == 100
        writer.write(DATA[100:])
        assert writer.digest() == DIGEST
        assert writer.commit(Wish(len(DATA), DIGEST)).size_bytes == len(DATA)
    assert read(metadata, "here", DIGEST) == DATA


def test_an_ingest_can_be_cut_and_written_anew(metadata: Metadata) -> None:
    with metadata.content.writer(HERE, "r") as writer:
        writer.write(b"wrong" + DATA)
        writer.truncate(0)
        writer.write(DATA[:10] + b"wrong")
        writer.truncate(10)
        writer.write(DATA[10:])
        assert writer.commit().digest == DIGEST
        with pytest.raises(FailedPrecondition):
            writer.write(b"late")


def test_what_a_write_that_failed_left_is_no_part_of_content(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    pwrite = os.pwrite

    def full(fd: int, data: memoryview, at: int) -> int:
        if len(data) < 100:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return pwrite(fd, data[:60], at)

    with metadata.content.writer(HERE, "r") as writer:
        writer.write(DATA)
        monkeypatch.setattr(os, "pwrite", full)
        with pytest.raises(OSError, match="No space"):
            writer.write(b"x" * 100)
        monkeypatch.undo()
        assert writer.commit(Wish(len(DATA), DIGEST)).size_bytes == len(DATA)
    assert read(metadata, "here", DIGEST) == DATA


def test_a_wrong_size_or_digest_refuses_the_commit_and_the_ingest_stays(
    metadata: Metadata,
) -> None:
    with metadata.content.writer(HERE, "r") as writer:
        writer.write(DATA)
        with pytest.raises(FailedPrecondition, match="bytes"):
            writer.commit(Wish(size_bytes=5))
        with pytest.raises(FailedPrecondition, match="digest"):
            writer.commit(Wish(digest=digest_of(b"other")))
        with pytest.raises(InvalidArgument):
            writer.truncate(len(DATA) + 1)
        assert writer.commit(Wish(len(DATA), DIGEST)).digest == DIGEST


def test_a_wrong_commit_of_what_is_there_is_refused_before_it_is_found(metadata: Metadata) -> None:
    write(metadata, HERE, DATA)
    with metadata.content.writer(HERE, "again") as writer:
        writer.write(DATA)
        for wish in (Wish(size_bytes=1), Wish(digest=digest_of(b"other")), Wish(1, DIGEST)):
            with pytest.raises(FailedPrecondition):
                writer.commit(wish)
        assert metadata.content.status("here", "again").offset_bytes == len(DATA)
        with pytest.raises(AlreadyExists):
            writer.commit(Wish(len(DATA), DIGEST))
    with pytest.raises(NotFound):
        metadata.content.status("here", "again")


def test_content_is_read_at_any_offset_and_ends_where_it_ends(metadata: Metadata) -> None:
    digest = write(metadata, HERE, b"small")
    with os.fdopen(metadata.content.open("here", digest), "rb") as file:
        assert os.pread(file.fileno(), 100, 0) == b"small"
        assert os.pread(file.fileno(), 2, 3) == b"ll"
        assert os.pread(file.fileno(), 10, 5) == b""
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.pwrite(file.fileno(), b"x", 0)


def test_content_that_is_there_is_not_written_twice(metadata: Metadata) -> None:
    write(metadata, HERE, DATA)
    with pytest.raises(AlreadyExists):
        metadata.content.writer(HERE, "again", expected=DIGEST)
    with metadata.content.writer(HERE, "unexpected") as writer:
        writer.write(DATA)
        with pytest.raises(AlreadyExists):
            writer.commit()
    with pytest.raises(NotFound):
        metadata.content.status("here", "unexpected")
    assert read(metadata, "here", DIGEST) == DATA


def test_another_namespace_shares_what_it_can_name(metadata: Metadata) -> None:
    write(metadata, HERE, DATA)
    with pytest.raises(NotFound):
        metadata.content.open("there", DIGEST)
    with metadata.content.writer(THERE, "r", expected=DIGEST) as writer:
        assert writer.status().offset_bytes == writer.status().total_bytes == len(DATA)
        writer.commit(Wish(len(DATA), DIGEST, {"mine": "1"}))
    assert read(metadata, "there", DIGEST) == DATA
    metadata.content.delete("here", DIGEST)
    assert read(metadata, "there", DIGEST) == DATA
    assert metadata.content.info("there", DIGEST).labels == {"mine": "1"}


def test_a_shared_ingest_that_is_written_to_becomes_a_copy(metadata: Metadata) -> None:
    write(metadata, HERE, DATA)
    with metadata.content.writer(THERE, "r", expected=DIGEST) as writer:
        writer.write(b"more")
        assert writer.digest() == digest_of(DATA + b"more")
        with pytest.raises(FailedPrecondition):
            writer.commit()
        made = writer.commit(Wish(digest=digest_of(DATA + b"more")))
    assert made.size_bytes == len(DATA) + 4
    assert read(metadata, "here", DIGEST) == DATA


def test_isolated_namespaces_share_only_what_a_shareable_one_has(
    store: Store, tmp_path: Path, clock: Clock, backend: Backend
) -> None:
    isolated = Metadata(store, tmp_path / "content", {}, policy="isolated", clock_ns=clock)
    with isolated:
        write(isolated, HERE, DATA)
        with isolated.content.writer(THERE, "r", expected=DIGEST) as writer:
            assert writer.status().offset_bytes == 0
            with pytest.raises(FailedPrecondition):
                writer.commit(Wish(len(DATA), DIGEST))
        isolated.content.abort("there", "r")
        isolated.namespaces.set_label("here", "containerd.io/namespace.shareable", "true")
        with isolated.content.writer(THERE, "r", expected=DIGEST) as writer:
            writer.commit(Wish(len(DATA), DIGEST))
        assert read(isolated, "there", DIGEST) == DATA


def test_the_last_namespace_takes_the_bytes_with_it(metadata: Metadata, tmp_path: Path) -> None:
    write(metadata, HERE, DATA)
    path = metadata.content.path("here", DIGEST)
    assert path.is_relative_to(tmp_path)
    metadata.content.delete("here", DIGEST)
    assert not path.exists()
    assert write(metadata, HERE, DATA) == DIGEST
    assert read(metadata, "here", DIGEST) == DATA


def test_an_aborted_ingest_leaves_nothing(metadata: Metadata, tmp_path: Path) -> None:
    with metadata.content.writer(HERE, "r") as writer:
        writer.write(DATA)
        with pytest.raises(Unavailable):
            metadata.content.abort("here", "r")
    metadata.content.abort("here", "r")
    assert list((tmp_path / "content" / "ingest").iterdir()) == []
    with pytest.raises(NotFound):
        metadata.content.abort("here", "r")


def test_a_lease_holds_an_ingest_while_it_is_written_and_content_after(
    metadata: Metadata,
) -> None:
    metadata.leases.create("here", "l")
    under = Context("here", lease="l")
    with metadata.content.writer(under, "r") as writer:
        writer.write(DATA)
        assert metadata.leases.resources("here", "l") == [Resource("ingests", "r")]
        writer.commit()
    held = [Resource("content", DIGEST)]
    assert metadata.leases.resources("here", "l") == held
    metadata.leases.create("here", "m")
    with pytest.raises(AlreadyExists):
        metadata.content.writer(Context("here", lease="m"), "again", expected=DIGEST)
    assert metadata.leases.resources("here", "m") == held


def test_labels_of_content_are_updated_by_mask(metadata: Metadata) -> None:
    write(metadata, HERE, DATA, {"a": "1", "b": "2"})
    update = metadata.content.update
    assert update("here", DIGEST, {"a": "9"}, ["labels.a"]).labels == {"a": "9", "b": "2"}
    assert update("here", DIGEST, {"c": "3"}).labels == {"c": "3"}
    with pytest.raises(InvalidArgument):
        update("here", DIGEST, {}, ["size"])


def test_long_references_are_taken(metadata: Metadata) -> None:
    ref = "r" * 5000
    with metadata.content.writer(HERE, ref) as writer:
        writer.write(b"x")
    assert metadata.content.status("here", ref).offset_bytes == 1
    assert [each.ref for each in metadata.content.statuses("here", [f"ref=={ref}"])] == [ref]


def test_cleanup_removes_what_no_row_names(metadata: Metadata, tmp_path: Path) -> None:
    write(metadata, HERE, DATA)
    stray = metadata.content.path("here", DIGEST).with_name("0" * 64)
    stray.write_bytes(b"stray")
    (tmp_path / "content" / "ingest" / "77").mkdir()
    removed = metadata.content.cleanup()
    assert removed == ["sha256:" + "0" * 64, "ingest/77"]
    assert not stray.exists()
    assert read(metadata, "here", DIGEST) == DATA


def test_a_commit_with_another_algorithm_is_checked_by_it(metadata: Metadata) -> None:
    import hashlib

    digest = f"sha512:{hashlib.sha512(DATA).hexdigest()}"
    with metadata.content.writer(HERE, "r") as writer:
        writer.write(DATA)
        assert writer.commit(Wish(digest=digest)).digest == digest
    assert read(metadata, "here", digest) == DATA


def test_what_the_disk_did_not_take_is_not_committed_at_the_second_try(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel tells of an error of a disk once, whoever asks next."""
    lease = metadata.leases.create("here", "lease").id
    context = Context("here", lease)

    def fail(_: int) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    with metadata.content.writer(context, "r") as writer:
        writer.write(DATA)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DataLoss, match="must be written again"):
            writer.commit()
        with pytest.raises(FailedPrecondition, match="closed"):
            writer.commit()
    with pytest.raises(NotFound):
        metadata.content.status("here", "r")
    assert metadata.leases.resources("here", lease) == []
    with metadata.content.writer(context, "r") as writer:
        assert writer.status().offset_bytes == 0
        writer.write(DATA)
        writer.commit()
    assert read(metadata, "here", DIGEST) == DATA


@pytest.mark.logs("gc.content_kept")
def test_a_collection_looks_at_what_it_released_and_at_all_after_a_failure(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = metadata.content
    looked: list[bool] = []
    cleanup = content.cleanup

    def noted() -> list[str]:
        looked.append(True)
        return cleanup()

    def fails(_digest: str) -> None:
        raise OSError(5, "the disk")

    def collect(failures: int = 0) -> bool:
        """Collect; say whether all was looked at."""
        assert metadata.collector.collect().failures == failures
        return bool(looked and looked.pop())

    monkeypatch.setattr(content, "cleanup", noted)
    assert collect()  # a crash may have left something
    write(metadata, Context("here"), b"released")
    assert not collect()
    assert list(content._blobs.digests()) == []
    digest = write(metadata, Context("here"), b"stays")
    with monkeypatch.context() as patched:
        patched.setattr(content._blobs, "remove", fails)
        assert not collect(failures=1)
        assert list(content._blobs.digests()) == [digest]
    assert collect()
    assert list(content._blobs.digests()) == []
    assert not collect()
