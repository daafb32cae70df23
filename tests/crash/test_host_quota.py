"""The quota of the host's file system below a root: a limit on a btrfs subvolume, also for root.

That of users and projects on ext4 and xfs answers in the same way; which of our calls get EDQUOT
is the same for all (tests.crash.test_each_call_that_fails).
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.daemon import RunningDaemon, eventually, running
from tests.support.overlay.kernel import image_fs

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(240)]

MIB = 1 << 20
LIMIT = 48 * MIB
DATA = os.urandom(4 * MIB)


def btrfs(*command: str | Path) -> None:
    done = subprocess.run(["btrfs", *command], capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr}"


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    with image_fs(tmp_path, "btrfs") as mounted:
        btrfs("quota", "enable", mounted)
        btrfs("quota", "rescan", "-w", mounted)
        yield mounted


@contextmanager
def limited(place: Path, size_bytes: int) -> Iterator[None]:
    btrfs("qgroup", "limit", str(size_bytes), place)
    try:
        yield
    finally:
        btrfs("qgroup", "limit", "none", place)


def fill(path: Path) -> bytes:
    """Write until not even a page finds room; return what was written and synced."""
    whole = b""
    with path.open("wb", buffering=0) as file:
        for size in (MIB, 4096):
            while len(whole) < 2 * LIMIT:
                block = os.urandom(size)
                try:
                    count = file.write(block)
                    os.fsync(file.fileno())
                except OSError as error:
                    assert error.errno == errno.EDQUOT  # noqa: PT017
                    break
                whole += block[:count]
                file.seek(len(whole))
    assert MIB < len(whole) < LIMIT
    return whole


def change(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"changed")


def set_up(upper: Path) -> None:
    (upper / "file").write_bytes(DATA)


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_writers_get_edquot_and_a_copy_up_leaves_the_file_as_it_was(
    place: Path, tmp_path: Path, mode: Mode
) -> None:
    with lanes.house(tmp_path / "house", root=place / "root", mode=mode) as house:
        tree = house.active(set_up)
        assert [it.name for it in tree.path.iterdir()] == ["file"]
        worker = house.worker().pid
        with limited(place, LIMIT):  # nothing in this process asks the store in it
            whole = fill(tree / "new")
            with pytest.raises(OSError, match="quota"):
                change(tree / "file")
            assert not (tree.upper / "file").exists()
            assert os.listdir(tree.upper) == ["new"]
            with pytest.raises(OSError, match="quota"):
                (tree / "directory").mkdir()
            assert (tree / "file").read_bytes() == DATA
            assert (tree / "new").read_bytes()[: len(whole)] == whole
            assert house.worker().pid == worker
        change(tree / "file")
        (tree / "directory").mkdir()
        assert (tree / "file").read_bytes() == b"changed" + DATA[7:]
        assert (tree / "new").read_bytes()[: len(whole)] == whole
        house.snapshots.commit(tree.key, "done")
        assert house.snapshots.fsck().clean


@contextmanager
def serving(place: Path, tmp_path: Path) -> Iterator[RunningDaemon]:
    """A service whose root is below `place`, with a committed snapshot and one on it."""
    base = tmp_path / "service"
    base.mkdir()
    with running(base, arguments=("--root", str(place / "root"))) as daemon:
        daemon.run("snapshot", "prepare", "work")
        daemon.run("snapshot", "commit", "work", "base")
        daemon.run("snapshot", "prepare", "--parent", "base", "next")
        os.sync()
        yield daemon


def test_a_service_stays_up_at_the_limit_and_starts_there(place: Path, tmp_path: Path) -> None:
    with serving(place, tmp_path) as daemon:
        btrfs("qgroup", "limit", str(LIMIT), place)
        filler = place / "filler"
        fill(filler)
        refuse_changes(daemon)
        assert daemon.process is not None
        assert daemon.process.poll() is None
        assert daemon.stop() == 0
        daemon.start()
        refuse_changes(daemon)
        filler.unlink()  # at the limit btrfs may not let it be raised
        os.sync()
        btrfs("qgroup", "limit", str(2 * LIMIT), place)
        daemon.run("snapshot", "commit", "next", "made")
        daemon.run("snapshot", "prepare", "--parent", "made", "new")
        daemon.run("snapshot", "remove", "new")
        daemon.stop()
        daemon.start()
        assert daemon.run("fsck").exit_code == 0
        assert listed(daemon) == {"base", "made"}


def refuse_changes(daemon: RunningDaemon) -> None:
    for change in (
        ("prepare", "--parent", "base", "new"),
        ("commit", "next", "made"),
        ("remove", "next"),
    ):
        refused = daemon.run("snapshot", *change, check=False)
        assert refused.exit_code == 1
        assert "quota exceeded" in refused.stderr.lower()
    assert listed(daemon) == {"base", "next"}


def listed(daemon: RunningDaemon) -> set[str]:
    return {it["name"] for it in daemon.json("snapshot", "list")}


def test_a_service_stays_up_under_a_limit_below_what_is_used(place: Path, tmp_path: Path) -> None:
    with serving(place, tmp_path) as daemon:
        btrfs("qgroup", "limit", str(MIB), place)
        refused = daemon.run("snapshot", "prepare", "--parent", "base", "new", check=False)
        assert refused.exit_code == 1
        btrfs("quota", "disable", place)  # a limit below what is used cannot even be raised
        assert daemon.run("fsck").exit_code == 0
        assert listed(daemon) == {"base", "next"}
        daemon.run("snapshot", "commit", "next", "made")


def test_an_unfinished_creation_goes_once_there_is_room_again(place: Path, tmp_path: Path) -> None:
    layers = place / "root" / "layers"
    with serving(place, tmp_path) as daemon:
        daemon.kill()
        left = layers / str(1 + max(int(it.name) for it in layers.iterdir()))
        (left / "fs").mkdir(parents=True)  # as a creation does that is killed half-way
        btrfs("qgroup", "limit", str(LIMIT), place)
        filler = place / "filler"
        fill(filler)
        daemon.start()
        refuse_changes(daemon)
        assert left.exists()
        assert daemon.events("promises.not_settled")
        filler.unlink()
        os.sync()
        btrfs("qgroup", "limit", str(2 * LIMIT), place)
        eventually(lambda: not left.exists(), what="the end of what was left", timeout_s=60.0)
        daemon.run("snapshot", "prepare", "--parent", "base", "new")
        assert daemon.run("fsck").exit_code == 0
        assert listed(daemon) == {"base", "next", "new"}
