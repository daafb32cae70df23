"""What fsck says of metadata whose invariants do not hold; the core refuses the others itself."""

from __future__ import annotations

from pathlib import Path

import pytest

from snapfs.metadata import checking
from snapfs.metadata.schema import (
    BLOBS,
    CONTENT,
    LEASES,
    RESOURCES,
    SHARED,
    SNAPSHOT_LINKS,
    BlobBody,
    ContentBody,
    LeaseBody,
    ResourceBody,
    SnapshotLinkBody,
)
from snapfs.model import FailedPrecondition, NotFound
from snapfs.store import Store, WriteTx
from tests.metadata.kit import TABLES


def unlinked(tx: WriteTx) -> None:
    for key, parent in (("base", ""), ("top", "base")):
        body = SnapshotLinkBody(snapshotter="s", key=key, backend=key, parent=parent)
        tx.create(SNAPSHOT_LINKS, "n", f"s/{key}", body)


def negative(tx: WriteTx) -> None:
    blob = tx.create(BLOBS, SHARED, "d", BlobBody(1))
    tx.create(CONTENT, "n", "d", ContentBody(size_bytes=-1, blob=blob.oid))


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (unlinked, "snapshot link 's/top' of 'n' lacks links"),
        (negative, "content 'd' of 'n' has a size below zero"),
    ],
)
def test_each_fault_is_found(tmp_path: Path, fault: object, said: str) -> None:
    with Store.open(tmp_path / "metadata", TABLES) as store:
        store.update(fault)  # type: ignore[arg-type]
        with store.view() as tx:
            assert list(checking.check(tx)) == [said]


def orphan(tx: WriteTx) -> None:
    body = ResourceBody(lease=77, type="images", id="i", name=(5, "i"))
    tx.create(RESOURCES, "n", "x", body)


def bodiless(tx: WriteTx) -> None:
    tx.create(CONTENT, "n", "d", ContentBody(size_bytes=1, blob=77))


def pulled_away(tx: WriteTx) -> None:
    lease = tx.create(LEASES, "n", "l", LeaseBody())
    body = ResourceBody(lease=lease.oid, type="images", id="i", name=(5, "i"))
    tx.create(RESOURCES, "n", "x", body)
    tx.delete(lease)


@pytest.mark.parametrize("fault", [orphan, bodiless, pulled_away])
def test_what_has_to_be_there_cannot_be_left_out(tmp_path: Path, fault: object) -> None:
    with Store.open(tmp_path / "metadata", TABLES) as store:
        with pytest.raises((FailedPrecondition, NotFound)):
            store.update(fault)  # type: ignore[arg-type]
        assert store.stats().rows == 0
