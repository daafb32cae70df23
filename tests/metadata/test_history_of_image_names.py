"""What an image's name stood for, and how long that keeps its content."""

from __future__ import annotations

import pytest

from snapfs.anchors import Anchors
from snapfs.metadata import Context, Metadata
from snapfs.model import NotFound
from snapfs.store import Store
from tests.metadata.kit import HOUR, NOW, Clock, image, write

HERE = Context("default")


@pytest.fixture
def moved(metadata: Metadata, clock: Clock) -> tuple[str, str]:
    """`web` stood for one digest, and an hour later for another."""
    old, new = write(metadata, HERE, b"old"), write(metadata, HERE, b"new")
    metadata.images.create(HERE, image("web", old))
    clock.now_ns += HOUR
    metadata.images.update(HERE, image("web", new), ["target"])
    return old, new


def present(metadata: Metadata, digest: str) -> bool:
    metadata.collector.collect()
    try:
        metadata.content.info("default", digest)
    except NotFound:
        return False
    return True


def test_a_name_is_found_as_it_was_at_a_time(
    metadata: Metadata, store: Store, moved: tuple[str, str]
) -> None:
    old, new = moved
    assert metadata.images.digest_at("default", "web", NOW + 1) == old
    assert metadata.images.digest_at("default", "web", NOW + HOUR) == new
    with pytest.raises(NotFound):
        metadata.images.digest_at("default", "web", NOW - 1)
    with pytest.raises(NotFound):
        metadata.images.digest_at("other", "web", NOW + HOUR)


def test_what_a_name_stood_for_is_kept_until_the_entry_expires(
    metadata: Metadata, store: Store, moved: tuple[str, str], clock: Clock
) -> None:
    old, new = moved
    clock.now_ns += 25 * HOUR
    assert present(metadata, old)
    Anchors(store).expire(clock.now_ns, prefix="image/")
    assert not present(metadata, old)
    assert present(metadata, new)


def test_a_removed_name_keeps_nothing(
    metadata: Metadata, store: Store, moved: tuple[str, str], clock: Clock
) -> None:
    metadata.images.delete("default", "web")
    clock.now_ns += 25 * HOUR
    assert not present(metadata, moved[0])
    assert not present(metadata, moved[1])
    with pytest.raises(NotFound):
        Anchors(store).get("image/default/web")
    again = write(metadata, HERE, b"again")
    metadata.images.create(HERE, image("web", again))
    assert metadata.images.digest_at("default", "web", clock.now_ns + HOUR) == again


def test_the_same_image_again_is_no_entry(metadata: Metadata, store: Store, clock: Clock) -> None:
    digest = write(metadata, HERE, b"one")
    metadata.images.create(HERE, image("web", digest))
    clock.now_ns += HOUR
    metadata.images.update(HERE, image("web", digest, {"a": "b"}))
    assert len(Anchors(store).history("image/default/web", repeats=True)) == 1
