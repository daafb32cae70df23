"""A disk with less and less room: a step that finds none refuses, loses nothing, works later."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs import backup, seals, tables
from snapfs.images import Importer, Platform, Wanted
from snapfs.metadata import Metadata
from snapfs.model import Committed, ResourceExhausted, SnapfsError
from snapfs.snapshots import NoTrees, Snapshotter
from tests.crash import acts
from tests.support.loops import mount_image

pytestmark = [pytest.mark.root, pytest.mark.slow]

PAGE_BYTES = 4096
DISK_BYTES = 64 << 20
INODES = 4000
SCARCE = {
    ("pages", "import"),
    ("pages", "backup"),
    ("inodes", "prepare"),
    ("inodes", "import"),
    ("inodes", "backup"),
}
"""Where there must have been too little at first; others may find what was kept for them."""
ENOSPC = 28


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, capture_output=True)


def take_pages(path: Path, but: int) -> None:
    """Make a file of all free blocks but so many."""
    size, step = 0, DISK_BYTES // 2
    with path.open("wb") as file:
        while step >= PAGE_BYTES:
            try:
                os.posix_fallocate(file.fileno(), size, step)
            except OSError as error:
                assert error.errno == ENOSPC  # noqa: PT017
                step //= 2
            else:
                size += step
        file.truncate(max(size - but * PAGE_BYTES, 0))


class Place:
    """A root on a tmpfs, with a layer in it that must stay what it is."""

    def __init__(self, path: Path, layout: Path) -> None:
        self.path = path
        self.layout = layout
        self.root = path / "root"
        self.snapshotter = Snapshotter(
            self.root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS, deadline_s=20
        )
        self.metadata = Metadata(
            self.snapshotter.store, self.root / "content", {"snapfs": self.snapshotter}
        )
        self.snapshotter.prepare("a")
        acts.fill(self.upper("a"), 7)
        self.snapshotter.commit("a", "base")
        self.snapshotter.prepare("work", "base")
        acts.fill(self.upper("work"), 8)
        self.digest = seals.measure(self.upper("base"))

    def upper(self, key: str) -> Path:
        return self.root / "layers" / str(self.snapshotter.stat(key).id) / "fs"

    @contextmanager
    def full(self, free_pages: int, free_inodes: int) -> Iterator[None]:
        """Leave only so much of the disk free."""
        filler = self.path / "filler"
        filler.mkdir()
        inodes = os.statvfs(self.path).f_ffree - free_inodes - 1
        for number in range(max(inodes, 0)):
            os.symlink("x", filler / str(number))
        take_pages(filler / "data", free_pages)
        try:
            yield
        finally:
            run("rm", "-rf", filler)

    def check(self, names: set[str]) -> None:
        """See that what was there is, that `names` are all there is, and all agrees."""
        assert self.snapshotter.cleanup() == ()
        report = self.snapshotter.fsck()
        assert report.clean, report
        assert seals.measure(self.upper("base")) == self.digest
        assert {it.name for it in self.snapshotter.walk()} == names

    def close(self) -> None:
        self.metadata.close()
        self.snapshotter.close()


@pytest.fixture(params=["tmpfs", "ext4"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Place]:
    path, image = tmp_path / "place", tmp_path / "image"
    path.mkdir()
    layout = acts.layout(tmp_path / "layout")
    if request.param == "tmpfs":
        run("mount", "-t", "tmpfs", "-o", f"size={DISK_BYTES},nr_inodes={INODES}", "tmpfs", path)
    else:
        with image.open("wb") as file:
            file.truncate(DISK_BYTES)
        run("mkfs.ext4", "-q", "-m", "0", "-b", str(PAGE_BYTES), "-N", str(INODES), image)
        mount_image(image, path)
    try:
        made = Place(path, layout)
        yield made
        made.close()
    finally:
        run("umount", path)


def import_image(place: Place) -> None:
    wanted = Wanted(platform=Platform("amd64", "linux"), name="example.org/one:1")
    Importer(place.metadata, place.snapshotter).import_path("default", place.layout, wanted)


STEPS: dict[str, Callable[[Place], object]] = {
    "prepare": lambda place: place.snapshotter.prepare("new", "base"),
    "view": lambda place: place.snapshotter.view("look", "base"),
    "commit": lambda place: place.snapshotter.commit("work", "done"),
    "label": lambda place: place.snapshotter.update("base", {"k": "v" * 4000}),
    "remove": lambda place: place.snapshotter.remove("work"),
    "import": import_image,
    "backup": lambda place: backup.take(place.root, place.path / "backup"),
}


def is_no_room(error: Exception) -> bool:
    if isinstance(error, OSError):
        return error.errno == ENOSPC
    return isinstance(error, ResourceExhausted)


@pytest.mark.parametrize("step", STEPS)
@pytest.mark.parametrize("scarce", ["pages", "inodes"])
def test_a_step_without_room_refuses_and_is_done_once_there_is_some(
    place: Place, step: str, scarce: str
) -> None:
    act, refused = STEPS[step], 0
    before = {it.name for it in place.snapshotter.walk()}
    for free in (0, 1, 2, 3, 5, 8, 13, 21, 34, 55, 89, 144, 233, 377, 610):
        pages, inodes = (free, 2000) if scarce == "pages" else (5000, free)
        with place.full(pages, inodes):
            try:
                act(place)
            except (SnapfsError, OSError) as error:
                if not is_no_room(error):
                    raise
                refused += 1
            else:
                break
            with place.snapshotter.store.view() as tx:
                assert tx.revision  # reading goes on
        if step != "import":  # one that failed leaves a lease, and what that holds
            place.check(before)
    else:
        act(place)
    assert refused or (scarce, step) not in SCARCE
    place.snapshotter.prepare("later", "base")
    place.snapshotter.commit("later", "much later")
    now = {it.name: it for it in place.snapshotter.walk()}
    place.check(set(now))
    match step:
        case "prepare":
            assert "new" in now
        case "commit":
            assert isinstance(now["done"], Committed)
        case "remove":
            assert "work" not in now
        case "import":
            assert len(now) == len(before) + 3
        case "backup":
            backup.verify(place.path / "backup")


def test_a_layer_removed_under_a_service_is_said_and_hurts_no_other(place: Place) -> None:
    run("rm", "-rf", place.upper("work"))
    with pytest.raises(SnapfsError, match="run `snapfs fsck`"):
        place.snapshotter.commit("work", "done")
    with pytest.raises(SnapfsError, match="run `snapfs fsck`"):
        place.snapshotter.usage("work")
    (problem,) = place.snapshotter.fsck().problems
    assert problem.kind == "missing-directory"
    place.snapshotter.prepare("other", "base")
    place.snapshotter.commit("other", "fine")
    place.snapshotter.remove("work")
    place.check({"base", "fine"})
