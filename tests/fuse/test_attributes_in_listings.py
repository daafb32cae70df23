"""Who lists names alone makes no inodes of them; who looks at what he lists is given attributes."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.support.lanes import House, Tree, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.channel("the fast lane")]

DIRECTORIES = 12
FILES = 60


def fill(layer: Path) -> None:
    for number in range(DIRECTORIES):
        (layer / f"d{number}").mkdir()
        for file in range(FILES):
            (layer / f"d{number}" / f"f{file}").touch()


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def in_a_process(code: str, tree: Tree) -> None:
    """Run code with `os`, and the paths `d` of the directories in turn."""
    loop = f"import os, subprocess, sys\nfor d in sorted(os.scandir(sys.argv[1]), key=str): {code}"
    subprocess.run([sys.executable, "-c", loop, tree.path], check=True, timeout=30)


def known(house: House) -> int:
    return house.worker().nodes


def looked_up(house: House, work: Callable[[Tree], object]) -> int:
    """Return how many names are asked for, the fewest of three trees: the kernel may drop what it
    was told whenever it likes."""

    def once() -> int:
        tree = house.active(fill)
        before = Counter(house.worker().answered)["LOOKUP"]
        work(tree)
        return Counter(house.worker().answered)["LOOKUP"] - before

    return min(once() for _ in range(3))


def test_a_listing_of_names_makes_no_inodes_of_them(house: House, tree: Tree) -> None:
    before = known(house)
    in_a_process("os.listdir(d)", tree)
    assert known(house) - before <= DIRECTORIES + 1


def test_looking_at_one_name_in_each_directory_makes_inodes_of_these(
    house: House, tree: Tree
) -> None:
    before = known(house)
    in_a_process("os.listdir(d), os.stat(d.path + '/f1')", tree)
    assert known(house) - before <= 2 * DIRECTORIES + 1


@pytest.mark.parametrize("command", ["find {} -printf %s", "ls -lR {}", "du -s {}"])
def test_a_walk_that_looks_at_all_files_has_attributes_from_its_second_directory_on(
    house: House, command: str
) -> None:
    def walk(tree: Tree) -> None:
        argv = command.format(tree.path).split()
        subprocess.run(argv, check=True, timeout=30, stdout=subprocess.DEVNULL)

    assert looked_up(house, walk) <= FILES + DIRECTORIES + 1


def test_a_removal_of_a_tree_looks_nothing_up_once_it_has_begun(house: House) -> None:
    def remove(tree: Tree) -> None:
        subprocess.run(["rm", "-r", *tree.path.iterdir()], check=True, timeout=30)

    assert looked_up(house, remove) <= FILES + 2 * DIRECTORIES


def test_it_does_not_matter_who_looks_at_what_somebody_lists(house: House) -> None:
    """As where one thread lists and others open."""
    cat = "subprocess.run(['cat', *(d.path + '/' + it for it in os.listdir(d))])"
    count = looked_up(house, lambda tree: in_a_process(cat, tree))
    assert count <= FILES + 2 * DIRECTORIES


def test_a_directory_with_an_upper_part_is_listed_with_attributes(house: House, tree: Tree) -> None:
    for number in range(DIRECTORIES):
        (tree / f"d{number}" / "new").touch()
    drop_dentries()
    before = Counter(house.worker().answered)["LOOKUP"]
    in_a_process("[os.stat(d.path + '/' + it) for it in os.listdir(d)]", tree)
    assert Counter(house.worker().answered)["LOOKUP"] - before <= DIRECTORIES


def test_a_listing_of_names_alone_is_kept_by_the_kernel(house: House, tree: Tree) -> None:
    names = os.listdir(tree / "d1")
    before = Counter(house.worker().answered)["READDIRPLUS"]
    assert os.listdir(tree / "d1") == names
    assert Counter(house.worker().answered)["READDIRPLUS"] == before
