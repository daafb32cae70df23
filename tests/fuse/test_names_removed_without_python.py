"""Names that are removed without Python go as Python would have them go, and go once."""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.quota import INODES_LABEL
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.past_python import (
    assert_usage_is_a_walk,
    end_of_opens,
    fill,
    fresh,
    kept,
    without_python,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

DEADLINE_S = 20.0
TURNS = 10
SOON_S = 5.0
READ_US = 400_000
"""For each part of a directory to be read: what is done meanwhile takes less."""
CANNOT_BE = {
    errno.ENOENT,
    errno.EEXIST,
    errno.EISDIR,
    errno.ENOTDIR,
    errno.ELOOP,
    errno.ENOTEMPTY,
    errno.EPERM,
}


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def removes(house: House, count: int, operation: str = "UNLINK") -> AbstractContextManager[None]:
    return without_python(house, operation, count)


def test_file_is_gone_and_what_was_kept_of_it_follows(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for number in range(30):
        (directory / str(number)).write_text(str(number))
        (directory / f"link{number}").symlink_to(str(number))
    os.listdir(directory)
    with removes(house, 40):
        for number in range(20):
            (directory / str(number)).unlink()
            (directory / f"link{number}").unlink()
    left = sorted([str(it) for it in range(20, 30)] + [f"link{it}" for it in range(20, 30)])
    assert sorted(os.listdir(directory)) == left
    assert sorted(os.listdir(tree.upper / "new")) == left
    with pytest.raises(FileNotFoundError):
        (directory / "0").unlink()
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)
    assert (directory / "25").read_text() == "25"


def test_file_that_is_held_without_being_open_lives_on(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("content")
    held = os.open(directory / "file", os.O_PATH)
    with removes(house, 1):
        (directory / "file").unlink()
    assert os.fstat(held).st_nlink == 0
    assert Path(f"/proc/self/fd/{held}").read_text() == "content"
    (directory / "file").write_text("another")
    assert Path(f"/proc/self/fd/{held}").read_text() == "content"
    os.chmod(f"/proc/self/fd/{held}", 0o600)
    os.close(held)
    assert (directory / "file").read_text() == "another"
    eventually(lambda: not kept(tree), what="the end of what was kept")


def test_what_has_rules_is_left_to_them(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("second", "open", "set-id", "immutable", "append"):
        (directory / name).write_text(name)
    os.link(directory / "second", directory / "first")  # by which it is known best
    (directory / "set-id").chmod(0o4755)
    subprocess.run(["chattr", "+i", directory / "immutable"], check=True)
    subprocess.run(["chattr", "+a", directory / "append"], check=True)
    (tree / "lower").rename(directory / "moved")
    (tree / "merged" / "hidden").write_text("copied up")
    os.mkfifo(directory / "fifo")
    os.listdir(directory)
    # Of a lane without opens nobody can tell that a file is open.
    with removes(house, 1 if house.mode is Mode.NO_OPEN else 0):
        (directory / "first").unlink()
        assert (directory / "second").stat().st_nlink == 1
        with (directory / "open").open("r+") as file:
            (directory / "open").unlink()
            file.write("still")
            file.flush()
            assert os.fstat(file.fileno()).st_nlink == 0
        for name in ("immutable", "append"):
            with pytest.raises(PermissionError):
                (directory / name).unlink()
            subprocess.run(["chattr", "-ia", directory / name], check=True)
        for name in ("set-id", "moved", "fifo"):
            (directory / name).unlink()
        (tree / "merged" / "hidden").unlink()
    assert sorted(os.listdir(directory)) == ["append", "immutable", "second"]
    assert sorted(os.listdir(tree.path)) == ["merged", "new"]
    assert os.listdir(tree / "merged") == []
    with removes(house, 1):
        (directory / "second").unlink()
    subprocess.run(["chattr", "+i", directory], check=True)
    with pytest.raises(PermissionError):
        (directory / "append").unlink()
    subprocess.run(["chattr", "-i", directory], check=True)
    assert house.lane.usage(tree.id) == measure(tree.upper)


def test_directory_is_gone_and_lives_on_for_who_is_in_it(house: House, tree: Tree) -> None:
    above = fresh(tree, "new")
    for number in range(20):
        (above / str(number)).mkdir()
    (above / "full").mkdir()
    (above / "full" / "file").touch()
    held = os.open(above / "7", os.O_RDONLY | os.O_DIRECTORY)
    with removes(house, 20, "RMDIR"):
        for number in range(20):
            (above / str(number)).rmdir()
        with pytest.raises(OSError) as refused:
            (above / "full").rmdir()
        assert refused.value.errno == errno.ENOTEMPTY
        with pytest.raises(NotADirectoryError):
            (above / "full" / "file").rmdir()
        with pytest.raises(IsADirectoryError):
            (above / "full").unlink()
    assert os.listdir(above) == os.listdir(tree.upper / "new") == ["full"]
    assert above.stat().st_nlink == 3
    assert (os.fstat(held).st_nlink, os.listdir(held)) == (0, [])
    with pytest.raises(FileNotFoundError):
        os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=held)
    (above / "7").mkdir()
    (above / "7" / "file").touch()
    assert os.listdir(held) == []
    os.close(held)
    with removes(house, 1):
        (above / "full" / "file").unlink()
    with removes(house, 1, "RMDIR"):
        (above / "full").rmdir()
    assert os.listdir(above) == ["7"]
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_directory_with_rules_is_left_to_them(house: House, tree: Tree) -> None:
    above = fresh(tree, "new")
    for name in ("immutable", "moved"):
        (above / name).mkdir()
    subprocess.run(["chattr", "+i", above / "immutable"], check=True)
    with removes(house, 0, "RMDIR"):
        with pytest.raises(PermissionError):
            (above / "immutable").rmdir()
        subprocess.run(["chattr", "-i", above / "immutable"], check=True)
        with pytest.raises(OSError) as refused:
            (tree / "merged").rmdir()
        assert refused.value.errno == errno.ENOTEMPTY
        (tree / "merged" / "hidden").unlink()
    with removes(house, 1, "RMDIR"):
        (tree / "merged").rmdir()
        (tree / "merged").mkdir()
        (tree / "merged").rmdir()  # it hid what is below by a mark
    assert sorted(os.listdir(tree.path)) == ["lower", "new"]
    (above / "moved").rename(tree / "merged")
    with removes(house, 0, "RMDIR"):
        (tree / "merged").rmdir()
    assert sorted(os.listdir(tree.path)) == ["lower", "new"]
    assert_usage_is_a_walk(house, tree)


def test_quota_sees_what_goes(house: House) -> None:
    key = house.name()
    house.snapshots.prepare(key, house.base_layers(fill), {INODES_LABEL: "6"})
    tree = Tree(house, key)
    with removes(house, 0):
        for number in range(20):
            (tree / f"{number}").touch()
            (tree / f"{number}").unlink()


def test_name_is_used_again_and_again(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for number in range(100):
        (directory / "lock").write_text(str(number))
        assert (directory / "lock").read_text() == str(number)
        (directory / "lock").unlink()
        assert not (directory / "lock").exists()
    assert os.listdir(directory) == []
    (directory / "lock").write_text("last")
    drop_dentries()
    assert (directory / "lock").read_text() == "last"
    end_of_opens(house)
    eventually(lambda: not kept(tree), what="the end of what was kept")


def test_freeze_holds_removals(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("x")
    house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    try:
        remover = subprocess.Popen(["rm", directory / "file"])
        with pytest.raises(subprocess.TimeoutExpired):
            remover.wait(0.3)
        assert (tree.upper / "new" / "file").exists()
    finally:
        house.lane.thaw(tree.id)
    assert remover.wait(DEADLINE_S) == 0
    assert os.listdir(directory) == []


@pytest.mark.parametrize("seed", range(3))
def test_usage_is_what_a_walk_finds_whatever_is_made_and_removed(
    house: House, tree: Tree, seed: int
) -> None:
    chance = random.Random(seed)
    names = [f"{above}/{name}" for above in ("a", "b", "merged") for name in "uvwxyz"]
    for above in ("a", "b"):
        fresh(tree, above)
    for turn in range(400):
        change(chance, tree, names)
        if turn % 20 == 0:
            assert_usage_is_a_walk(house, tree)
        if turn % 100 == 50:
            drop_dentries()
    assert_usage_is_a_walk(house, tree)


def change(chance: random.Random, tree: Tree, names: list[str]) -> None:
    """Do something to a name, if it can be done."""
    path, other = tree / chance.choice(names), tree / chance.choice(names)
    try:
        match chance.randrange(10):
            case 0 | 1 | 2:
                with path.open("ab") as file:
                    file.write(b"x" * chance.randrange(20_000))
            case 3 | 4 | 5:
                path.unlink()
            case 6:
                path.rename(other)
            case 7:
                os.link(path, other)
            case 8:
                path.mkdir() if chance.randrange(2) else path.rmdir()
            case _:
                path.symlink_to("x" * chance.randrange(1, 100))
    except OSError as error:
        if error.errno not in CANNOT_BE:
            raise


STEPS = {"before it is gone": "renameat", "unsaid": "writev"}


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", STEPS.values(), ids=STEPS)
def test_file_is_removed_once_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    directory = fresh(tree, "new")
    for name in ("file", "other"):
        (directory / name).write_text(name)
    os.listdir(directory)
    os.stat(directory)
    os.stat(directory / "file")
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        (directory / "file").unlink()
    assert os.listdir(directory) == ["other"]
    assert os.listdir(tree.upper / "new") == ["other"]
    (directory / "file").write_text("anew")
    assert (directory / "file").read_text() == "anew"
    eventually(lambda: not kept(tree), what="the end of what was kept")


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("call", STEPS.values(), ids=STEPS)
def test_directory_is_removed_once_when_the_worker_dies_on_the_way(
    own_house: House, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    directory = fresh(tree, "new")
    (directory / "dir").mkdir()
    os.stat(directory)
    os.stat(directory / "dir")
    with killing_at(own_house, call, 1, tmp_path / "calls"):
        (directory / "dir").rmdir()
    assert os.listdir(directory) == os.listdir(tree.upper / "new") == []
    (directory / "dir").mkdir()
    assert os.listdir(directory / "dir") == []
    eventually(lambda: not kept(tree), what="the end of what was kept")


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_removals_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = own_house.active(fill)
    directory = fresh(tree, "new")
    for number in range(100):
        (directory / str(number)).write_text(str(number))
    os.listdir(directory)
    held = [os.open(directory / str(number), os.O_PATH) for number in range(50)]
    for number in range(100):
        (directory / str(number)).unlink()
    os.kill(own_house.worker().pid, signal.SIGKILL)
    assert os.listdir(directory) == []
    for number, fd in enumerate(held):
        assert Path(f"/proc/self/fd/{fd}").read_text() == str(number)
        os.close(fd)
    (directory / "0").write_text("anew")
    assert os.listdir(directory) == ["0"]
    end_of_opens(own_house)


def test_file_that_comes_and_goes_leaves_nothing(house: House, tree: Tree) -> None:
    """Nothing asks Python in between, so it hears of each as little as can be."""
    directory = fresh(tree, "new")
    before = house.worker().ended
    with removes(house, 60):
        for number in range(20):
            file, other = directory / f"{number}", directory / f"other{number}"
            file.write_text("x" * 5000)
            with file.open("ab") as further:
                further.write(b"y")
            file.chmod(0o600)
            file.rename(other)
            os.link(other, file)
            other.unlink()
            file.unlink()
            (directory / "link").symlink_to("nowhere")
            (directory / "link").unlink()
    assert os.listdir(directory) == os.listdir(tree.upper / "new") == []
    assert house.worker().ended > before
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)
    for number in range(20):  # whatever numbers these get
        (directory / f"{number}").write_text(str(number))
    drop_dentries()
    assert [(directory / f"{number}").read_text() for number in range(20)] == [
        str(number) for number in range(20)
    ]
    assert_usage_is_a_walk(house, tree)


def test_file_that_comes_and_goes_and_is_held_meanwhile_lives_on(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for number in range(50):
        (directory / "file").write_text(str(number))
        held = os.open(directory / "file", os.O_PATH)
        (directory / "file").unlink()
        (directory / "file").write_text("another")
        (directory / "file").unlink()
        assert Path(f"/proc/self/fd/{held}").read_text() == str(number)
        assert os.fstat(held).st_nlink == 0
        os.close(held)
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_files_that_come_and_go_while_the_tree_is_counted_are_not_counted(house: House) -> None:
    tree = house.active(fill)
    for above in range(20):
        (tree / f"{above}").mkdir()
        for number in range(30):
            (tree / f"{above}" / f"{number}").touch()
    script = "while :; do for d in 1 7 13; do echo x > $d/new; rm $d/new; done; done"
    changing = subprocess.Popen(["sh", "-c", script], cwd=tree.path)
    try:
        for _ in range(20):
            house.lane.usage(tree.id)
            drop_dentries()
    finally:
        changing.kill()
        changing.wait(DEADLINE_S)
    for above in ("1", "7", "13"):
        (tree / above / "new").unlink(missing_ok=True)
    assert_usage_is_a_walk(house, tree)


def test_file_that_a_count_has_seen_and_that_is_gone_is_not_counted(
    house: House, tree: Tree, tmp_path: Path
) -> None:
    directory = tree / "new"
    directory.mkdir()
    calls = tmp_path / "calls"

    def has_done(call: str) -> bool:
        return call in calls.read_text()

    for _ in range(TURNS):  # Python may hear of the file before it goes
        before = house.worker().ended
        close(house, tree)
        with reading_slowly(house, tree.upper / "new", calls):
            assert not (directory / "absent").exists()  # the tree is opened, and counted
            try:
                eventually(lambda: has_done("F_DUPFD"), what="a look", timeout_s=SOON_S)
            except AssertionError:
                continue  # it was counted before anybody listened
            (directory / "link").symlink_to("nowhere")
            eventually(lambda: has_done('"link"'), what="a look at the link")
            (directory / "link").unlink()
        assert_usage_is_a_walk(house, tree)
        if house.worker().ended > before:
            return
    pytest.fail("Python heard of each, or none was seen")


def close(house: House, tree: Tree) -> None:
    """Have the kernel let go of a tree."""

    def is_closed() -> bool:
        drop_dentries()
        return tree.id not in house.worker().trees

    eventually(is_closed, what="the end of the tree")


@contextmanager
def reading_slowly(house: House, directory: Path, calls: Path) -> Iterator[None]:
    """Each part of a directory comes late to who reads it in the worker; `calls` says how far that
    is."""
    slow = subprocess.Popen(
        ["strace", "-f", "-p", str(house.worker().pid), "-o", calls, "-P", directory,
         "-e", "trace=fcntl,newfstatat,getdents64",
         "-e", f"inject=getdents64:delay_enter={READ_US}"],
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    try:
        assert slow.stderr is not None
        while "attached" not in (line := slow.stderr.readline()):
            assert line, "strace has ended"
        yield
    finally:
        slow.terminate()
        slow.communicate(timeout=DEADLINE_S)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_file_that_comes_and_goes_after_a_worker_died_leaves_nothing(own_house: House) -> None:
    """A FORGET may take back what an earlier worker counted, but not of a number that is new."""
    tree = own_house.active(fill)
    come_and_go(fresh(tree, "first"))
    assert own_house.worker().ended > 0
    own_house.kill_worker()
    directory = fresh(tree, "second")
    with removes(own_house, 20):
        come_and_go(directory)
    eventually(lambda: own_house.worker().ended > 0, what="the end of files")
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.modes(Mode.NO_OPEN)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_new_file_is_forgotten_without_python_after_a_worker_died(own_house: House) -> None:
    tree = own_house.active(fill)
    (tree / "known").mkdir()
    own_house.kill_worker()
    directory = fresh(tree, "new")
    for number in range(20):
        (directory / f"{number}").write_text("new")

    def forgotten() -> int:
        answered = own_house.worker().answered
        return answered.get("FORGET", 0) + answered.get("BATCH_FORGET", 0)

    before = forgotten()
    for number in range(20):
        (directory / f"{number}").unlink()
    eventually(lambda: forgotten() > before, what="a FORGET")
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


def come_and_go(directory: Path) -> None:
    for number in range(20):
        (directory / f"{number}").symlink_to("nowhere")
        (directory / f"{number}").unlink()


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("is_known", [False, True])
def test_file_that_is_forgotten_goes_when_the_worker_dies_on_the_way(
    own_house: House, is_known: bool, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    directory = fresh(tree, "new")
    (directory / "file").write_text("content")
    if is_known:
        os.listdir(directory)
    with killing_at(own_house, "unlinkat,unlink", 1, tmp_path / "calls"):
        (directory / "file").unlink()
        eventually(lambda: (tmp_path / "calls").read_text().count("KILL"), what="the end")
    assert os.listdir(directory) == []
    (directory / "file").write_text("anew")
    assert (directory / "file").read_text() == "anew"
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)
