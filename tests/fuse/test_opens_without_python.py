"""Opens, attributes and names that are answered without Python obey the rules of those that are."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.backing import IDLE_KEPT
from snapfs.model import FailedPrecondition
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, bind_mount, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root]

DEADLINE_S = 20.0
MIB = 1 << 20


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower")
    (layer / "merged").mkdir()
    (layer / "merged" / "below").write_bytes(b"below")
    (layer / "only").mkdir()
    for number in range(30):
        (layer / "only" / str(number)).write_bytes(b"%d" % number)


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


@contextmanager
def answered(house: House, **expected: int) -> Iterator[None]:
    """The block makes at least so many requests of each kind that Python is not asked about."""
    before = Counter(house.worker().answered)
    yield
    eventually(
        lambda: all(
            Counter(house.worker().answered)[name] - before[name] >= count
            for name, count in expected.items()
        ),
        what=f"{expected} beyond {before}, at last {house.worker().answered}",
    )


def write_all(fd: int, data: bytes) -> None:
    while data:
        data = data[os.write(fd, data) :]


def read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 100)
    finally:
        os.close(fd)


def test_first_open_of_a_lower_file_is_answered(house: House, tree: Tree) -> None:
    os.listdir(tree / "only")
    with answered(house, OPEN=30, RELEASE=30):
        for number in range(30):
            assert read(tree / "only" / str(number)) == b"%d" % number
    assert house.worker().files == 0


def test_lower_file_beside_upper_ones_is_answered(house: House, tree: Tree) -> None:
    (tree / "merged" / "above").write_bytes(b"above")
    with answered(house, OPEN=2, RELEASE=2):
        assert read(tree / "merged" / "below") == b"below"
        assert read(tree / "merged" / "above") == b"above"


def test_new_file_needs_python_only_to_be_made(house: House, tree: Tree) -> None:
    with answered(house, OPEN=2, RELEASE=3, GETXATTR=1, GETATTR=2):
        (tree / "new").write_bytes(b"first")
        with (tree / "new").open("r+b", buffering=0) as writer:
            writer.write(b"F")
            assert os.fstat(writer.fileno()).st_size == 5
        assert read(tree / "new") == b"First"
        assert (tree / "new").stat().st_blocks == (tree.upper / "new").stat().st_blocks


def test_lower_file_that_is_removed_or_hidden_while_open_stays_readable(
    house: House, tree: Tree
) -> None:
    first, second = (os.open(tree / "only" / str(it), os.O_RDONLY) for it in (1, 2))
    (tree / "only" / "1").unlink()
    (tree / "other").write_bytes(b"other")
    (tree / "other").rename(tree / "only" / "2")
    assert not (tree / "only" / "1").exists()
    assert read(tree / "only" / "2") == b"other"
    assert (os.read(first, 9), os.read(second, 9)) == (b"1", b"2")
    assert os.fstat(first).st_nlink == 0
    os.close(first)
    os.close(second)
    eventually(lambda: house.worker().files == 0, what="the releases")


def test_copy_up_under_a_reader_that_python_never_heard_of(house: House, tree: Tree) -> None:
    os.listdir(tree / "only")
    with answered(house, OPEN=1):
        reader = os.open(tree / "only" / "3", os.O_RDONLY)
    number = os.fstat(reader).st_ino
    with (tree / "only" / "3").open("ab") as writer:
        writer.write(b" more")
    assert read(tree / "only" / "3") == b"3 more"
    assert (tree / "only" / "3").stat().st_ino == number
    assert os.pread(reader, 9, 0) == b"3"
    os.close(reader)
    with answered(house, RELEASE=0):
        assert read(tree / "only" / "3") == b"3 more"


def test_ids_of_files_that_nobody_has_open_are_bounded(house: House) -> None:
    count = IDLE_KEPT + 200

    def many(layer: Path) -> None:
        (layer / "many").mkdir()
        for number in range(count):
            (layer / "many" / str(number)).write_bytes(b"%d" % number)

    tree = house.active(many)
    os.listdir(tree / "many")
    with answered(house, OPEN=count, RELEASE=count):
        for number in range(count):
            assert read(tree / "many" / str(number)) == b"%d" % number
    assert house.worker().backing <= IDLE_KEPT
    for number in (0, count - 1, 100):
        assert read(tree / "many" / str(number)) == b"%d" % number


def test_ids_go_when_the_kernel_forgets(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"new")

    def there() -> bool:
        """Some may be forgotten at any time, of which others on the machine are the cause."""
        os.listdir(tree / "only")
        for number in range(30):
            read(tree / "only" / str(number))
        read(tree / "new")
        return own_house.worker().backing >= 31

    eventually(there, what="an id for each file")

    def gone() -> bool:
        drop_dentries()
        return own_house.worker().backing == 0

    eventually(gone, what="the end of the ids")


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_counts_are_exact_after_a_kill(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"new")
    with answered(own_house, OPEN=5):
        held = [os.open(tree / "file", os.O_RDONLY) for _ in range(3)]
        writers = [os.open(tree / "new", os.O_RDWR) for _ in range(2)]
    own_house.kill_worker()
    assert own_house.worker().files == 5
    for fd in (*held, writers[0]):
        os.close(fd)
    eventually(lambda: own_house.worker().files == 1, what="four releases")
    with pytest.raises(FailedPrecondition, match=r"still open for writing|close"):
        own_house.snapshots.commit(tree.key, "refused")
    os.close(writers[1])
    own_house.snapshots.commit(tree.key, "committed")
    assert read(own_house.on("committed") / "new") == b"new"


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_counts_are_exact_after_kills_in_the_midst_of_opens(own_house: House) -> None:
    """What the kernel was told of is counted, and nothing else; requests that the dead worker had
    read are of a program that was killed."""
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"new")
    script = (
        "import os, sys\n"
        "while True:\n"
        "    for path in sys.argv[1:]:\n"
        "        os.close(os.open(path, os.O_RDONLY))\n"
        "    os.close(os.open(sys.argv[1], os.O_RDWR))\n"
    )
    kept = os.open(tree / "new", os.O_RDWR)
    paths = [tree / "new", tree / "file", tree / "only" / "1"]
    for _ in range(3):
        with subprocess.Popen([sys.executable, "-c", script, *paths]) as program:
            threading.Event().wait(0.5)
            own_house.kill_worker()
            program.kill()
        own_house.worker()
    os.pwrite(kept, b"kept", 0)
    assert own_house.worker().files <= 1 + 3  # what was answered by nobody may have been counted
    assert own_house.worker().files >= 1
    os.close(kept)


def test_commit_waits_for_no_writer_and_is_refused_for_one(house: House, tree: Tree) -> None:
    (tree / "new").write_bytes(b"new")
    with answered(house, OPEN=1):
        writer = os.open(tree / "new", os.O_WRONLY)
    with pytest.raises(FailedPrecondition, match=r"/new; close"):
        house.snapshots.commit(tree.key, house.name())
    os.write(writer, b"NEW")
    os.close(writer)
    name = house.name()
    house.snapshots.commit(tree.key, name)
    assert read(house.on(name) / "new") == b"NEW"


def test_nothing_is_opened_for_writing_or_changed_while_frozen(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "new").write_bytes(b"new")
    done = threading.Event()

    def change() -> None:
        os.chmod(tree / "new", 0o600)
        with (tree / "new").open("r+b") as file:
            file.write(b"NEW")
        done.set()

    own_house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    before = own_house.worker().answered
    changing = threading.Thread(target=change, daemon=True)
    changing.start()
    assert read(tree / "new") == b"new"
    assert (tree / "new").stat().st_mode == (tree.upper / "new").stat().st_mode
    assert not done.is_set()
    assert own_house.worker().answered.get("SETATTR", 0) == before.get("SETATTR", 0)
    own_house.lane.thaw(tree.id)
    assert done.wait(DEADLINE_S)
    assert read(tree / "new") == b"NEW"


def test_usage_is_a_walk_while_writers_come_and_go(house: House, tree: Tree) -> None:
    (tree / "a").write_bytes(b"x" * MIB)
    (tree / "b").write_bytes(b"x")

    def is_a_walk() -> bool:
        before = measure(tree.upper)
        return house.lane.usage(tree.id) == before == measure(tree.upper)

    eventually(is_a_walk, what="a count")
    with answered(house, OPEN=3), ExitStack() as files:
        first = files.enter_context((tree / "a").open("r+b", buffering=0))
        second = files.enter_context((tree / "b").open("r+b", buffering=0))
        third = files.enter_context((tree / "b").open("ab", buffering=0))
        first.write(b"y" * (2 * MIB))
        eventually(is_a_walk, what="the usage of a file that grew")
        second.write(b"y" * MIB)
        third.write(b"y" * MIB)
        os.chmod(tree / "a", 0o600)
        eventually(is_a_walk, what="the usage of both")
    (tree / "a").unlink()
    eventually(is_a_walk, what="the usage after all")


@pytest.mark.logs("quota.passed_by_open_files")
def test_quota_that_is_set_while_a_file_is_open_holds_for_who_opens_it_next(
    house: House, tree: Tree
) -> None:
    (tree / "new").write_bytes(b"x")
    with answered(house, OPEN=1):
        early = os.open(tree / "new", os.O_RDWR)
    house.snapshots.set_quota(tree.key, size_bytes=MIB)
    late = os.open(tree / "new", os.O_RDWR)
    with pytest.raises(OSError, match="quota") as refused:
        write_all(late, b"x" * (4 * MIB))
    assert refused.value.errno == errno.EDQUOT
    assert os.pread(early, 1, 0) == b"x"
    os.close(late)
    os.close(early)
    house.snapshots.set_quota(tree.key, size_bytes=0)
    with answered(house, OPEN=1):
        assert read(tree / "new")[:1] == b"x"


def test_set_id_file_is_written_through_us_and_loses_its_bits(house: House, tree: Tree) -> None:
    (tree / "tool").write_bytes(b"x")
    os.chmod(tree / "tool", 0o4777)
    script = "import os, sys; os.setuid(1000); open(sys.argv[1], 'ab').write(b'y')"
    with bind_mount(tree.path, tree.house.root.parent / "seen") as seen:
        os.chmod(seen, 0o755)
        subprocess.run([sys.executable, "-c", script, "tool"], cwd=seen, check=True)
    assert stat.S_IMODE((tree / "tool").stat().st_mode) == 0o777
    with (tree / "tool").open("r+b", buffering=0) as writer:
        os.fchmod(writer.fileno(), 0o4755)
        writer.write(b"z")
    assert stat.S_IMODE((tree / "tool").stat().st_mode) == 0o4755  # root may


def test_protected_file_is_refused_to_writers(house: House, tree: Tree) -> None:
    (tree / "log").write_bytes(b"x")
    subprocess.run(["chattr", "+a", tree / "log"], check=True, timeout=DEADLINE_S)
    with pytest.raises(PermissionError):
        os.open(tree / "log", os.O_RDWR)
    with pytest.raises(PermissionError):
        os.chmod(tree / "log", 0o600)
    os.close(os.open(tree / "log", os.O_WRONLY | os.O_APPEND))
    subprocess.run(["chattr", "-a", tree / "log"], check=True, timeout=DEADLINE_S)
    os.close(os.open(tree / "log", os.O_RDWR))


def test_owner_mode_and_times_are_as_they_were_set(house: House, tree: Tree) -> None:
    file = tree / "merged" / "new"
    file.write_bytes(b"x")
    with answered(house, SETATTR=4):
        os.chown(file, 1000, 2000)
        os.chmod(file, 0o640)
        os.utime(file, ns=(-1_000_000_001, 5_000_000_007))
        os.utime(file, ns=(3, 4))
    found = file.stat()
    assert (found.st_uid, found.st_gid, stat.S_IMODE(found.st_mode)) == (1000, 2000, 0o640)
    assert (found.st_atime_ns, found.st_mtime_ns) == (3, 4)
    os.utime(file)
    assert file.stat().st_mtime_ns > 10**18
    os.chown(file, -1, 3000)
    real = (tree.upper / "merged" / "new").stat()
    assert (real.st_uid, real.st_gid) == (1000, 3000)
    assert file.stat().st_ctime_ns == real.st_ctime_ns


def test_truncation_by_a_descriptor_changes_the_time_and_by_a_name_too(tree: Tree) -> None:
    (tree / "new").write_bytes(b"12345")
    os.utime(tree / "new", ns=(1, 1))
    with (tree / "new").open("r+b", buffering=0) as writer:
        os.ftruncate(writer.fileno(), 5)
        assert os.fstat(writer.fileno()).st_mtime_ns > 1
        os.ftruncate(writer.fileno(), 2)
    assert read(tree / "new") == b"12"


@pytest.mark.parametrize("where", ["", "merged", "fresh"])
def test_absent_names_of_upper_directories_are_answered_until_they_exist(
    house: House, tree: Tree, where: str
) -> None:
    here = tree / where
    here.mkdir(exist_ok=True)
    (here / "first").touch()
    (here / "missing").exists()
    with answered(house, LOOKUP=20):
        for number in range(20):
            assert not (here / f"absent{number}").exists()
    for number in range(20):
        (here / f"absent{number}").write_bytes(b"%d" % number)
        assert read(here / f"absent{number}") == b"%d" % number
        (here / f"absent{number}").unlink()
        assert not (here / f"absent{number}").exists()


def test_names_below_that_are_hidden_are_absent_and_others_are_not(tree: Tree) -> None:
    (tree / "merged" / "new").touch()
    (tree / "merged" / "below").unlink()
    drop_dentries()
    assert not (tree / "merged" / "below").exists()
    assert not (tree / "merged" / "none").exists()
    (tree / "only").rename(tree / "moved")
    assert read(tree / "moved" / "5") == b"5"
    assert not (tree / "only").exists()
    (tree / "only").mkdir()
    drop_dentries()
    assert not (tree / "only" / "5").exists()
    assert read(tree / "moved" / "5") == b"5"


def test_directory_that_moved_answers_for_its_own_names(tree: Tree) -> None:
    for name in ("one", "two"):
        (tree / name).mkdir()
        (tree / name / name).write_bytes(name.encode())
        assert not (tree / name / "absent").exists()
    swap = tree / "swap"
    (tree / "one").rename(swap)
    (tree / "two").rename(tree / "one")
    swap.rename(tree / "two")
    drop_dentries()
    assert read(tree / "one" / "two") == b"two"
    assert not (tree / "one" / "one").exists()
    assert read(tree / "two" / "one") == b"one"
    os.chmod(tree / "two" / "one", 0o600)
    assert stat.S_IMODE((tree.upper / "two" / "one").stat().st_mode) == 0o600


def test_files_that_change_places_are_told_apart(tree: Tree) -> None:
    (tree / "a").write_bytes(b"aa")
    (tree / "b").write_bytes(b"b")
    with (tree / "a").open("rb") as a, (tree / "b").open("rb") as b:
        numbers = os.fstat(a.fileno()).st_ino, os.fstat(b.fileno()).st_ino
        (tree / "a").rename(tree / "c")
        (tree / "b").rename(tree / "a")
        (tree / "c").rename(tree / "b")
        assert (os.fstat(a.fileno()).st_size, os.fstat(b.fileno()).st_size) == (2, 1)
        os.fchmod(a.fileno(), 0o600)
    assert ((tree / "b").stat().st_ino, (tree / "a").stat().st_ino) == numbers
    assert stat.S_IMODE((tree / "b").stat().st_mode) == 0o600
    assert stat.S_IMODE((tree / "a").stat().st_mode) == 0o644


def test_hard_links_count_as_they_come_and_go(tree: Tree) -> None:
    (tree / "a").write_bytes(b"x")
    steps: list[tuple[Callable[[], object], int]] = [
        (lambda: os.link(tree / "a", tree / "b"), 2),
        (lambda: os.link(tree / "b", tree / "c"), 3),
        (lambda: (tree / "a").unlink(), 2),
        (lambda: (tree / "b").unlink(), 1),
    ]
    with (tree / "a").open("rb") as file:
        for step, links in steps:
            step()
            assert os.fstat(file.fileno()).st_nlink == links
        assert read(tree / "c") == b"x"
        (tree / "c").unlink()
        assert os.fstat(file.fileno()).st_nlink == 0
        assert file.read() == b"x"
