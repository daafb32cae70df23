"""Names of lower files that are removed without Python go as Python has them go, and go once.

So do directories that are merged, once nothing is shown in them.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import stat
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.quota import INODES_LABEL
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.overlay.kernel import overlay
from tests.support.past_python import (
    assert_usage_is_a_walk,
    end_of_opens,
    kept,
    listed,
    without_python,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
FILES = 20
DEADLINE_S = 20.0
OLD_NS = 1_000_000_000_123_456_789
CANNOT_BE = {
    errno.ENOENT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ENOTEMPTY,
}


def fill(layer: Path) -> None:
    (layer / "first").write_text("first")
    for above in ("d", "e"):
        (layer / above).mkdir()
        for number in range(FILES):
            (layer / above / f"{number}").write_text(f"{above} {number}")
            (layer / above / f"link{number}").symlink_to(f"{number}")
    (layer / "rules").mkdir()
    for name in ("set-id", "open", "first", "immutable"):
        (layer / "rules" / name).write_text(name)
    (layer / "rules" / "set-id").chmod(0o4755)
    os.link(layer / "rules" / "first", layer / "rules" / "second")
    os.mkfifo(layer / "rules" / "fifo")
    for path in (layer / "d", layer / "e"):
        os.utime(path, ns=(OLD_NS, OLD_NS))


@pytest.fixture
def tree(house: House) -> Tree:
    return begun(house.active(fill))


def begun(tree: Tree) -> Tree:
    """The first whiteout is Python's."""
    assert tree.path.stat()
    (tree / "first").unlink()
    return tree


def removes(house: House, count: int, operation: str = "UNLINK") -> AbstractContextManager[None]:
    return without_python(house, operation, count)


def whiteouts(directory: Path) -> list[str]:
    """Names of the whiteouts in an upper directory, which are links to one."""
    found = {it.name: it.stat(follow_symlinks=False) for it in os.scandir(directory)}
    assert len({it.st_ino for it in found.values()}) <= 1
    return sorted(
        name
        for name, it in found.items()
        if stat.S_ISCHR(it.st_mode) and not it.st_rdev and it.st_nlink > 1
    )


def test_files_and_links_are_gone_and_leave_whiteouts(house: House, tree: Tree) -> None:
    directory = tree / "d"
    before = listed(directory)
    with removes(house, 20):
        for number in range(10):
            (directory / f"{number}").unlink()
            (directory / f"link{number}").unlink()
    gone = sorted(f"{kind}{number}" for kind in ("", "link") for number in range(10))
    left = {name: it.st_ino for name, it in before.items() if name not in gone}
    assert whiteouts(tree.upper / "d") == gone
    for _ in range(2):
        assert {name: it.st_ino for name, it in listed(directory).items()} == left
        for name in gone:
            assert not (directory / name).exists()
            with pytest.raises(FileNotFoundError):
                (directory / name).unlink()
        drop_dentries()
    assert directory.stat().st_mtime_ns > OLD_NS
    assert_usage_is_a_walk(house, tree)
    (directory / "0").write_text("anew")
    (directory / "link0").mkdir()
    assert (directory / "0").read_text() == "anew"
    assert_usage_is_a_walk(house, tree)


def test_files_that_have_nodes_go_too(house: House, tree: Tree) -> None:
    directory = tree / "d"
    (directory / "new").touch()
    listed(directory)  # of a merged directory, so each has a node
    with removes(house, 20):
        for number in range(10):
            (directory / f"{number}").unlink()
            (directory / f"link{number}").unlink()
    for _ in range(2):
        assert len(listed(directory)) == 21
        assert not (directory / "3").exists()
        drop_dentries()
    assert_usage_is_a_walk(house, tree)


@pytest.mark.parametrize("is_merged", [False, True])
def test_file_that_is_held_lives_on(house: House, tree: Tree, is_merged: bool) -> None:
    directory = tree / "d"
    if is_merged:
        (directory / "new").touch()
    number = listed(directory)["3"].st_ino
    held = os.open(directory / "3", os.O_PATH)
    with removes(house, 1):
        (directory / "3").unlink()
    path = Path(f"/proc/self/fd/{held}")
    found = os.fstat(held)
    assert (found.st_nlink, found.st_ino, found.st_size) == (0, number, 3)
    assert path.read_text() == "d 3"
    (directory / "3").write_text("another")
    assert path.read_text() == "d 3"
    assert (directory / "3").stat().st_ino != number
    path.chmod(0o600)
    assert stat.S_IMODE(os.fstat(held).st_mode) == 0o600
    with path.open("a") as file:
        file.write("!")
    assert path.read_text() == "d 3!"
    assert (directory / "3").read_text() == "another"
    os.close(held)
    end_of_opens(house)
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_file_that_is_open_lives_on(house: House, tree: Tree) -> None:
    directory = tree / "d"
    listed(directory)
    for name in ("4", "5"):
        with (directory / name).open("rb", buffering=0) as file:
            assert file.read(1) == b"d"
            (directory / name).unlink()
            assert file.read() == f" {name}".encode()
            assert os.fstat(file.fileno()).st_nlink == 0
    assert sorted(whiteouts(tree.upper / "d")) == ["4", "5"]
    drop_dentries()
    assert "4" not in os.listdir(directory)
    assert_usage_is_a_walk(house, tree)


def test_what_has_rules_is_left_to_them(house: House, tree: Tree) -> None:
    directory = tree / "rules"
    listed(directory)
    with removes(house, 1 if house.mode is Mode.NO_OPEN else 0):
        with (directory / "open").open("r") as file:
            (directory / "open").unlink()
            assert file.read() == "open"
        (directory / "first").unlink()
        assert (directory / "second").stat().st_nlink == 1
        (directory / "second").unlink()
        (directory / "fifo").unlink()
        with pytest.raises(IsADirectoryError):
            (tree / "e").unlink()
    with removes(house, 1):
        (directory / "set-id").unlink()
    assert os.listdir(directory) == ["immutable"]
    assert_usage_is_a_walk(house, tree)


def test_protected_files_and_directories_keep_what_they_have(house: House) -> None:
    def protect(layer: Path) -> None:
        fill(layer)
        os.setxattr(layer / "d/7", "trusted.overlay.protattr", b"i")
        os.setxattr(layer / "e", "trusted.overlay.protattr", b"a")
        os.setxattr(layer, "trusted.overlay.snapfs.protected", b"y")

    tree = begun(house.active(protect))
    listed(tree / "d")
    listed(tree / "e")
    with removes(house, 1):
        for path in (tree / "d/7", tree / "e/7"):
            with pytest.raises(PermissionError):
                path.unlink()
        (tree / "d/8").unlink()
    assert sorted(os.listdir(tree.upper)) == ["d", "first"]
    assert (tree / "d/7").read_text() == "d 7"
    assert (tree / "e/7").read_text() == "e 7"


def test_directory_goes_with_the_whiteouts_in_it(house: House, tree: Tree) -> None:
    for above in ("d", "e"):
        for name in listed(tree / above):
            (tree / above / name).unlink()
    held = os.open(tree / "e", os.O_RDONLY | os.O_DIRECTORY)
    with removes(house, 2, "RMDIR"):
        (tree / "d").rmdir()
        (tree / "e").rmdir()
    assert (os.fstat(held).st_nlink, os.listdir(held)) == (0, [])
    with pytest.raises(FileNotFoundError):
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=held)
    for _ in range(2):
        assert sorted(os.listdir(tree.path)) == ["rules"]
        assert not (tree / "d").exists()
        drop_dentries()
    assert_usage_is_a_walk(house, tree)
    (tree / "d").mkdir()
    assert os.listdir(tree / "d") == []
    (tree / "d" / "3").touch()
    os.close(held)
    end_of_opens(house)
    eventually(lambda: not kept(tree), what="the end of what was kept")
    drop_dentries()
    assert os.listdir(tree / "d") == ["3"]
    assert_usage_is_a_walk(house, tree)


def test_directory_that_shows_something_stays(house: House, tree: Tree) -> None:
    names = sorted(listed(tree / "d"))
    for name in names[1:]:
        (tree / "d" / name).unlink()
    with removes(house, 0, "RMDIR"):
        with pytest.raises(OSError) as refused:
            (tree / "d").rmdir()
        assert refused.value.errno == errno.ENOTEMPTY
        (tree / "d" / names[0]).unlink()
        (tree / "d" / names[1]).touch()
        with pytest.raises(OSError) as refused:
            (tree / "d").rmdir()
        assert refused.value.errno == errno.ENOTEMPTY
    (tree / "d" / names[1]).unlink()
    (tree / "d").rmdir()
    assert not (tree / "d").exists()
    assert_usage_is_a_walk(house, tree)


def test_whole_tree_goes_and_the_kernel_sees_none_of_it(house: House, tmp_path: Path) -> None:
    def many(layer: Path) -> None:
        for number in range(100):
            path = layer / f"{number % 3}" / f"{number % 7}" / f"{number % 5}"
            path.mkdir(parents=True, exist_ok=True)
            (path / f"{number}").write_text("x" * number)

    parent = house.base_layers(many)
    tree = house.on(parent)
    assert not (tree / "absent").exists()
    directories = {it for above in ("0", "1") for it, _, _ in os.walk(tree / above)}
    (tree / "2/2/2/2").unlink()  # the first whiteout is Python's
    with removes(house, len(directories), "RMDIR"):
        for name in ("0", "1"):
            subprocess.run(["rm", "-rf", tree / name], check=True, timeout=DEADLINE_S)
    assert os.listdir(tree.path) == ["2"]
    assert_usage_is_a_walk(house, tree)
    lower = house.layer(house.snapshots.stat(parent).id)
    with overlay(tmp_path / "kernel", [tree.upper, lower]) as mounted:
        assert os.listdir(mounted) == ["2"]
    eventually(lambda: not kept(tree), what="the end of what was kept")


def test_quota_sees_what_whiteouts_take(house: House) -> None:
    key = house.name()
    house.snapshots.prepare(key, house.base_layers(fill), {INODES_LABEL: "6"})
    tree = begun(Tree(house, key))
    listed(tree / "d")
    with removes(house, 0):
        for number in range(FILES):
            (tree / f"d/{number}").unlink()


def test_freeze_holds_removals(house: House, tree: Tree) -> None:
    listed(tree / "d")
    house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    try:
        remover = subprocess.Popen(["rm", "-f", tree / "d" / "3"])
        with pytest.raises(subprocess.TimeoutExpired):
            remover.wait(0.3)
        assert not (tree.upper / "d").exists()
    finally:
        house.lane.thaw(tree.id)
    assert remover.wait(DEADLINE_S) == 0
    assert whiteouts(tree.upper / "d") == ["3"]


@pytest.mark.parametrize("seed", range(3))
def test_tree_is_as_a_plain_one_whatever_is_made_and_removed(
    house: House, tree: Tree, tmp_path: Path, seed: int
) -> None:
    chance = random.Random(seed)
    plain = tmp_path / "plain"
    plain.mkdir()
    fill(plain)
    (plain / "first").unlink()
    names = [f"{above}/{number}" for above in ("d", "e", "d/x") for number in range(8)]
    names += ["d", "e", "d/x"]
    for turn in range(600):
        state = chance.getstate()
        outcomes = []
        for top in (tree.path, plain):
            chance.setstate(state)
            outcomes.append(change(chance, top, names))
        assert outcomes[0] == outcomes[1]
        if turn % 60 == 0:
            assert shown(tree.path) == shown(plain)
            assert_usage_is_a_walk(house, tree)
        if turn % 150 == 50:
            drop_dentries()
    assert shown(tree.path) == shown(plain)
    assert_usage_is_a_walk(house, tree)


def change(chance: random.Random, top: Path, names: list[str]) -> int:
    """Do something to a name; returns the errno of what cannot be done."""
    path, other = top / chance.choice(names), top / chance.choice(names)
    try:
        match chance.randrange(12):
            case 0 | 1:
                with path.open("ab") as file:
                    file.write(b"x" * chance.randrange(20_000))
            case 2 | 3 | 4 | 5:
                path.unlink()
            case 6:
                path.rename(other)
            case 7:
                path.chmod(0o700)
            case 8:
                for entry in sorted(path.iterdir()):
                    entry.unlink()
            case 9:
                path.rmdir()
            case 10:
                path.mkdir()
            case _:
                path.symlink_to("x" * chance.randrange(1, 100))
    except OSError as error:
        if error.errno not in CANNOT_BE | {errno.ELOOP, errno.EINVAL}:
            raise
        return error.errno or 0
    return 0


def shown(top: Path) -> dict[str, tuple[int, int]]:
    """Path of everything in a tree, with its mode and what it holds."""
    found = {}
    for above, directories, files in os.walk(top):
        for name in directories + files:
            path = Path(above, name)
            real = path.lstat()
            size = 0 if stat.S_ISDIR(real.st_mode) else real.st_size
            found[str(path.relative_to(top))] = real.st_mode, size
    return found


UNLINK_STEPS = {"before it is gone": "linkat", "unsaid": "writev"}
RMDIR_STEPS = {
    "before there is a whiteout": "linkat",
    "before it is gone": "renameat2",
    "before it is kept": "renameat",
    "unsaid": "writev",
    "half cleared": "unlinkat",
}


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", UNLINK_STEPS.values(), ids=UNLINK_STEPS)
def test_file_is_removed_once_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = begun(own_house.active(fill))
    directory = tree / "d"
    listed(directory)
    (directory / "4").unlink()
    os.stat(directory)
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        (directory / "5").unlink()
    for _ in range(2):
        assert len(os.listdir(directory)) == 2 * FILES - 2
        assert not (directory / "5").exists()
        drop_dentries()
    assert whiteouts(tree.upper / "d") == ["4", "5"]
    (directory / "5").write_text("anew")
    assert (directory / "5").read_text() == "anew"
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", RMDIR_STEPS.values(), ids=RMDIR_STEPS)
def test_directory_is_removed_once_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = begun(own_house.active(fill))
    directory = tree / "d"
    for name in listed(directory):
        (directory / name).unlink()
    os.stat(tree.path)
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        directory.rmdir()
        eventually(lambda: (tmp_path / "calls").read_text().count("KILL"), what="the end")
    for _ in range(2):
        assert sorted(os.listdir(tree.path)) == ["e", "rules"]
        drop_dentries()
    assert not (tree / "d").exists()
    (tree / "d").mkdir()
    assert os.listdir(tree / "d") == []
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", RMDIR_STEPS.values(), ids=RMDIR_STEPS)
def test_directory_that_is_held_is_as_it_was_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = begun(own_house.active(fill))
    directory = tree / "d"
    for name in listed(directory):
        (directory / name).unlink()
    directory.chmod(0o711)
    os.chown(directory, 7, 8)
    os.setxattr(directory, "user.key", b"value")
    held = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    before = os.fstat(held)
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        directory.rmdir()
        eventually(lambda: (tmp_path / "calls").read_text().count("KILL"), what="the end")
    drop_dentries()
    after = os.fstat(held)
    assert (after.st_mode, after.st_ino) == (before.st_mode, before.st_ino)
    assert (after.st_uid, after.st_gid, after.st_nlink) == (7, 8, 0)
    assert os.getxattr(held, "user.key") == b"value"
    assert os.listdir(held) == []
    os.close(held)
    end_of_opens(own_house)
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_removals_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = begun(own_house.active(fill))
    directory = tree / "d"
    listed(directory)
    held = {number: os.open(directory / f"{number}", os.O_PATH) for number in range(8)}
    for number in range(FILES):
        (directory / f"{number}").unlink()
    os.kill(own_house.worker().pid, signal.SIGKILL)
    assert sorted(os.listdir(directory)) == sorted(f"link{number}" for number in range(FILES))
    for number, fd in held.items():
        assert Path(f"/proc/self/fd/{fd}").read_text() == f"d {number}"
        os.close(fd)
    (directory / "0").write_text("anew")
    assert (directory / "0").read_text() == "anew"
    end_of_opens(own_house)
    assert_usage_is_a_walk(own_house, tree)
