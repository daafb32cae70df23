"""Small lower files are copied up without Python, as Python would have it, and once.

The workers leave it to the kernel when a copy is written to the disk; those that wait for it are in
test_copies_in_order.py. Changes of attributes copy the data, too.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.overlay.census import differences, of_mount
from tests.support.past_python import assert_usage_is_a_walk, begun, listed, without_python
from tests.support.unsynced_worker import workers_leave_syncing

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = [Mode.PASSTHROUGH, Mode.NO_OPEN]
IN_NO_OPEN = pytest.mark.modes(Mode.NO_OPEN)
OLD_NS = 1_000_000_000_123_456_789
FILES = 30
ACL = bytes.fromhex(
    "02000000 01000600ffffffff 02000700e8030000 04000400ffffffff 10000700ffffffff 20000000ffffffff"
)


def fill(layer: Path) -> None:
    for name in ("d", "e"):
        (layer / name).mkdir()
    for number in range(FILES):
        path = layer / "d" / f"file{number}"
        path.write_bytes(bytes([number]) * number * 100)
        path.chmod(0o600 | number)
        os.chown(path, number, number + 1)
        os.setxattr(path, "user.a", b"%d" % number)
        os.utime(path, ns=(OLD_NS, OLD_NS + number))
    os.setxattr(layer / "d/file1", "system.posix_acl_access", ACL)
    for number in range(5):
        (layer / "d" / f"link{number}").symlink_to(f"file{number}")
        os.chown(layer / "d" / f"link{number}", 5, number, follow_symlinks=False)
        os.utime(layer / "d" / f"link{number}", ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    (layer / "e" / "first").write_bytes(b"first")
    (layer / "e" / "many").write_bytes(b"many")
    os.link(layer / "e" / "many", layer / "e" / "names")
    (layer / "e" / "set-id").write_bytes(b"set-id")
    (layer / "e" / "set-id").chmod(0o4755)
    (layer / "e" / "large").write_bytes(b"x" * 200_000)
    with (layer / "e" / "holes").open("wb") as file:
        file.truncate(100_000)
    for path in (layer / "d", layer / "e", layer):
        os.utime(path, ns=(OLD_NS, OLD_NS))


@pytest.fixture(scope="module", autouse=True)
def _unsynced() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch, workers_leave_syncing(patch):
        yield


@pytest.fixture(scope="module")
def metacopy() -> bool:
    return False


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def changes(house: House, count: int) -> AbstractContextManager[None]:
    return without_python(house, "SETATTR", count)


def test_copies_are_like_their_files_but_for_the_change(house: House, tree: Tree) -> None:
    house.lane.usage(tree.id)
    census = of_mount(house.on(house.snapshots.stat(tree.key).parent).path)
    before = begun(tree / "d", "file0")
    with changes(house, FILES - 1):
        for number in range(1, FILES):
            os.chown(tree / f"d/file{number}", 1000, 1001)
    for number in range(FILES):
        path = tree / f"d/file{number}"
        found = path.stat()
        if number:
            assert (found.st_uid, found.st_gid) == (1000, 1001)
            assert os.getxattr(tree.upper / f"d/file{number}", "trusted.overlay.snapfs.ino")
        assert found.st_ino == before[path.name].st_ino
        assert found.st_mtime_ns == OLD_NS + number
        os.chown(path, number, number + 1)
    assert not differences(census, of_mount(tree.path))
    assert (tree / "d").stat().st_mtime_ns == OLD_NS
    assert os.listdir(tree.upper.parent / "work/snapfs") == []
    assert sorted(os.listdir(tree.upper / "d")) == sorted(f"file{it}" for it in range(FILES))
    drop_dentries()
    assert not differences(census, of_mount(tree.path))
    assert {name: it.st_ino for name, it in listed(tree / "d").items()} == {
        name: it.st_ino for name, it in before.items()
    }
    assert_usage_is_a_walk(house, tree)


def test_links_are_copied_as_well(house: House, tree: Tree) -> None:
    before = begun(tree / "d", "file0")
    with changes(house, 5):
        for number in range(5):
            os.chown(tree / f"d/link{number}", 1000, 1001, follow_symlinks=False)
    for _ in range(2):
        for number in range(5):
            path = tree / f"d/link{number}"
            found = path.lstat()
            assert (found.st_uid, found.st_gid, found.st_mtime_ns) == (1000, 1001, OLD_NS)
            assert found.st_ino == before[path.name].st_ino
            assert os.readlink(path) == os.readlink(tree.upper / f"d/link{number}")
            assert os.readlink(path) == f"file{number}"
        assert (tree / "d/file1").stat().st_uid == 1
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


@pytest.mark.modes(Mode.PASSTHROUGH)
def test_first_open_for_writing_needs_no_python(house: House, tree: Tree) -> None:
    directory = tree / "d"
    begun(directory, "file0")
    with without_python(house, "OPEN", FILES - 1):
        for number in range(1, FILES):
            with (directory / f"file{number}").open("ab") as file:
                file.write(b"x")
    for _ in range(2):
        for number in range(1, FILES):
            content = bytes([number]) * number * 100 + b"x"
            assert (directory / f"file{number}").read_bytes() == content
        drop_dentries()
    eventually(lambda: house.worker().files == 0, what="the releases")
    assert_usage_is_a_walk(house, tree)


def test_copies_take_every_change_of_names_and_content(house: House, tree: Tree) -> None:
    directory = tree / "d"
    begun(directory, "file0")
    with changes(house, 5):
        for number in range(1, 6):
            (directory / f"file{number}").chmod(0o640)
    (directory / "file1").unlink()
    (directory / "file2").rename(directory / "moved")
    os.link(directory / "file3", directory / "linked")
    (directory / "file4").write_bytes(b"new")
    os.truncate(directory / "file5", 10)
    assert not (directory / "file1").exists()
    assert not (directory / "file2").exists()
    for _ in range(2):
        assert (directory / "moved").read_bytes() == b"\2" * 200
        assert (directory / "linked").read_bytes() == b"\3" * 300
        assert (directory / "linked").stat().st_nlink == 2
        assert (directory / "file4").read_bytes() == b"new"
        assert (directory / "file5").read_bytes() == b"\5" * 10
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


@IN_NO_OPEN
def test_first_write_to_a_file_needs_no_python(house: House, tree: Tree) -> None:
    directory = tree / "d"
    begun(directory, "file0")
    contents = {}
    with without_python(house, "WRITE", FILES - 1):
        for number in range(1, FILES):
            path = directory / f"file{number}"
            with path.open("rb+", buffering=0) as file:
                was = file.read(50) if number % 2 else b""  # a reader of the lower file
                assert was == bytes([number]) * len(was)
                file.seek(0, os.SEEK_END)
                file.write(b"x")
                contents[path] = bytes([number]) * number * 100 + b"x"
                assert os.pread(file.fileno(), 1 << 20, 0) == contents[path]
    for _ in range(2):
        assert {path: path.read_bytes() for path in contents} == contents
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


@pytest.mark.parametrize("name", ["many", "set-id", "large", "holes"])
def test_what_has_rules_is_left_to_python(house: House, tree: Tree, name: str) -> None:
    path = tree / "e" / name
    before = begun(tree / "e", "first")[name]
    with changes(house, 0):
        os.chown(path, 1000, 1000)
    found = path.stat()
    assert (found.st_uid, found.st_size, found.st_ino) == (1000, before.st_size, before.st_ino)
    assert not found.st_mode & stat.S_ISUID
    assert found.st_nlink == before.st_nlink
    if name == "holes":
        assert (tree.upper / "e/holes").stat().st_blocks * 512 < 100_000
    if name == "many":
        assert (tree / "e" / "names").stat().st_uid == 1000


def test_protected_file_stays_as_it_is(house: House) -> None:
    def protect(layer: Path) -> None:
        fill(layer)
        os.setxattr(layer / "d/file7", "trusted.overlay.protattr", b"i")
        os.setxattr(layer, "trusted.overlay.snapfs.protected", b"y")

    tree = house.active(protect)
    begun(tree / "d", "file0")
    with changes(house, 0), pytest.raises(OSError, match="not permitted") as caught:
        os.chown(tree / "d/file7", 1000, 1000)
    assert caught.value.errno == errno.EPERM
    assert (tree / "d/file7").stat().st_uid == 7


def test_reader_of_before_goes_on(house: House, tree: Tree) -> None:
    directory = tree / "d"
    begun(directory, "file0")
    with (directory / "file9").open("rb", buffering=0) as reader:
        assert reader.read(10) == b"\x09" * 10
        os.chown(directory / "file9", 1000, 1000)
        assert os.fstat(reader.fileno()).st_uid == 1000
        assert reader.read(10) == b"\x09" * 10
        with (directory / "file9").open("ab") as writer:
            writer.write(b"end")
    assert (directory / "file9").read_bytes() == b"\x09" * 900 + b"end"


def test_frozen_tree_takes_no_copy(house: House, tree: Tree) -> None:
    begun(tree / "d", "file0")
    house.lane.freeze(tree.id, timeout_s=5)
    child = os.fork()
    if not child:
        os.chown(tree / "d/file5", 1000, 1000)
        os._exit(0)
    try:
        wait = Path(f"/proc/{child}/wchan")
        eventually(lambda: wait.read_text() == "request_wait_answer", what="the request")
        assert not (tree.upper / "d/file5").exists()
    finally:
        house.lane.thaw(tree.id)
    assert os.waitpid(child, 0)[1] == 0
    assert (tree.upper / "d/file5").stat().st_uid == 1000


STEPS = [
    *("openat", "pwrite64", "fchown", "fsetxattr"),
    *("utimensat", "renameat2", "fchownat", "writev"),
]


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", STEPS)
def test_copy_is_whole_or_not_there_when_the_worker_dies(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    known = begun(tree / "d", "file0")
    before = known["file9"]
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        os.chown(tree / "d/file9", 1000, 1001)
    for _ in range(2):
        found = (tree / "d/file9").stat()
        assert (found.st_uid, found.st_gid, found.st_ino) == (1000, 1001, before.st_ino)
        assert (found.st_mode, found.st_mtime_ns) == (before.st_mode, before.st_mtime_ns)
        assert (tree / "d/file9").read_bytes() == b"\x09" * 900
        assert sorted(os.listdir(tree / "d")) == sorted(known)
        drop_dentries()
    assert os.listdir(tree.upper.parent / "work/snapfs") == []
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_copies_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = own_house.active(fill)
    before = begun(tree / "d", "file0")
    for number in range(1, FILES):
        os.chown(tree / f"d/file{number}", 1000, 1000)
    own_house.kill_worker()
    for number in range(1, FILES):
        found = (tree / f"d/file{number}").stat()
        assert (found.st_uid, found.st_ino) == (1000, before[f"file{number}"].st_ino)
        assert (tree / f"d/file{number}").read_bytes() == bytes([number]) * number * 100
    assert_usage_is_a_walk(own_house, tree)
