"""Files of a lane without opens are what they should be when Python reads and writes none."""

from __future__ import annotations

import errno
import mmap
import os
import random
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.stillness import STILL_LABEL
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.past_python import without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.NO_OPEN,)

DEADLINE_S = 20.0
KIB = 1 << 10
MIB = 1 << 20
SIZES = (0, 1, 4095, 4096, 4097, 130 * KIB, 3 * MIB + 5)


def content(size_bytes: int) -> bytes:
    return random.Random(size_bytes).randbytes(size_bytes)


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower")
    os.link(layer / "file", layer / "second")
    (layer / "sizes").mkdir()
    for size_bytes in SIZES:
        (layer / "sizes" / str(size_bytes)).write_bytes(content(size_bytes))
    (layer / "only").mkdir()
    for number in range(30):
        (layer / "only" / str(number)).write_bytes(b"%d" % number)
    with (layer / "sparse").open("wb") as file:
        file.truncate(MIB)
        file.seek(MIB // 2)
        file.write(b"data")


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


@contextmanager
def answered(house: House, **expected: int) -> Iterator[None]:
    """The block makes at least so many requests of each kind that Python is not asked about."""
    before = Counter(house.worker().answered)
    yield
    found = Counter(house.worker().answered) - before
    assert all(found[name] >= count for name, count in expected.items()), found


def writes(house: House, count: int) -> AbstractContextManager[None]:
    return without_python(house, "WRITE", count)


def drop_data(*paths: Path) -> None:
    """Have nobody know what is in files."""
    for path in paths:
        fd = os.open(path, os.O_RDONLY)
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(fd)


def write_often(fd: int, data: bytes, count: int) -> None:
    for number in range(count):
        os.pwrite(fd, data, number * len(data))


def fresh(tree: Tree, name: str, data: bytes = b"") -> Path:
    """Make a file of the upper layer whose place is noted."""
    (tree / name).write_bytes(data)
    os.stat(tree / name)
    return tree / name


def layer_of(tree: Tree) -> Path:
    """The layer that `fill` has filled."""
    info = tree.house.snapshots.stat(tree.house.snapshots.stat(tree.key).parent)
    return tree.house.layer(info.id)


def test_files_of_lower_layers_are_read(house: House, tree: Tree) -> None:
    os.listdir(tree / "sizes")
    os.listdir(tree / "only")
    with answered(house, READ=30 + len(SIZES) - 1):
        for size_bytes in SIZES:
            assert (tree / "sizes" / str(size_bytes)).read_bytes() == content(size_bytes)
        for number in range(30):
            assert (tree / "only" / str(number)).read_bytes() == b"%d" % number
    sparse = bytes(MIB // 2) + b"data" + bytes(MIB // 2 - 4)
    assert (tree / "sparse").read_bytes() == sparse


def test_data_that_is_not_in_memory_is_waited_for_by_nobody_else(house: House, tree: Tree) -> None:
    lower = layer_of(tree) / "sizes"
    os.listdir(tree / "sizes")
    for _ in range(5):
        drop_data(*lower.iterdir(), *(tree / "sizes").iterdir())
        with answered(house, READ=3), ThreadPoolExecutor(8) as pool:
            paths = [tree / "sizes" / str(size_bytes) for size_bytes in SIZES] * 2
            for path, found in zip(paths, pool.map(Path.read_bytes, paths), strict=True):
                assert found == content(int(path.name))


def test_reads_end_where_the_file_does(tree: Tree) -> None:
    path = fresh(tree, "new", b"x" * 5000)
    fd = os.open(path, os.O_RDWR | os.O_DIRECT)
    page = mmap.mmap(-1, 8192)
    try:
        assert os.preadv(fd, [page], 0) == 5000
        assert os.preadv(fd, [page], 4096) == 904
        assert os.preadv(fd, [page], 8192) == 0
        os.ftruncate(fd, 100)
        assert os.preadv(fd, [page], 0) == 100
        os.ftruncate(fd, 6000)
        assert os.preadv(fd, [page], 0) == 6000
        assert page[:6000] == b"x" * 100 + bytes(5900)
    finally:
        os.close(fd)


def test_reader_sees_the_copy_of_a_file_that_is_copied_up(house: House, tree: Tree) -> None:
    os.listdir(tree.path)
    page = mmap.mmap(-1, 4096)
    readers = [os.open(tree / name, os.O_RDONLY | os.O_DIRECT) for name in ("file", "second")]
    try:
        with answered(house, READ=2):
            assert [os.preadv(fd, [page], 0) for fd in readers] == [5, 5]
        with (tree / "second").open("r+b", buffering=0) as writer:
            writer.write(b"LATER")
        for fd in readers:
            assert os.preadv(fd, [page], 0) == 5
            assert page[:5] == b"LATER"
        os.chmod(tree / "only" / "3", 0o600)  # copies it up without a write
        assert (tree / "only" / "3").read_bytes() == b"3"
        (tree / "only" / "3").write_bytes(b"three")
        assert (tree / "only" / "3").read_bytes() == b"three"
    finally:
        for fd in readers:
            os.close(fd)
    assert (layer_of(tree) / "file").read_bytes() == b"lower"


def test_copy_ups_under_readers_that_never_rest(house: House, tree: Tree) -> None:
    """Whatever a reader has seen of a writer's, it sees from then on."""
    os.listdir(tree / "sizes")
    name = str(3 * MIB + 5)
    ended = threading.Event()

    def read(path: Path) -> int:
        fd = os.open(path, os.O_RDONLY)
        seen = count = 0
        try:
            while not ended.is_set() or not count:
                os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
                found = int.from_bytes(os.pread(fd, 8, MIB), "big")
                if found < 1000:
                    assert found >= seen
                    seen = found
                count += 1
        finally:
            os.close(fd)
        return seen

    with ThreadPoolExecutor(3) as pool:
        readers = [pool.submit(read, tree / "sizes" / name) for _ in range(3)]
        try:
            with (tree / "sizes" / name).open("r+b", buffering=0) as writer:
                for number in range(1, 200):
                    os.pwrite(writer.fileno(), number.to_bytes(8, "big"), MIB)
        finally:
            ended.set()
        assert all(it.result(DEADLINE_S) <= 199 for it in readers)
    data = (tree / "sizes" / name).read_bytes()
    assert data[MIB : MIB + 8] == (199).to_bytes(8, "big")
    assert data[:MIB] + data[MIB + 8 :] == content(int(name))[:MIB] + content(int(name))[MIB + 8 :]


def test_removed_and_replaced_files_are_read_and_written_while_open(
    house: House, tree: Tree
) -> None:
    os.listdir(tree / "only")
    fresh(tree, "new", b"new")
    fresh(tree, "other", b"other")
    page = mmap.mmap(-1, 4096)
    held = {
        name: os.open(tree / name, os.O_RDWR | os.O_DIRECT) for name in ("only/1", "new", "other")
    }
    try:
        assert [os.preadv(fd, [page], 0) for fd in held.values()] == [1, 3, 5]
        (tree / "only" / "1").unlink()
        (tree / "new").unlink()
        fresh(tree, "third", b"third!").rename(tree / "other")
        assert (tree / "other").read_bytes() == b"third!"
        for fd, expected in zip(held.values(), (b"1", b"new", b"other"), strict=True):
            assert os.preadv(fd, [page], 0) == len(expected)
            assert page[: len(expected)] == expected
            assert os.fstat(fd).st_nlink == 0
            page[:] = b"w" * 4096
            assert os.pwrite(fd, page, 4096) == 4096
            assert os.fstat(fd).st_size == 8192
        fresh(tree, "new", b"again")
        assert os.preadv(held["new"], [page], 0) == 4096
        assert page[:3] == b"new"
    finally:
        for fd in held.values():
            os.close(fd)
    assert (tree / "new").read_bytes() == b"again"
    assert not [it for it in os.listdir(tree.upper) if it == "only/1"]


def test_written_is_what_was_asked_where_it_was_asked(house: House, tree: Tree) -> None:
    path = fresh(tree, "new")
    with writes(house, 4), path.open("r+b", buffering=0) as file:
        assert file.write(b"0123456789") == 10
        assert os.pwrite(file.fileno(), b"AB", 3) == 2
        assert os.pwrite(file.fileno(), b"end", 100_000) == 3
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        assert os.write(fd, b"more") == 4
        os.close(fd)
    expected = b"012AB56789" + bytes(99_990) + b"endmore"
    assert path.read_bytes() == expected
    assert (tree.upper / "new").read_bytes() == expected
    drop_data(path)
    assert path.read_bytes() == expected
    found = path.stat()
    assert (found.st_size, found.st_mtime_ns) == (
        len(expected),
        (tree.upper / "new").stat().st_mtime_ns,
    )
    assert found.st_blocks == (tree.upper / "new").stat().st_blocks


def test_big_writes_and_those_beside_them_arrive(house: House, tree: Tree) -> None:
    path = fresh(tree, "new")
    data = content(5 * MIB + 7)
    with path.open("r+b", buffering=0) as file:
        for at in range(0, len(data), MIB):
            assert file.write(data[at : at + MIB]) == len(data[at : at + MIB])
        assert os.pwrite(file.fileno(), b"beside", 2 * MIB - 3) == 6
    data = data[: 2 * MIB - 3] + b"beside" + data[2 * MIB + 3 :]
    assert path.read_bytes() == data == (tree.upper / "new").read_bytes()


def test_set_id_bits_go_by_the_rights_of_who_writes(house: House, tree: Tree) -> None:
    path = fresh(tree, "tool", b"x")
    path.chmod(0o4777)
    with path.open("ab", buffering=0) as file:
        file.write(b"by root, who may keep them\n")
        assert stat.S_IMODE(path.stat().st_mode) == 0o4777
        subprocess.run(
            ["setpriv", "--reuid=65534", "--clear-groups", "echo", "x"],
            check=True,
            stdout=file,
            timeout=DEADLINE_S,
        )
    assert stat.S_IMODE(path.stat().st_mode) == 0o777
    capability = bytes.fromhex("0100000200100000000000000000000000000000")
    os.setxattr(path, "security.capability", capability)
    with path.open("ab", buffering=0) as file:
        file.write(b"x")
    assert "security.capability" not in os.listxattr(path)


def test_protected_file_takes_what_is_appended_only(house: House, tree: Tree) -> None:
    path = fresh(tree, "log", b"first")
    with path.open("r+b", buffering=0) as early:
        early.write(b"F")
        subprocess.run(["chattr", "+a", path], check=True, timeout=DEADLINE_S)
        with pytest.raises(PermissionError):
            os.pwrite(early.fileno(), b"X", 0)
        fd = os.open(path, os.O_WRONLY | os.O_APPEND)
        os.write(fd, b"+")
        os.close(fd)
        subprocess.run(["chattr", "-a", path], check=True, timeout=DEADLINE_S)
        assert os.pwrite(early.fileno(), b"G", 0) == 1
    assert path.read_bytes() == b"Girst+"


def test_quota_that_is_set_later_holds_for_the_next_write(house: House, tree: Tree) -> None:
    path = fresh(tree, "new", b"x")
    with path.open("r+b", buffering=0) as file:
        with writes(house, 1):
            file.write(b"y")
        house.snapshots.set_quota(tree.key, size_bytes=MIB)
        with writes(house, 0):
            file.write(b"z")
        with pytest.raises(OSError, match="quota") as refused:
            write_often(file.fileno(), b"q" * (64 * KIB), 64)
        assert refused.value.errno == errno.EDQUOT
        os.ftruncate(file.fileno(), 2)
        house.snapshots.set_quota(tree.key, size_bytes=0)
        with writes(house, 1):
            os.pwrite(file.fileno(), b"x", 0)
    assert path.read_bytes() == b"xq"


def test_nothing_is_written_while_frozen(own_house: House) -> None:
    tree = own_house.active(fill)
    path = fresh(tree, "new", b"old")
    os.listdir(tree / "only")
    done = threading.Event()

    def write() -> None:
        with path.open("r+b", buffering=0) as file:
            file.write(b"NEW")
        done.set()

    with path.open("r+b", buffering=0) as file:
        file.write(b"Old")
    own_house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    before = own_house.worker().answered
    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    assert (tree / "only" / "7").read_bytes() == b"7"
    assert (tree.upper / "new").read_bytes() == b"Old"
    assert not done.is_set()
    assert own_house.worker().answered.get("WRITE", 0) == before.get("WRITE", 0)
    own_house.lane.thaw(tree.id)
    assert done.wait(DEADLINE_S)
    writing.join(DEADLINE_S)
    assert path.read_bytes() == b"NEW"


def test_snapshot_that_holds_still_needs_python_for_no_write(own_house: House) -> None:
    key = own_house.name()
    own_house.snapshots.prepare(key, "", {STILL_LABEL: "yes"})
    tree = Tree(own_house, key)
    path = fresh(tree, "new", b"old")
    with path.open("r+b", buffering=0) as file, ThreadPoolExecutor(1) as pool:
        with writes(own_house, 1):
            file.write(b"O")
        own_house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
        writing = pool.submit(file.write, b"L")
        assert path.stat().st_size == 3
        assert not writing.done()
        assert (tree.upper / "new").read_bytes() == b"Old"
        own_house.lane.thaw(tree.id)
        assert writing.result(DEADLINE_S) == 1
        with writes(own_house, 1):
            file.write(b"D")
    assert path.read_bytes() == (tree.upper / "new").read_bytes() == b"OLD"


def test_what_a_mapping_changed_of_a_file_that_python_never_saw_is_committed(
    house: House, tree: Tree
) -> None:
    os.listdir(tree / "only")
    with (tree / "only" / "5").open("r+b") as file, mmap.mmap(file.fileno(), 1) as mapped:
        mapped[:] = b"M"
        name = house.name()
        house.snapshots.commit(tree.key, name)
        assert (tree.upper / "only" / "5").read_bytes() == b"M"
    assert (house.on(name) / "only" / "5").read_bytes() == b"M"


def test_write_after_a_commit_is_refused(house: House, tree: Tree) -> None:
    path = fresh(tree, "new", b"new")
    with path.open("r+b", buffering=0) as file:
        file.write(b"N")
        house.snapshots.commit(tree.key, house.name())
        with pytest.raises(OSError) as refused:
            os.pwrite(file.fileno(), b"X", 0)
        assert refused.value.errno == errno.EROFS
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 9, 0) == b"New"


def test_usage_is_a_walk_after_writes(house: House, tree: Tree) -> None:
    paths = [fresh(tree, f"file{number}", b"x") for number in range(5)]

    def is_a_walk() -> bool:
        os.stat(tree.path)
        before = measure(tree.upper)
        return house.lane.usage(tree.id) == before == measure(tree.upper)

    eventually(is_a_walk, what="a count")
    files = [path.open("r+b", buffering=0) for path in paths]
    try:
        for turn in range(1, 4):
            with writes(house, len(files) * 4):
                for file in files:
                    for _ in range(4):
                        file.write(bytes(64 * KIB))
            os.sync()
            eventually(is_a_walk, what=f"the usage after turn {turn}")
        paths[0].unlink()
        files[0].write(bytes(64 * KIB))
        eventually(is_a_walk, what="the usage without what is removed")
    finally:
        for file in files:
            file.close()
    eventually(is_a_walk, what="the usage after all")


def test_new_file_needs_no_python(house: House, tree: Tree) -> None:
    fresh(tree, "first")
    assert not (tree / "none").exists()
    os.stat(tree.path)
    with without_python(house, "MKNOD", 20), writes(house, 20):
        for number in range(20):
            (tree / f"new{number}").write_bytes(b"%d" % number)
    for number in range(20):
        assert (tree / f"new{number}").read_bytes() == b"%d" % number
        assert (tree.upper / f"new{number}").read_bytes() == b"%d" % number


def test_descriptors_go_when_the_kernel_forgets(own_house: House) -> None:
    tree = own_house.active(fill)
    os.listdir(tree / "only")
    for number in range(30):
        (tree / "only" / str(number)).read_bytes()
        fresh(tree, f"new{number}", b"new")

    def gone() -> bool:
        drop_dentries()
        return own_house.worker().files == 0 and not own_house.worker().trees

    eventually(gone, what="the end of all descriptors")
    for number in range(30):
        assert (tree / "only" / str(number)).read_bytes() == b"%d" % number
        assert (tree / f"new{number}").read_bytes() == b"new"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", ["preadv2", "writev"], ids=["before it is read", "unsaid"])
def test_read_goes_on_when_the_worker_dies(own_house: House, call: str, tmp_path: Path) -> None:
    tree = own_house.active(fill)
    os.listdir(tree / "only")
    with (
        (tree / "only" / "8").open("rb", buffering=0) as file,
        killing_at(own_house, call, 1, tmp_path / "calls"),
    ):
        assert file.read(9) == b"8"
    assert (tree / "only" / "9").read_bytes() == b"9"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", ["pwrite64", "writev"], ids=["before it is written", "unsaid"])
def test_write_is_there_once_when_the_worker_dies(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    path = fresh(tree, "new", b"0123456789")
    with path.open("ab", buffering=0) as file:
        file.write(b"a")
        with killing_at(own_house, call, 1, tmp_path / "calls"):
            file.write(b"b")
        file.write(b"c")
    assert path.read_bytes() == b"0123456789abc"
    assert (tree.upper / "new").read_bytes() == b"0123456789abc"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", ["openat", "writev"], ids=["before it is made", "unsaid"])
def test_file_is_made_once_when_the_worker_dies(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    fresh(tree, "first")
    assert not (tree / "new").exists()
    os.stat(tree.path)
    # The kernel has all that it needs to know: its first request is the one that makes the file.
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        os.close(os.open(tree / "new", os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o640))
    assert stat.S_IMODE((tree / "new").stat().st_mode) == 0o640
    (tree / "new").write_bytes(b"new")
    assert (tree.upper / "new").read_bytes() == b"new"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_files_in_use_go_on_with_each_new_worker(own_house: House) -> None:
    tree = own_house.active(fill)
    os.listdir(tree / "only")
    upper = fresh(tree, "new", b"new")
    gone = fresh(tree, "gone", b"gone")
    page = mmap.mmap(-1, 4096)
    flags = os.O_RDWR | os.O_DIRECT
    held = {it: os.open(it, flags) for it in (tree / "only" / "1", upper, gone)}
    try:
        expected = {path: path.read_bytes() for path in held}
        gone.unlink()
        for _ in range(3):
            own_house.kill_worker()
            for path, fd in held.items():
                assert os.preadv(fd, [page], 0) == len(expected[path])
                assert page[: len(expected[path])] == expected[path]
        os.pwrite(held[upper], mmap.mmap(-1, 4096), 0)
        assert os.fstat(held[upper]).st_size == 4096
        with answered(own_house, READ=10):
            for _ in range(10):
                assert os.preadv(held[upper], [page], 0) == 4096
    finally:
        for fd in held.values():
            os.close(fd)


MAPS = """
import mmap, sys
held = [open(path, "r+b") for path in sys.argv[1:]]
maps = [mmap.mmap(it.fileno(), 1) for it in held]
for it in maps:
    it[:] = b"M"
print(flush=True)
input()
"""


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_what_a_mapping_changed_in_the_time_of_a_dead_worker_is_committed(own_house: House) -> None:
    tree = own_house.active(fill)
    if own_house.passes_through:  # under a quota what is written comes through the worker there
        own_house.snapshots.set_quota(tree.key, size_bytes=MIB)
    os.listdir(tree / "only")
    paths = [tree / "only" / "5", tree / "only" / "6", fresh(tree, "new", b"u")]
    with subprocess.Popen(
        [sys.executable, "-c", MAPS, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == b"\n"
            own_house.kill_worker()
            own_house.worker()
            own_house.snapshots.commit(tree.key, "committed")
            assert [(tree.upper / it.relative_to(tree.path)).read_bytes() for it in paths] == [
                b"M"
            ] * 3
        finally:
            program.kill()
    committed = own_house.on("committed")
    assert [(committed / it.relative_to(tree.path)).read_bytes() for it in paths] == [b"M"] * 3
