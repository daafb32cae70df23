"""Files get further names without Python, and lose them, as Python would have it, and once.

In a lane without opens it comes to the same.
"""

from __future__ import annotations

import errno
import os
import random
import signal
import subprocess
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.snapshots.quota import INODES_LABEL
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries, killing_at
from tests.support.past_python import (
    assert_usage_is_a_walk,
    fill,
    fresh,
    kept,
    without_python,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = [Mode.PASSTHROUGH, Mode.NO_OPEN]
IN_C = pytest.mark.modes(Mode.PASSTHROUGH)
DEADLINE_S = 20.0


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def past_python(house: House, operation: str, count: int) -> AbstractContextManager[None]:
    if house.mode is not Mode.PASSTHROUGH:
        return nullcontext()
    return without_python(house, operation, count)


def links(house: House, count: int) -> AbstractContextManager[None]:
    return past_python(house, "LINK", count)


def removes(house: House, count: int) -> AbstractContextManager[None]:
    return past_python(house, "UNLINK", count)


def moves(house: House, count: int) -> AbstractContextManager[None]:
    return past_python(house, "RENAME", count)


def test_files_get_their_names_as_git_gives_them(house: House, tree: Tree) -> None:
    directory = fresh(tree, "objects")
    numbers = {}
    with links(house, 50), removes(house, 50):
        for number in range(50):
            first, name = directory / "tmp_obj", directory / f"{number:040}"
            first.write_text(str(number))
            first.chmod(0o444)
            os.link(first, name)
            assert name.stat() == first.stat()
            assert name.stat().st_nlink == 2
            first.unlink()
            assert name.stat().st_nlink == 1
            numbers[name.name] = name.stat().st_ino
    assert sorted(os.listdir(directory)) == sorted(os.listdir(tree.upper / "objects"))
    drop_dentries()
    for name, number in numbers.items():
        found = (directory / name).stat()
        assert (found.st_ino, found.st_nlink, found.st_size) == (number, 1, len(str(int(name))))
        assert (directory / name).read_text() == str(int(name))
    assert not kept(tree)
    assert_usage_is_a_walk(house, tree)
    with removes(house, 50):
        for name in numbers:
            (directory / name).unlink()
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)
    if house.passes_through:
        eventually(lambda: house.worker().files == 0, what="the releases")


def test_each_name_shows_the_same_file_from_each_directory(house: House, tree: Tree) -> None:
    one, other = fresh(tree, "one"), fresh(tree, "other")
    (one / "file").write_text("content")
    places = [above / str(number) for above in (one, other) for number in range(5)]
    with links(house, 10):
        for nth, place in enumerate(places):
            os.link(one / "file", place)
            assert {it.stat().st_nlink for it in (one / "file", *places[: nth + 1])} == {nth + 2}
    (other / "3").write_text("another")
    assert {it.read_text() for it in (one / "file", *places)} == {"another"}
    (one / "2").chmod(0o600)
    assert len({it.stat() for it in (one / "file", *places)}) == 1
    assert_usage_is_a_walk(house, tree)
    with removes(house, 10):
        (one / "file").unlink()
        for nth, place in enumerate(places[:9]):
            place.unlink()
            assert {it.stat().st_nlink for it in places[nth + 1 :]} == {9 - nth}
    assert (os.listdir(one), os.listdir(other)) == ([], ["4"])
    drop_dentries()
    assert (other / "4").read_text() == "another"
    assert_usage_is_a_walk(house, tree)


def test_symbolic_link_may_have_two_names_as_well(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "link").symlink_to("nowhere")
    with links(house, 1), removes(house, 1):
        os.link(directory / "link", directory / "second", follow_symlinks=False)
        assert (directory / "second").lstat().st_nlink == 2
        (directory / "link").unlink()
    assert os.readlink(directory / "second") == "nowhere"
    assert (directory / "second").lstat().st_nlink == 1


def test_file_that_loses_the_name_it_was_noted_by_is_found(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for nth in range(3):
        (directory / f"first{nth}").write_text("x")
        os.link(directory / f"first{nth}", directory / f"second{nth}")
    held = os.open(directory / "first2", os.O_PATH)
    with removes(house, 0):
        for nth in range(3):
            (directory / f"second{nth}").unlink()
    assert (directory / "first0").stat().st_nlink == os.fstat(held).st_nlink == 1
    with removes(house, 2):  # stat said where the first is; of the others it is not known
        (directory / "first0").unlink()
        (directory / "first2").unlink()
    assert os.fstat(held).st_nlink == 0
    assert Path(f"/proc/self/fd/{held}").read_text() == "x"
    os.close(held)
    assert os.listdir(directory) == ["first1"]
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_open_file_is_read_and_written_whatever_its_names(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    with (directory / "first").open("w+") as file:
        file.write("one")
        file.flush()
        with links(house, 1), removes(house, 1):
            os.link(directory / "first", directory / "second")
            (directory / "first").unlink()
        file.write("two")
        file.flush()
        assert (directory / "second").read_text() == "onetwo"
        assert os.fstat(file.fileno()).st_nlink == (directory / "second").stat().st_nlink == 1
        assert (directory / "second").stat().st_size == 6
        assert not kept(tree)
        with removes(house, 0):
            (directory / "second").unlink()
        file.seek(0)
        assert file.read() == "onetwo"
        assert os.fstat(file.fileno()).st_nlink == 0
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_one_of_several_names_is_replaced_as_dpkg_does_it(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("old")
    held = os.open(directory / "file", os.O_PATH)
    for turn in range(20):
        with links(house, 1), moves(house, 1):
            os.link(directory / "file", directory / "file.dpkg-tmp")
            (directory / "file.dpkg-new").write_text(str(turn))
            (directory / "file.dpkg-new").rename(directory / "file")
        assert not kept(tree) or turn
        before, now = (directory / "file.dpkg-tmp").stat(), (directory / "file").stat()
        assert (before.st_nlink, now.st_nlink) == (1, 1)
        assert (directory / "file").read_text() == str(turn)
        assert (directory / "file.dpkg-tmp").read_text() == (str(turn - 1) if turn else "old")
        with removes(house, 1):
            (directory / "file.dpkg-tmp").unlink()
    assert Path(f"/proc/self/fd/{held}").read_text() == "old"
    assert os.fstat(held).st_nlink == 0
    os.close(held)
    assert os.listdir(directory) == ["file"]
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def test_file_that_is_open_is_replaced_while_it_has_another_name(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("file", "more"):
        (directory / name).write_text(name)
    with (directory / "file").open("r+") as file, moves(house, 1):
        os.link(directory / "file", directory / "second")
        (directory / "more").rename(directory / "file")
        file.write("FI")
        file.flush()
        assert (directory / "second").read_text() == "FIle"
        assert os.fstat(file.fileno()).st_nlink == 1
    assert (directory / "file").read_text() == "more"
    assert not kept(tree)
    assert_usage_is_a_walk(house, tree)


def test_name_of_a_file_that_has_several_is_moved(house: House, tree: Tree) -> None:
    directory, other = fresh(tree, "new"), fresh(tree, "other")
    (directory / "first").write_text("x")
    os.link(directory / "first", directory / "second")
    with moves(house, 0):
        (directory / "first").rename(other / "moved")
        (other / "moved").rename(directory / "second")  # the same file: both stay
    assert (other / "moved").stat().st_nlink == (directory / "second").stat().st_nlink == 2
    (directory / "second").unlink()
    (other / "moved").unlink()
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


def refusal(call: object, *arguments: object) -> int:
    with pytest.raises(OSError) as refused:
        call(*arguments)  # type: ignore[operator]
    return refused.value.errno or 0


def test_what_has_rules_is_left_to_them(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    for name in ("plain", "set-id", "immutable", "append"):
        (directory / name).write_text(name)
    (directory / "set-id").chmod(0o4755)
    (directory / "dir").mkdir()
    os.mkfifo(directory / "fifo")
    subprocess.run(["chattr", "+i", directory / "immutable"], check=True)
    subprocess.run(["chattr", "+a", directory / "append"], check=True)
    (tree / "merged" / "hidden").write_text("copied up")
    with links(house, 0):
        os.link(tree / "lower", directory / "of lower")
        os.link(tree / "merged" / "hidden", directory / "of copy")
        os.link(directory / "set-id", directory / "of set-id")
        os.link(directory / "fifo", directory / "of fifo")
        assert refusal(os.link, directory / "immutable", directory / "x") == errno.EPERM
        assert refusal(os.link, directory / "append", directory / "x") == errno.EPERM
        assert refusal(os.link, directory / "dir", directory / "x") == errno.EPERM
        assert refusal(os.link, directory / "plain", directory / "set-id") == errno.EEXIST
        assert refusal(os.link, directory / "plain", tree / "lower") == errno.EEXIST
        assert refusal(os.link, directory / "none", directory / "x") == errno.ENOENT
        assert refusal(os.link, directory / "plain", house.active().path / "x") == errno.EXDEV
        (tree / "merged" / "hidden").unlink()
        os.link(directory / "plain", tree / "merged" / "hidden")  # over a whiteout
        nameless = os.open(directory, os.O_TMPFILE | os.O_RDWR, 0o644)
        os.write(nameless, b"was nameless")
        target = os.open(directory, os.O_PATH)
        os.link(f"/proc/self/fd/{nameless}", "named", dst_dir_fd=target, follow_symlinks=True)
        os.close(target)
        os.close(nameless)
    assert (directory / "named").read_text() == "was nameless"
    assert (tree / "merged" / "hidden").read_text() == "plain"
    assert (directory / "of lower").stat() == (tree / "lower").stat()
    assert {it.stat().st_nlink for it in (directory / "plain", directory / "of lower")} == {2}
    with removes(house, 0):
        (directory / "of lower").unlink()
        (directory / "of set-id").unlink()
        (tree / "merged" / "hidden").unlink()
    assert (tree / "lower").stat().st_nlink == (directory / "plain").stat().st_nlink == 1
    subprocess.run(["chattr", "+i", directory], check=True)
    with links(house, 0):
        assert refusal(os.link, directory / "plain", directory / "x") == errno.EPERM
    subprocess.run(["chattr", "-i", directory], check=True)
    for name in ("immutable", "append"):
        subprocess.run(["chattr", "-ia", directory / name], check=True)
    with links(house, 1):
        os.link(directory / "plain", directory / "x")
    assert_usage_is_a_walk(house, tree)


def test_names_that_nobody_looked_up_since_do_not_count(own_house: House) -> None:
    """Three names were a worker's that is gone; the next one knows two, and where it has noted one
    of these the third is, by the time that both are removed."""
    tree = own_house.active(fill)
    above = [fresh(tree, name) for name in ("first", "unknown", "last")]
    (above[0] / "file").write_text("content")
    for it in above[1:]:
        os.link(above[0] / "file", it / "file")
    own_house.restart()
    held = os.open(tree / "first" / "file", os.O_PATH)
    assert (tree / "last" / "file").stat().st_nlink == 3
    (tree / "first").rename(tree / "away")
    (tree / "unknown").rename(tree / "first")
    (tree / "away" / "file").unlink()
    (tree / "last" / "file").unlink()
    assert os.fstat(held).st_nlink == 1
    assert Path(f"/proc/self/fd/{held}").read_text() == "content"
    assert (tree / "first" / "file").stat().st_ino == os.fstat(held).st_ino
    (tree / "first" / "file").unlink()
    assert os.fstat(held).st_nlink == 0
    assert Path(f"/proc/self/fd/{held}").read_text() == "content"
    os.close(held)
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


def test_quota_counts_names(house: House) -> None:
    key = house.name()
    house.snapshots.prepare(key, house.base_layers(fill), {INODES_LABEL: "6"})
    tree = Tree(house, key)
    with links(house, 0), removes(house, 0):
        (tree / "file").touch()
        for number in range(20):
            os.link(tree / "file", tree / f"{number}")
        for number in range(20):
            (tree / f"{number}").unlink()


def test_freeze_holds_links(house: House, tree: Tree) -> None:
    directory = fresh(tree, "new")
    (directory / "file").write_text("x")
    house.lane.freeze(tree.id, timeout_s=DEADLINE_S)
    try:
        linker = subprocess.Popen(["ln", directory / "file", directory / "second"])
        with pytest.raises(subprocess.TimeoutExpired):
            linker.wait(0.3)
        assert not (tree.upper / "new" / "second").exists()
    finally:
        house.lane.thaw(tree.id)
    assert linker.wait(DEADLINE_S) == 0
    assert sorted(os.listdir(directory)) == ["file", "second"]


@pytest.mark.parametrize("seed", range(3))
def test_names_and_counts_are_those_of_a_model(house: House, tree: Tree, seed: int) -> None:
    chance = random.Random(seed)
    above = [fresh(tree, name) for name in "abc"]
    names: dict[Path, str] = {}
    for turn in range(400):
        path = chance.choice(above) / chance.choice("uvwxyz")
        source = chance.choice(sorted(names)) if names else path
        match chance.randrange(6):
            case 0 | 1 if source in names and path not in names:
                os.link(source, path)
                names[path] = names[source]
            case 2 if source in names and names.get(path) != names[source]:
                source.rename(path)
                names[path] = names.pop(source)
            case 3 | 4 if source in names:
                source.unlink()
                del names[source]
            case _ if path not in names:
                path.write_text(str(turn))
                names[path] = str(turn)
        if turn % 20 == 0:
            look_at(names, above)
        if turn % 100 == 50:
            drop_dentries()
        if turn % 100 == 0:
            assert_usage_is_a_walk(house, tree)
    look_at(names, above)
    assert_usage_is_a_walk(house, tree)
    drop_dentries()
    look_at(names, above)
    eventually(lambda: not kept(tree), what="the end of what was kept")


def look_at(names: dict[Path, str], above: list[Path]) -> None:
    assert sorted(path for it in above for path in it.iterdir()) == sorted(names)
    files = list(names.values())
    assert {it: it.read_text() for it in names} == names
    assert [it.stat().st_nlink for it in names] == [files.count(it) for it in files]


def test_long_names_of_files_that_are_held_are_all_heard_of(house: House, tree: Tree) -> None:
    """Nothing makes Python listen while the kernel forgets nothing, but that there is no room."""
    directory = fresh(tree, "new")
    held, name = [], "n" * 255
    (directory / name).write_text("0")
    for turn in range(1, 450):
        held.append(os.open(directory / name, os.O_PATH))
        (directory / ("m" * 255)).write_text(str(turn))
        (directory / ("m" * 255)).rename(directory / name)
    for turn, fd in enumerate(held):
        assert Path(f"/proc/self/fd/{fd}").read_text() == str(turn)
        os.close(fd)
    assert os.listdir(directory) == [name]
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(house, tree)


STEPS = {
    "before it is linked": ("link", "linkat"),
    "linked, unsaid": ("link", "writev"),
    "before its name is gone": ("unlink", "unlinkat"),
    "its name is gone, unsaid": ("unlink", "writev"),
    "before it is replaced": ("replace", "renameat"),
    "replaced, unsaid": ("replace", "writev"),
}


@IN_C
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize(("act", "call"), STEPS.values(), ids=STEPS)
def test_names_change_once_when_the_worker_dies_on_the_way(
    own_house: House, act: str, call: str, tmp_path: Path
) -> None:
    tree = own_house.active(fill)
    directory, other = fresh(tree, "new"), fresh(tree, "other")
    for name in ("file", "more"):
        (directory / name).write_text(name)
    if act != "link":
        os.link(directory / "file", other / "second")
    os.stat(directory / "file")
    os.listdir(directory)
    assert (other / "second").exists() == (act != "link")
    os.stat(other)
    os.stat(directory)
    with killing_at(own_house, call, 2 if act == "link" and call == "writev" else 1,
                    tmp_path / "calls"):  # fmt: skip
        match act:
            case "link":
                os.link(directory / "file", other / "second")
            case "unlink":
                (directory / "file").unlink()
            case _:
                (directory / "more").rename(directory / "file")
    assert (other / "second").read_text() == "file"
    assert os.listdir(other) == os.listdir(tree.upper / "other") == ["second"]
    expected = {
        "link": {"file": "file", "more": "more"},
        "unlink": {"more": "more"},
        "replace": {"file": "more"},
    }
    found = {it.name: it.read_text() for it in directory.iterdir()}
    assert found == expected[act]
    assert (other / "second").stat().st_nlink == 1 + (act == "link")
    (other / "second").unlink()
    drop_dentries()  # of names that the next worker never heard of the file is kept
    eventually(lambda: not kept(tree), what="the end of what was kept")
    assert_usage_is_a_walk(own_house, tree)


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_names_that_python_had_not_heard_of_when_the_worker_died_hold(own_house: House) -> None:
    tree = own_house.active(fill)
    one, other = fresh(tree, "one"), fresh(tree, "other")
    held = []
    for number in range(100):
        (one / str(number)).write_text(str(number))
        held.append((one / str(number)).open("r+"))
    for number in range(100):
        os.link(one / str(number), other / str(number))
        if number % 2:
            (one / str(number)).unlink()
    os.kill(own_house.worker().pid, signal.SIGKILL)
    for number, file in enumerate(held):
        assert os.fstat(file.fileno()).st_nlink == 2 - number % 2
        file.write("x" * 5)
        file.close()
        assert (other / str(number)).read_text() == "x" * 5
    assert sorted(os.listdir(one)) == sorted(str(it) for it in range(0, 100, 2))
    assert len(os.listdir(other)) == 100
    if own_house.passes_through:
        eventually(lambda: own_house.worker().files == 0, what="the releases")
    assert_usage_is_a_walk(own_house, tree)
