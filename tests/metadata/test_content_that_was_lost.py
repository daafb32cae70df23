"""Content whose file is gone, or was cut, while its rows are there: it is written again."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.metadata import CHECKS, Context, Descriptor, Image, Metadata, Wish
from snapfs.model import AlreadyExists, Unavailable
from snapfs.snapshots.examination import examine
from snapfs.snapshots.layers import LayerDirectories
from snapfs.store import ReadStore
from tests.metadata.kit import TABLES, digest_of, write
from tests.metadata.test_content_is_written_and_shared import DATA, DIGEST, HERE, THERE, read

LOSSES: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "cut": lambda path: (path.unlink(), path.write_bytes(DATA[:10])),
}


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("context", [HERE, THERE], ids=["the same", "another"])
@pytest.mark.parametrize("expected", [DIGEST, ""], ids=["expected", "unnamed"])
def test_content_that_was_lost_is_written_again_by_any_namespace(
    metadata: Metadata, loss: str, context: Context, expected: str
) -> None:
    write(metadata, HERE, DATA, {"mine": "1"})
    metadata.images.create(HERE, Image(name="image", target=Descriptor("m", DIGEST, len(DATA))))
    LOSSES[loss](metadata.content.path("here", DIGEST))
    with metadata.content.writer(context, "again", expected=expected) as writer:
        assert writer.offset_bytes == 0
        writer.write(DATA)
        assert writer.commit(Wish(len(DATA), DIGEST)).digest == DIGEST
    assert read(metadata, "here", DIGEST) == read(metadata, context.namespace, DIGEST) == DATA
    assert metadata.content.info("here", DIGEST).labels == {"mine": "1"}
    with pytest.raises(AlreadyExists):
        metadata.content.writer(context, "more", expected=DIGEST)
    metadata.collector.collect()
    assert read(metadata, "here", DIGEST) == DATA


def test_a_shared_ingest_of_what_was_lost_since_is_written(metadata: Metadata) -> None:
    write(metadata, HERE, DATA)
    with metadata.content.writer(THERE, "r", expected=DIGEST) as writer:
        metadata.content.path("here", DIGEST).unlink()
        with pytest.raises(Unavailable, match="write it"):
            writer.commit()
    with metadata.content.writer(THERE, "r", expected=DIGEST) as writer:
        writer.write(DATA)
        writer.commit(Wish(len(DATA), DIGEST))
    assert read(metadata, "there", DIGEST) == read(metadata, "here", DIGEST) == DATA


def test_content_that_comes_and_goes_is_never_taken_for_lost(
    metadata: Metadata, tmp_path: Path
) -> None:
    """A check reads the rows first, and looks at the files of what may have gone since."""
    done = threading.Event()

    def churn() -> None:
        for number in range(60):
            data = b"%d" % number
            write(metadata, HERE, data)
            metadata.content.delete("here", digest_of(data))
        done.set()

    worker = threading.Thread(target=churn)
    worker.start()
    found: list[object] = []
    looks = 0
    with ReadStore.open(tmp_path / "metadata", TABLES) as store:
        while not done.is_set() and looks < 100_000:
            report = examine(store, LayerDirectories(tmp_path), checks=CHECKS, repair=False)
            found += [it for it in report.problems if it.kind == "content"]
            looks += 1
    worker.join(timeout=60)
    assert not worker.is_alive()
    assert (found, looks > 10) == ([], True)
