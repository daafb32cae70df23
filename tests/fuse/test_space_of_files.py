"""fallocate, holes and copies in the kernel, through a mount, on each file system for layers."""

from __future__ import annotations

import errno
import os
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.overlay.filecalls import (
    FALLOC_FL_COLLAPSE_RANGE,
    FALLOC_FL_INSERT_RANGE,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_UNSHARE_RANGE,
    FALLOC_FL_ZERO_RANGE,
    fallocate,
)
from tests.support import lanes
from tests.support.lanes import House, Tree
from tests.support.overlay.kernel import image_fs
from tests.support.overlay.operations import outcome

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
KIB = 1024
DEADLINE_S = 20.0
CONTENT = bytes(range(1, 129)) * 4 * KIB
KINDS = ("ext4", "xfs", "btrfs")


@pytest.fixture(scope="module", params=KINDS)
def disk(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, mode: Mode
) -> Iterator[House]:
    """A house whose layers lie on a file system of its own."""
    base = tmp_path_factory.mktemp(f"disk-{request.param}")
    (base / "house").mkdir()
    with (
        image_fs(base, request.param, 600 << 20) as mounted,
        lanes.house(base / "house", mode, root=mounted / "root") as made,
    ):
        yield made


def lower(layer: Path) -> None:
    (layer / "file").write_bytes(CONTENT)
    with (layer / "sparse").open("wb") as file:
        file.truncate(8 << 20)
        file.seek(4 << 20)
        file.write(CONTENT)


def do(path: Path, how: int, offset: int, length: int) -> tuple[str, int, bytes, int]:
    """Return what fallocate says and what the file is then: size, content, blocks."""
    fd = os.open(path, os.O_RDWR)
    try:
        said = outcome(lambda: fallocate(fd, how, offset, length))
        os.fsync(fd)
        found = os.fstat(fd)
        return said, found.st_size, os.pread(fd, 8 << 20, 0), found.st_blocks
    finally:
        os.close(fd)


@pytest.mark.parametrize(
    "how",
    [
        0,
        FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_ZERO_RANGE,
        FALLOC_FL_ZERO_RANGE | FALLOC_FL_KEEP_SIZE,
        FALLOC_FL_PUNCH_HOLE,
    ],
)
@pytest.mark.parametrize("name", ["file", "copied"])
def test_fallocate_does_what_the_layers_file_system_does(disk: House, how: int, name: str) -> None:
    tree = disk.active(lower)
    if name == "copied":
        (tree / "copied").write_bytes(CONTENT)
    beside = disk.root / "beside"
    for offset, length in ((64 * KIB, 128 * KIB), (500 * KIB, 200 * KIB), (100, 50)):
        beside.write_bytes((tree / name).read_bytes())
        os.sync()
        expected = do(beside, how, offset, length)
        got = do(tree / name, how, offset, length)
        assert got[:3] == expected[:3], f"at {offset}"
        assert (tree / name).read_bytes() == expected[2]
        if expected[0] == "ok":
            assert (tree.upper / name).stat().st_blocks == got[3]


@pytest.mark.parametrize(
    "how", [FALLOC_FL_COLLAPSE_RANGE, FALLOC_FL_INSERT_RANGE, FALLOC_FL_UNSHARE_RANGE]
)
def test_modes_that_the_kernels_fuse_does_not_know_are_refused_by_it(tree: Tree, how: int) -> None:
    (tree / "f").write_bytes(CONTENT)
    assert do(tree / "f", how, 4096, 4096)[0] == errno.errorcode[errno.EOPNOTSUPP]
    assert (tree / "f").read_bytes() == CONTENT


def test_fallocate_is_seen_at_once_by_who_has_the_file_open(tree: Tree) -> None:
    (tree / "f").write_bytes(CONTENT)
    with (tree / "f").open("rb") as reader:
        assert reader.read() == CONTENT
        subprocess.run(["fallocate", "-p", "-o", "4096", "-l", "8192", tree / "f"], check=True)
        assert os.pread(reader.fileno(), 8192, 4096) == bytes(8192)
        subprocess.run(["fallocate", "-l", "1M", tree / "f"], check=True)
        assert os.fstat(reader.fileno()).st_size == 1 << 20


def test_space_of_a_lower_file_is_changed_in_a_copy(house: House) -> None:
    tree = house.active(lower)
    subprocess.run(["fallocate", "-p", "-o", "0", "-l", "64K", tree / "file"], check=True)
    assert (tree / "file").read_bytes() == bytes(64 * KIB) + CONTENT[64 * KIB :]
    assert (tree.upper / "file").exists()


def test_no_space_is_changed_in_a_view(house: House) -> None:
    view = house.view(house.base_layers(lower))
    with pytest.raises(OSError, match="Read-only"), (view / "file").open("rb+") as file:
        fallocate(file.fileno(), 0, 0, 4096)


def test_fallocate_of_more_than_there_is_fails_and_changes_nothing(disk: House) -> None:
    tree = disk.active(lower)
    (tree / "f").write_bytes(CONTENT)
    with (tree / "f").open("rb+") as file, pytest.raises(OSError) as refused:
        fallocate(file.fileno(), 0, 0, 10 << 30)
    assert refused.value.errno == errno.ENOSPC
    assert (tree / "f").read_bytes()[: len(CONTENT)] == CONTENT
    os.truncate(tree / "f", 0)  # ext4 keeps what it had allocated


def test_a_removed_file_that_is_open_takes_fallocate(tree: Tree) -> None:
    with (tree / "f").open("wb+") as file:
        (tree / "f").unlink()
        fallocate(file.fileno(), 0, 0, 64 * KIB)
        assert os.fstat(file.fileno()).st_size == 64 * KIB


# Holes


def extents(path: Path) -> list[tuple[int, int]]:
    """List where a file has data, as SEEK_DATA and SEEK_HOLE tell."""
    found = []
    with path.open("rb") as file:
        fd, at = file.fileno(), 0
        while True:
            try:
                at = os.lseek(fd, at, os.SEEK_DATA)
            except OSError as error:
                if error.errno != errno.ENXIO:
                    raise
                return found
            end = os.lseek(fd, at, os.SEEK_HOLE)
            found.append((at, end))
            at = end


def test_holes_are_where_the_layer_has_them(disk: House) -> None:
    tree = disk.active(lower)
    expected = [(4 << 20, (4 << 20) + len(CONTENT))]
    assert extents(tree / "sparse")[0] == expected[0]
    with (tree / "sparse").open("r+b") as file:
        file.seek(1 << 20)
        file.write(CONTENT)
    assert extents(tree / "sparse") == extents(tree.upper / "sparse")
    assert len(extents(tree / "sparse")) >= 2


@pytest.mark.parametrize("name", ["file", "upper"])
def test_reading_ahead_of_one_file_changes_and_shows_no_other(house: House, name: str) -> None:
    """The kernel asks us for pages of a file that it reads by itself; all such have one handle."""
    tree = house.active(lower)
    (tree / "upper").write_bytes(CONTENT)
    for new in ("copied", "shorter", "longer"):
        (tree / new).write_bytes(new.encode())
    for advise in (os.POSIX_FADV_WILLNEED, os.POSIX_FADV_NORMAL):  # and then of those after it
        with (tree / name).open("rb+" if name == "upper" else "rb") as ahead:
            os.posix_fadvise(ahead.fileno(), 0, len(CONTENT), advise)
            assert ahead.read() == CONTENT
            with (tree / "shorter").open("rb+", buffering=0) as file:
                file.truncate(3)
                assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 3
            with (tree / "longer").open("rb+", buffering=0) as file:
                fallocate(file.fileno(), 0, 0, 2 * len(CONTENT))
                copied = os.open(tree / "copied", os.O_RDONLY)
                assert os.copy_file_range(copied, file.fileno(), 100, 0, 0) == len("copied")
                os.close(copied)
    assert (tree / name).read_bytes() == CONTENT
    assert (tree / "shorter").read_bytes() == b"sho"
    assert (tree / "longer").read_bytes()[:10] == b"copied\0\0\0\0"


def test_seeking_to_a_place_before_the_file_is_refused(tree: Tree) -> None:
    (tree / "file").write_bytes(CONTENT)
    with (tree / "file").open("rb") as file, pytest.raises(OSError, match="No such device"):
        os.lseek(file.fileno(), -1, os.SEEK_DATA)


def test_seeking_past_the_end_is_refused(tree: Tree) -> None:
    (tree / "f").write_bytes(b"x")
    with (tree / "f").open("rb") as file:
        for whence in (os.SEEK_DATA, os.SEEK_HOLE):
            assert outcome(lambda way=whence: os.lseek(file.fileno(), 2, way)) == "ENXIO"
        assert os.lseek(file.fileno(), 0, os.SEEK_HOLE) == 1


def test_programs_keep_files_sparse(house: House, tmp_path: Path) -> None:
    tree = house.active(lower)
    subprocess.run(["cp", "--sparse=auto", tree / "sparse", tree / "copy"], check=True)
    subprocess.run(["tar", "-C", tree.path, "-cSf", tmp_path / "t.tar", "sparse"], check=True)
    (tree / "out").mkdir()
    subprocess.run(["tar", "-C", tree / "out", "-xSf", tmp_path / "t.tar"], check=True)
    assert (tmp_path / "t.tar").stat().st_size < 2 << 20
    for name in ("copy", "out/sparse"):
        assert (tree / name).read_bytes() == (tree / "sparse").read_bytes()
        assert (tree / name).stat().st_blocks * 512 < 2 << 20


# Copies


def copy_range(source: Path, target: Path, count: int, at: int = 0, to: int = 0) -> int:
    with source.open("rb") as reader, target.open("rb+") as writer:
        done = 0
        while done < count:
            step = os.copy_file_range(
                reader.fileno(), writer.fileno(), count - done, at + done, to + done
            )
            if not step:
                break
            done += step
        return done


@pytest.mark.parametrize("source", ["file", "upper"])
def test_copies_in_the_kernel_are_whole(disk: House, source: str) -> None:
    tree = disk.active(lower)
    (tree / "upper").write_bytes(CONTENT)
    (tree / "to").write_bytes(b"")
    assert copy_range(tree / source, tree / "to", len(CONTENT)) == len(CONTENT)
    assert (tree / "to").read_bytes() == CONTENT
    assert copy_range(tree / source, tree / "to", 100, at=50, to=7) == 100
    assert (tree / "to").read_bytes() == CONTENT[:7] + CONTENT[50:150] + CONTENT[107:]
    assert (tree.upper / "to").read_bytes() == (tree / "to").read_bytes()


def test_copies_go_between_snapshots_and_into_lower_files(house: House) -> None:
    one, other = house.active(lower), house.active(lower)
    (one / "mine").write_bytes(b"mine" * 1000)
    assert copy_range(one / "mine", other / "file", 4000) == 4000
    assert (other / "file").read_bytes() == b"mine" * 1000 + CONTENT[4000:]
    assert (one / "file").read_bytes() == CONTENT


def test_a_copy_ends_where_its_source_ends(tree: Tree) -> None:
    (tree / "f").write_bytes(b"short")
    (tree / "g").write_bytes(b"")
    assert copy_range(tree / "f", tree / "g", 1000) == 5
    assert copy_range(tree / "f", tree / "g", 1000, at=5) == 0


def test_overlapping_ranges_of_one_file_are_refused(tree: Tree) -> None:
    (tree / "f").write_bytes(CONTENT)
    assert outcome(lambda: copy_range(tree / "f", tree / "f", 4096, at=0, to=100)) == "EINVAL"


def test_copies_are_clones_where_the_file_system_has_them(disk: House) -> None:
    expect = disk.root.parent.name != "ext4"
    tree = disk.active(lower)
    for name in ("file", "copied"):
        if name == "copied":
            subprocess.run(["cp", "--reflink=auto", tree / "file", tree / "copied"], check=True)
        else:
            (tree / "to").write_bytes(b"")
            copy_range(tree / "file", tree / "to", len(CONTENT))
    os.sync()
    for name in ("to", "copied"):
        assert (tree / name).read_bytes() == CONTENT
        mapped = subprocess.run(
            ["filefrag", "-v", tree.upper / name], check=True, capture_output=True, text=True
        )
        assert ("shared" in mapped.stdout) is expect


def test_long_copies_are_done_in_steps(house: House) -> None:
    tree = house.active(lower)
    size = 200 << 20
    with (tree / "big").open("wb") as file:
        file.truncate(size)
        file.write(b"head")
        file.seek(size - 4)
        file.write(b"tail")
    (tree / "to").write_bytes(b"")
    assert copy_range(tree / "big", tree / "to", size) == size
    with (tree / "to").open("rb") as file:
        assert file.read(4) == b"head"
        file.seek(size - 4)
        assert file.read() == b"tail"


def test_a_reader_from_before_a_copy_up_copies_what_it_reads(house: House) -> None:
    tree = house.active(lower)
    (tree / "to").write_bytes(b"")
    with (tree / "sparse").open("rb") as reader, (tree / "to").open("rb+") as target:
        assert reader.read(1) == b"\0"
        with (tree / "sparse").open("rb+") as file:
            file.write(CONTENT)
        expected = os.pread(reader.fileno(), 8 << 20, 0)
        first = os.lseek(reader.fileno(), 0, os.SEEK_DATA)
        assert not any(expected[:first])
        assert os.copy_file_range(reader.fileno(), target.fileno(), 8 << 20, 0, 0) == 8 << 20
        assert (tree / "to").read_bytes() == expected


# Beside other things


def test_a_frozen_snapshot_is_changed_after_the_thaw(house: House) -> None:
    tree = house.active(lower)
    (tree / "f").write_bytes(b"")
    (tree / "g").write_bytes(b"")
    steps: list[Callable[[], object]] = [
        lambda: subprocess.run(["fallocate", "-l", "4096", tree / "f"], check=True),
        lambda: copy_range(tree / "file", tree / "g", 4096),
    ]
    house.lane.freeze(tree.id, timeout_s=5)
    writers = [threading.Thread(target=step) for step in steps]
    for writer in writers:
        writer.start()
    assert house.worker().frozen == (tree.id,)
    assert [(tree.upper / name).stat().st_size for name in "fg"] == [0, 0]
    house.lane.thaw(tree.id)
    for writer in writers:
        writer.join(DEADLINE_S)
    assert [(tree / name).stat().st_size for name in "fg"] == [4096, 4096]


@pytest.mark.parametrize(
    "change",
    [
        "from snapfs.overlay.filecalls import fallocate; fallocate({fd}, 0, 0, 10)",
        "os.copy_file_range(os.open('plain', os.O_RDONLY), {fd}, 4, 0, 0)",
    ],
)
def test_set_id_bits_go_when_others_change_the_file(house: House, change: str) -> None:
    tree = house.active()
    (tree / "plain").write_bytes(b"plain")
    (tree / "suid").write_bytes(b"x")
    tree.path.chmod(0o777)
    for name in ("plain", "suid"):
        os.chown(tree / name, 1000, 1000)
    (tree / "suid").chmod(0o4755)
    code = change.replace("{fd}", "f")
    run_as_user(f"f = os.open('suid', os.O_RDWR); {code}", tree.path)
    assert (tree / "suid").stat().st_mode & 0o7777 == 0o755


def run_as_user(code: str, path: Path) -> None:
    """Run Python as user 1000 in a directory that only root can walk to."""
    child = os.fork()
    if not child:
        status = 1
        try:
            import snapfs.overlay.filecalls  # noqa: F401  # while it can be read

            os.chdir(path)
            os.setgroups([])
            os.setgid(1000)
            os.setuid(1000)
            exec(code, {"os": os})
            status = 0
        finally:
            os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
