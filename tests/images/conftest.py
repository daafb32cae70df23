"""A root with metadata and snapshots, without any worker: snapshots are looked at as overlays."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs import anchors
from snapfs.fuse import attach
from snapfs.images import Importer
from snapfs.metadata import TABLES, Metadata
from snapfs.snapshots import NoTrees, Snapshotter
from tests.images.kit import Layout


@pytest.fixture
def snapshotter(tmp_path: Path) -> Iterator[Snapshotter]:
    tables = (*anchors.TABLES, *TABLES)
    with Snapshotter(tmp_path / "root", trees=NoTrees(), tables=tables) as opened:
        yield opened
        assert opened.fsck().problems == ()


@pytest.fixture
def metadata(snapshotter: Snapshotter, tmp_path: Path) -> Iterator[Metadata]:
    content = tmp_path / "root" / "content"
    with Metadata(snapshotter.store, content, {"snapfs": snapshotter}) as built:
        yield built


@pytest.fixture
def importer(metadata: Metadata, snapshotter: Snapshotter) -> Importer:
    return Importer(metadata, snapshotter)


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "layout")


@pytest.fixture
def shown(snapshotter: Snapshotter, tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Return a function that mounts a committed snapshot by the kernel's overlay."""
    with ExitStack() as stack:
        count = iter(range(100))

        def show(name: str) -> Path:
            number = next(count)
            key = f"look/extract-{number}"
            snapshotter.prepare(key, name)
            stack.callback(snapshotter.remove, key)
            target = tmp_path / f"shown{number}"
            target.mkdir()
            for mount in snapshotter.mounts(key):
                attach.attach(mount, target)
            stack.callback(attach.detach, target)
            return target

        yield show
