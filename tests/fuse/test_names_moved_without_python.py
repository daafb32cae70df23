"""Files that are moved without Python are moved as Python would move them, and once."""

from __future__ import annotations

import os
import random
import signal
import stat
import subprocess
from contextlib import AbstractContextManager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.usage import measure
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.past_python import end_of_opens, fill, fresh, kept, without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def moves(house: House, count: int) -> AbstractContextManager[None]:
    return without_python(house, "RENAME", count)


def test_content_is_replaced_as_programs_do_it(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    with moves(house, 50):
        for number in range(50):
            (directory / "index.lock").write_text(str(number))
            (directory / "index.lock").rename(directory / "index")
            assert (directory / "index").read_text() == str(number)
            assert not (directory / "index.lock").exists()
    assert os.listdir(directory) == os.listdir(tree.upper / "new") == ["index"]
    drop_dentries()
    assert (directory / "index").read_text() == "49"
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert (directory / "index").stat().st_nlink == 1


def test_file_keeps_its_number_content_and_readers_from_one_directory_to_another(
    house: House, tree: Tree
) -> None:
    one, other = fresh(tree, "one"), fresh(tree, "other")
    (one / "file").write_text("content")
    (one / "link").symlink_to("file")
    number = (one / "file").stat().st_ino
    with (one / "file").open("r+") as held, moves(house, 3):
        (one / "file").rename(other / "moved")
        held.write("CON")
        held.flush()
        assert (other / "moved").read_text() == "CONtent"
        (one / "link").rename(other / "link")
        (other / "moved").rename(one / "back")
        assert os.fstat(held.fileno()).st_nlink == 1
    assert (one / "back").stat().st_ino == number
    assert (os.listdir(one), os.listdir(other)) == (["back"], ["link"])
    (one / "back").chmod(0o600)
    assert stat.S_IMODE((tree.upper / "one" / "back").stat().st_mode) == 0o600
    (one / "back").write_text("anew")
    drop_dentries()
    assert (one / "back").stat().st_ino == number
    assert (one / "back").read_text() == "anew"
    assert os.readlink(other / "link") == "file"
    with moves(house, 1):
        (one / "back").rename(other / "file")
    assert house.lane.usage(tree.id) in (None, measure(tree.upper))


def test_file_that_is_replaced_lives_on_for_who_holds_it(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("first", "second"):
        (directory / name).write_text(name)
    held = os.open(directory / "second", os.O_PATH)
    with moves(house, 1):
        (directory / "first").rename(directory / "second")
    assert (directory / "second").read_text() == "first"
    assert os.fstat(held).st_nlink == 0
    assert Path(f"/proc/self/fd/{held}").read_text() == "second"
    os.close(held)
    (directory / "third").write_text("third")
    with (directory / "second").open("r+") as opened:
        # Of a lane without opens nobody can tell that it is.
        with moves(house, 1 if house.mode is Mode.NO_OPEN else 0):
            (directory / "third").rename(directory / "second")
        assert opened.read() == "first"
        assert os.fstat(opened.fileno()).st_nlink == 0
    assert (directory / "second").read_text() == "third"
    eventually(lambda: not kept(tree), what="the end of what was kept")


def test_what_has_rules_is_left_to_them(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("plain", "hard", "immutable", "spare"):
        (directory / name).write_text(name)
    os.link(directory / "hard", directory / "other")
    (directory / "dir").mkdir()
    subprocess.run(["chattr", "+i", directory / "immutable"], check=True)
    (tree / "merged" / "hidden").unlink()
    os.listdir(directory)
    with moves(house, 0):
        (directory / "hard").rename(directory / "hard again")
        (directory / "hard again").rename(directory / "other")  # the same file: both stay
        with pytest.raises(PermissionError):
            (directory / "immutable").rename(directory / "x")
        with pytest.raises(PermissionError):
            (directory / "plain").rename(directory / "immutable")
        with pytest.raises(IsADirectoryError):
            (directory / "plain").rename(directory / "dir")
        with pytest.raises(NotADirectoryError):
            (directory / "dir").rename(directory / "plain")
        with pytest.raises(FileNotFoundError):
            (directory / "none").rename(directory / "plain")
        (directory / "dir").rename(directory / "moved")
        (tree / "lower").rename(directory / "lower")
        (directory / "spare").rename(tree / "merged" / "hidden")  # over a whiteout
    subprocess.run(["chattr", "-i", directory / "immutable"], check=True)
    assert (tree / "merged" / "hidden").read_text() == "spare"
    assert sorted(os.listdir(directory)) == [
        "hard again", "immutable", "lower", "moved", "other", "plain",
    ]  # fmt: skip
    assert (directory / "other").stat().st_nlink == 2
    with moves(house, 1):
        (directory / "plain").rename(directory / "immutable")
    assert (directory / "immutable").read_text() == "plain"


def test_moved_names_are_listed_and_found(house: House, tree: Tree) -> None:
    chance = random.Random(1)
    above = [fresh(tree, name) for name in "abc"]
    expected: dict[Path, str] = {}
    for turn in range(300):
        path = chance.choice(above) / chance.choice("uvwxyz")
        if expected and chance.randrange(3):
            source = chance.choice(sorted(expected))
            source.rename(path)
            expected[path] = expected.pop(source)
        else:
            path.write_text(str(turn))
            expected[path] = str(turn)
        if turn % 30 == 0:
            found = {
                it: it.read_text() for it in (one / n for one in above for n in os.listdir(one))
            }
            assert found == expected
        if turn % 100 == 50:
            drop_dentries()
    assert {it: it.read_text() for it in expected} == expected
    eventually(lambda: not kept(tree), what="the end of what was kept")
    end_of_opens(house)


STEPS = {
    "before it is moved": (False, "renameat2"),
    "moved, unsaid": (False, "writev"),
    "before the other is kept": (True, "linkat"),
    "before it replaces": (True, "renameat"),
    "replaced, unsaid": (True, "writev"),
}


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize(("replaces", "call"), STEPS.values(), ids=STEPS)
def test_file_is_moved_once_when_the_worker_dies_on_the_way(
    own_house: House, replaces: bool, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    directory = fresh(tree, "new")
    (directory / "file").write_text("file")
    if replaces:
        (directory / "other").write_text("other")
    os.listdir(directory)
    assert (directory / "other").exists() == replaces
    os.stat(directory)
    # An absent name is asked for again before it is taken, and answered by writev.
    when = 2 if call == "writev" and not replaces else 1
    with killing_at(own_house, call, when, tmp_path / "calls"):
        (directory / "file").rename(directory / "other")
    assert os.listdir(directory) == os.listdir(tree.upper / "new") == ["other"]
    assert (directory / "other").read_text() == "file"
    (directory / "file").write_text("anew")
    assert sorted(os.listdir(directory)) == ["file", "other"]
    eventually(lambda: not kept(tree), what="the end of what was kept")


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_moves_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = own_house.active(fill)
    one, other = fresh(tree, "one"), fresh(tree, "other")
    held = []
    for number in range(100):
        (one / str(number)).write_text(str(number))
        held.append((one / str(number)).open("r+"))
    for number in range(100):
        (one / str(number)).rename(other / str(number))
    os.kill(own_house.worker().pid, signal.SIGKILL)
    for number, file in enumerate(held):
        assert os.fstat(file.fileno()).st_size == len(str(number))
        file.write("x" * 5)
        file.close()
        assert (other / str(number)).read_text() == "x" * 5
    assert os.listdir(one) == []
    assert len(os.listdir(other)) == 100
    end_of_opens(own_house)
