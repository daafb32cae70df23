"""What a worker keeps for each tree is little, and goes back when the kernel has forgotten it."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import pytest

from snapfs.heap import MUCH, Slack
from snapfs.overlay import Places
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root]

KIB = 1024
TREES = 32
DIRECTORIES = 40
FILES = 25
OF_A_TREE_BYTES = 110 * KIB
"""75 to 85 were measured."""
MANY = 80
"""Directories with a thousand files each."""
STAYS_BYTES = 1500 * KIB
"""3,100 KiB stayed of MANY when nothing was given back, and 180 since."""


def own_bytes(pid: int) -> int:
    """Return the anonymous memory and memfds of a process."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return sum(int(it) * KIB for it in re.findall(r"^Pss_(?:Anon|Shmem): +(\d+)", text, re.M))


def image(layer: Path) -> None:
    for number in range(DIRECTORIES):
        directory = layer / f"directory-{number}"
        directory.mkdir()
        for file in range(FILES):
            (directory / f"a-file-{file}.so").touch()


def use(tree: Tree) -> None:
    """List all, and look at a third of it, as a container's first process does."""
    for number in range(DIRECTORIES):
        names = os.listdir(tree / f"directory-{number}")
        for name in sorted(names)[::3]:
            os.stat(tree / f"directory-{number}" / name)


@pytest.mark.channel("the fast lane")
def test_a_tree_of_an_image_that_others_show_costs_a_worker_little(own_house: House) -> None:
    parent = own_house.base_layers(image)
    trees = [own_house.on(parent) for _ in range(TREES + 1)]
    use(trees[0])
    pid = own_house.worker().pid
    before = own_bytes(pid)
    for tree in trees[1:]:
        use(tree)
    each = (own_bytes(pid) - before) / TREES
    assert each < OF_A_TREE_BYTES
    assert own_house.worker().pid == pid


@pytest.mark.timeout(300)
def test_what_was_kept_for_many_files_goes_back_when_they_are_forgotten(own_house: House) -> None:
    def fill(layer: Path) -> None:
        for number in range(MANY):
            (layer / f"d{number}").mkdir()
            for file in range(1000):
                os.mknod(layer / f"d{number}" / f"file-{file}")

    tree = own_house.active(fill)
    os.stat(tree.path)
    pid = own_house.worker().pid
    before = own_bytes(pid)
    argv = ["find", tree.path, "-printf", "%s"]
    subprocess.run(argv, check=True, stdout=subprocess.DEVNULL, timeout=100)
    drop_dentries()
    eventually(
        lambda: own_bytes(pid) < before + STAYS_BYTES,
        timeout_s=30,
        what="the memory of what was forgotten",
    )


def test_memory_is_given_back_when_half_of_much_is_gone() -> None:
    slack = Slack()
    assert not slack.is_due(0, 0)
    assert not slack.is_due(0, MUCH - 1)
    assert not slack.is_due(2 * MUCH + 1, 4 * MUCH)
    assert slack.is_due(2 * MUCH, 2 * MUCH + 1)
    assert not slack.is_due(2 * MUCH, 2 * MUCH)
    assert not slack.is_due(MUCH + 1, 2 * MUCH)
    assert slack.is_due(0, MUCH + 1)
    assert not slack.is_due(0, 0)
    assert slack.is_due(0, MUCH)


def test_places_tell_how_many_they_were_at_most(tmp_path: Path) -> None:
    with (tmp_path / "places").open("w+b") as memory:
        places = Places(memory.fileno())
        for number in range(1, 100):
            places.note(number, 1)
        for number in range(1, 90):
            places.drop(number)
        assert places.take_most() == 99
        assert places.take_most() == len(places) == 10
