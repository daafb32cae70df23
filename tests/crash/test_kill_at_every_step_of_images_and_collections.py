"""kill -9 at every step of an import, a commit, an export and a collection.

A forked child does the operation and kills itself before its Nth effect: an update of the store, a
rename, a link, a removal, an fsync. N goes up until the operation comes to its end. After each kill
a new start finds no fault, nothing that was alive is lost, and the operation, asked for again, ends
as if nothing had happened; then nothing is left over.
"""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from snapfs import anchors
from snapfs.images import (
    Catalog,
    Committer,
    Exporter,
    Importer,
    Platform,
    Statement,
    Wanted,
    clear_unpacked,
)
from snapfs.metadata import TABLES, Metadata, marking
from snapfs.model import NotFound
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.store import Store
from tests.images.kit import Layout, directory, file

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

WANTED = Wanted(platform=Platform("amd64", "linux"))
FIXED = Statement(epoch_s=1_700_000_000)
LIVE, NEW, MADE = "example.org/live:1", "example.org/new:1", "example.org/made:1"
SHARED = [directory("etc"), file("etc/hosts", b"127.0.0.1")]
DEADLINE_S = 60.0


@dataclass
class House:
    """A root that is open."""

    root: Path
    snapshotter: Snapshotter
    metadata: Metadata

    def importing(self, path: Path) -> None:
        Importer(self.metadata, self.snapshotter).import_path("n", path, WANTED)

    def committing(self) -> None:
        committer = Committer(self.metadata, self.snapshotter)
        committer.commit("n", "work", MADE, statement=FIXED)

    def exporting(self, path: Path) -> None:
        Exporter(self.metadata).export("n", [LIVE], path)

    def collecting(self) -> None:
        self.metadata.collector.collect()

    def digest(self, name: str) -> str:
        """Return the digest of an image all of whose content and snapshots are there."""
        catalog = Catalog(self.metadata)
        assert catalog.verify("n", name) == []
        found = catalog.get("n", name)
        self.snapshotter.stat(found.snapshot)
        return found.image.target.digest


@contextmanager
def opened(root: Path) -> Iterator[House]:
    tables = (*anchors.TABLES, *TABLES)
    with (
        Snapshotter(root, trees=NoTrees(), tables=tables) as snapshotter,
        Metadata(snapshotter.store, root / "content", {"snapfs": snapshotter}) as metadata,
    ):
        clear_unpacked(snapshotter)
        yield House(root, snapshotter, metadata)


@pytest.fixture(scope="module")
def layouts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two images that share their lowest layer."""
    made = {}
    for name, top in ((LIVE, [file("live")]), (NEW, [file("new", b"new" * 1000)])):
        layout = Layout(tmp_path_factory.mktemp("layout"))
        layout.image([SHARED, top], name=name, compress="gzip")
        made[name] = layout.root
    return made


@pytest.fixture
def root(tmp_path: Path, layouts: dict[str, Path]) -> Path:
    """A root with a live image and an active snapshot with changes on it."""
    with opened(tmp_path / "root") as house:
        house.importing(layouts[LIVE])
        house.snapshotter.prepare("work", Catalog(house.metadata).get("n", LIVE).snapshot)
        upper = tmp_path / "root/layers" / str(house.snapshotter.stat("work").id) / "fs"
        (upper / "mine").write_bytes(b"precious")
        house.collecting()
    return tmp_path / "root"


class Killer:
    """Kills the process before the Nth effect of any thread."""

    def __init__(self, step: int) -> None:
        self._left = step
        self._lock = threading.Lock()

    def arm(self) -> None:
        for owner, name in (
            (Store, "update"),
            (os, "rename"),
            (os, "link"),
            (os, "unlink"),
            (os, "rmdir"),
            (os, "fsync"),
        ):
            setattr(owner, name, self._deadly(getattr(owner, name)))

    def _deadly(self, real: Callable[..., Any]) -> Callable[..., Any]:
        def before(*arguments: Any, **named: Any) -> Any:
            with self._lock:
                self._left -= 1
                if not self._left:
                    os.kill(os.getpid(), signal.SIGKILL)
            return real(*arguments, **named)

        return before


def killed_at(step: int, root: Path, operation: Callable[[House], None]) -> bool:
    """Do the operation in a child; say whether it was killed rather than done."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            with opened(root) as house:
                Killer(step).arm()
                operation(house)
                status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + DEADLINE_S
    while True:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            break
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the child hangs at step {step}")
        time.sleep(0.002)
    if os.WIFSIGNALED(status):
        return os.WTERMSIG(status) == signal.SIGKILL
    assert os.WEXITSTATUS(status) == 0, f"step {step}: the operation failed"
    return False


def each_kill(
    root: Path, operation: Callable[[House], None], *, at_least: int, stride: int = 1
) -> Iterator[House]:
    """Yield the root, opened again, after a kill at each step, from the same beginning."""
    kept = root.with_name("kept")
    shutil.copytree(root, kept, symlinks=True)
    step = 1
    while killed_at(step, root, operation):
        with opened(root) as house:
            assert house.snapshotter.fsck().problems == ()
            yield house
            check_nothing_is_left(house)
        shutil.rmtree(root)
        shutil.copytree(kept, root, symlinks=True)
        step += stride
    assert step > at_least, f"only {step} steps were counted"


def check_nothing_is_left(house: House) -> None:
    """No garbage, no file without a row, no snapshot that nobody has, no ingest."""
    for lease in list(house.metadata.leases.walk("n")):
        house.metadata.leases.delete("n", lease.id)  # what a killed process held, for a day
    house.collecting()
    house.collecting()
    assert house.metadata.garbage() == []
    assert house.metadata.content.cleanup() == []
    assert list(house.metadata.content.statuses("n")) == []
    chains = {layer.chain_id for it in Catalog(house.metadata).walk("n") for layer in it.layers}
    left = {it.name for it in house.snapshotter.walk()} - {"work"}
    assert left == chains
    assert house.snapshotter.cleanup() == ()
    assert house.snapshotter.fsck().problems == ()
    assert house.snapshotter.store.check() == []


def test_a_killed_import_is_finished_by_the_next_one(root: Path, layouts: dict[str, Path]) -> None:
    expected = ""
    for house in each_kill(root, lambda it: it.importing(layouts[NEW]), at_least=30, stride=2):
        house.digest(LIVE)
        house.importing(layouts[NEW])
        expected = expected or house.digest(NEW)
        assert house.digest(NEW) == expected


def test_after_a_killed_import_alone_nothing_of_it_is_left(
    root: Path, layouts: dict[str, Path]
) -> None:
    for house in each_kill(root, lambda it: it.importing(layouts[NEW]), at_least=30, stride=5):
        house.digest(LIVE)


def test_a_killed_commit_loses_no_change_and_is_finished_by_the_next_one(root: Path) -> None:
    with opened(root) as house:
        live = house.digest(LIVE)
    digests = set()
    for house in each_kill(root, House.committing, at_least=20):
        assert house.digest(LIVE) == live
        try:
            house.committing()
        except NotFound:  # all was done but the end of the lease
            assert house.digest(MADE)
        digests.add(house.digest(MADE))
        upper, _ = house.snapshotter.layers(Catalog(house.metadata).get("n", MADE).snapshot)
        assert (upper / "mine").read_bytes() == b"precious"
    assert len(digests) == 1


def test_a_killed_export_leaves_a_whole_file_or_none(root: Path, tmp_path: Path) -> None:
    target = tmp_path / "out" / "image.tar"
    target.parent.mkdir()
    for house in each_kill(root, lambda it: it.exporting(target), at_least=1):
        assert list(target.parent.iterdir()) in ([], [target])
        if not target.exists():
            house.exporting(target)
        house.metadata.images.delete("n", LIVE)
        house.importing(target)
        house.digest(LIVE)
        target.unlink()
    assert list(target.parent.iterdir()) == [target]


@pytest.mark.parametrize("apart", [False, True])
def test_a_killed_collection_loses_nothing_live_and_is_finished_by_the_next(
    root: Path, layouts: dict[str, Path], monkeypatch: pytest.MonkeyPatch, apart: bool
) -> None:
    with opened(root) as house:
        house.importing(layouts[NEW])
        house.metadata.images.delete("n", NEW)
        live = house.digest(LIVE)
    if apart:  # marked by another process, as a large store is
        monkeypatch.setattr(marking, "HERE_ROWS", -1)
    for house in each_kill(root, House.collecting, at_least=15, stride=1 + 4 * apart):
        assert house.digest(LIVE) == live
        assert house.snapshotter.stat("work")
