"""A copy-up that does not end, as its file system is frozen (FIFREEZE), and what goes on."""

from __future__ import annotations

import errno
import os
import resource
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import DeadlineExceeded
from tests.support import lanes
from tests.support.daemon import eventually
from tests.support.frozen_disk import frozen, own_disk
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

DEADLINE_S = 20.0


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of its own."""
    with own_disk(tmp_path) as made:
        yield made


@pytest.fixture
def slow(disk: Path) -> Iterator[House]:
    with lanes.house(disk) as made:
        yield made


def fill(layer: Path) -> None:
    (layer / "large").write_bytes(os.urandom(1 << 20))
    (layer / "other").write_bytes(b"other")
    (layer / "dir").mkdir()
    (layer / "dir" / "below").write_bytes(b"below")


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"!")


def test_others_are_served_while_a_file_is_copied_up(slow: House) -> None:
    tree = slow.active(fill)
    writers = [threading.Thread(target=append, args=(tree / "large",)) for _ in range(2)]
    (tree / "other").stat()
    with frozen(slow.base):
        for writer in writers:
            writer.start()
        eventually(lambda: slow.worker().copying == 1, what="the copy-up")
        assert (tree / "other").stat().st_size == 5
        assert (tree / "dir" / "below").read_bytes() == b"below"
        assert (tree / "large").stat().st_size == 1 << 20
        assert sorted(os.listdir(tree.path)) == ["dir", "large", "other"]
        assert slow.worker().copying == 1
        assert all(writer.is_alive() for writer in writers)
    for writer in writers:
        writer.join(DEADLINE_S)
        assert not writer.is_alive()
    assert (tree / "large").stat().st_size == (1 << 20) + 2
    assert slow.worker().copied == 1


def test_freeze_waits_for_a_copy_up_and_gives_up_at_its_deadline(slow: House) -> None:
    tree = slow.active(fill)
    writer = threading.Thread(target=append, args=(tree / "large",))
    (tree / "other").stat()
    with frozen(slow.base):
        writer.start()
        eventually(lambda: slow.worker().copying == 1, what="the copy-up")
        with pytest.raises(DeadlineExceeded, match="still in flight"):
            slow.lane.freeze(tree.id, timeout_s=3)
        assert slow.worker().frozen == ()
    writer.join(DEADLINE_S)
    slow.lane.freeze(tree.id, timeout_s=5)
    slow.lane.thaw(tree.id)


def test_copy_up_without_descriptors_to_spare_changes_nothing(tmp_path: Path) -> None:
    with lanes.house(tmp_path / "house", Mode.NO_OPEN) as short:
        tree = short.active(fill)
        with (tree / "large").open("rb") as reader:
            content = reader.read()
            refused = 0
            while not (tree.upper / "large").exists():
                with few_descriptors(short.worker().pid, refused):
                    try:
                        (tree / "large").chmod(0o600)
                    except OSError as error:
                        if error.errno != errno.EMFILE:
                            raise
                        refused += 1
                        assert not (tree.upper / "large").exists()
            assert refused
            append(tree / "large")
            assert os.pread(reader.fileno(), 1 << 21, 0) == content + b"!"


@contextmanager
def few_descriptors(pid: int, spare: int) -> Iterator[None]:
    """Leave a process the room for so many more open files."""
    taken = {int(name) for name in os.listdir(f"/proc/{pid}/fd")}
    free = [number for number in range(len(taken) + spare + 1) if number not in taken]
    soft, hard = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (free[spare], hard))
    try:
        yield
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, (soft, hard))


def test_full_disk_fails_the_copy_and_leaves_the_lower_file_in_place(slow: House) -> None:
    def big(layer: Path) -> None:
        (layer / "big").write_bytes(os.urandom(60 << 20))

    tree = slow.active(big)
    free = os.statvfs(slow.base)
    (slow.base / "ballast").write_bytes(bytes(free.f_bavail * free.f_frsize - (30 << 20)))
    with pytest.raises(OSError, match="No space left"):
        append(tree / "big")
    assert (tree / "big").stat().st_size == 60 << 20
    assert not list((tree.upper.parent / "work" / "snapfs").glob("t*"))
    (slow.base / "ballast").unlink()
    append(tree / "big")
    assert (tree / "big").stat().st_size == (60 << 20) + 1
