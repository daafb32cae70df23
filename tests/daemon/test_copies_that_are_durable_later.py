"""Copies that are seen before they are durable, when a worker dies, the service, or the machine."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.overlay.filecalls import FALLOC_FL_KEEP_SIZE, FALLOC_FL_PUNCH_HOLE, fallocate
from tests.support.daemon import RunningDaemon, clear, eventually, processes_below
from tests.support.overlay.kernel import image_fs

pytestmark = [pytest.mark.root, pytest.mark.fuse]

BLOCK = 4096
DATA = os.urandom(5 * BLOCK)
ADDED = b"added"


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with image_fs(tmp_path, "ext4", 128 << 20) as disk:
        base = tmp_path / "base"
        base.mkdir()
        made = RunningDaemon(base, arguments=("--root", str(disk / "root")))
        made.start()
        try:
            yield made
        finally:
            made.kill()
            clear(base)


def root_of(daemon: RunningDaemon) -> Path:
    return daemon.base.parent / "ext4/root"


def mounted(daemon: RunningDaemon) -> Path:
    """Mount a snapshot on a layer with a file."""
    daemon.run("snapshot", "prepare", "first")
    target = daemon.base / "mnt"
    target.mkdir()
    daemon.run("mount", "first", target)
    for name in ("one", "two"):
        (target / name).write_bytes(DATA)
    daemon.run("umount", target)
    daemon.run("snapshot", "commit", "first", "base")
    daemon.run("snapshot", "prepare", "--parent", "base", "work")
    daemon.run("mount", "work", target)
    return target


def directory(daemon: RunningDaemon) -> Path:
    return root_of(daemon) / "layers" / str(daemon.json("snapshot", "info", "work")["id"])


def marks(daemon: RunningDaemon, layer: Path) -> list[Path]:
    return list((layer / "work/snapfs").glob("tn*"))


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(ADDED)


def lose(path: Path) -> None:
    """Take away what did not reach the disk, as a power cut does."""
    with path.open("r+b") as file:
        fallocate(file.fileno(), FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, 0, 2 * BLOCK)


def end_all(daemon: RunningDaemon) -> None:
    """End all processes and mounts, as a power cut does."""
    daemon.kill()
    clear(daemon.base)
    assert not processes_below(daemon.base)


def test_copies_are_made_durable_when_there_were_none_for_a_while(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    os.chown(target / "two", 5, 5)
    assert len(marks(daemon, layer)) == 3
    eventually(lambda: not marks(daemon, layer), what="durable copies")
    assert (target / "one").read_bytes() == DATA + ADDED
    daemon.run("umount", target)
    daemon.stop()


def test_nothing_is_lost_by_the_death_of_a_worker(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    os.kill(daemon.worker_pid(), signal.SIGKILL)
    append(target / "one")
    append(target / "two")
    assert len(marks(daemon, layer)) == 3
    os.truncate(target / "one", BLOCK)
    assert (target / "one").read_bytes() == DATA[:BLOCK]
    assert (target / "two").read_bytes() == DATA + ADDED
    eventually(lambda: not marks(daemon, layer), what="durable copies")
    daemon.run("umount", target)
    daemon.stop()


def test_a_start_puts_in_what_a_power_cut_took_and_counts_again(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    end_all(daemon)
    lose(layer / "fs/one")
    daemon.start()
    assert marks(daemon, layer) == []
    assert (layer / "fs/one").read_bytes() == DATA + ADDED
    daemon.run("snapshot", "commit", "work", "done")
    assert daemon.run("fsck").exit_code == 0
    daemon.stop()


def test_nothing_is_lost_by_the_death_of_both_processes(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    end_all(daemon)
    daemon.start()
    assert marks(daemon, layer) == []
    assert (layer / "fs/one").read_bytes() == DATA + ADDED
    daemon.stop()


def test_nothing_is_lost_by_the_death_of_the_service(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    daemon.kill()
    append(target / "two")
    daemon.start()
    for name in ("one", "two"):
        assert (target / name).read_bytes() == DATA + ADDED
    eventually(lambda: not marks(daemon, layer), what="durable copies")
    daemon.run("umount", target)
    daemon.stop()


def test_a_copy_that_cannot_be_made_whole_is_named_and_not_committed(
    daemon: RunningDaemon,
) -> None:
    target = mounted(daemon)
    layer = directory(daemon)
    append(target / "one")
    end_all(daemon)
    lose(layer / "fs/one")
    (below,) = (
        it for it in (root_of(daemon) / "layers").glob("*/fs/one") if layer not in it.parents
    )
    kept = below.with_name("kept")
    below.rename(kept)
    kept.rename(layer / "kept")
    daemon.start()
    (said,) = daemon.events("snapshot.lacks_data")
    assert "lower file is not there" in said
    found = daemon.run("fsck", check=False)
    assert "lacking-data" in found.stdout
    refused = daemon.run("snapshot", "commit", "work", "lost", check=False)
    assert "power cut" in refused.stderr
    daemon.stop()
    (layer / "kept").rename(below)
    daemon.start()
    assert (layer / "fs/one").read_bytes() == DATA + ADDED
    daemon.run("snapshot", "commit", "work", "done")
    daemon.stop()
