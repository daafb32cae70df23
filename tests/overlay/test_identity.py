"""Inode numbers: unique over snapshots and devices, stable over everything."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.overlay import Inodes, Tree, TreeSpec, identity
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.kernel import tmpfs
from tests.support.overlay.layers import make_layer

Build = Callable[..., Stack]


@given(st.integers(1, (1 << 23) - 1), st.integers(0, identity.LOW_MASK))
def test_a_number_says_its_snapshot_and_is_a_positive_inode_number(number: int, low: int) -> None:
    ino = identity.prefix(number) | low
    assert identity.split(ino) == (number, low)
    assert identity.LANE_ROOT < ino < 1 << 63


@given(
    st.lists(st.tuples(st.integers(0, 200), st.integers(1, 1 << 62)), unique=True),
    st.integers(1, 1 << 62),
)
def test_files_of_all_devices_get_numbers_of_their_own(
    files: list[tuple[int, int]], root_ino: int
) -> None:
    numbers = identity.Numbers(7, root_ino)
    lows = [numbers.low(device, ino) for device, ino in files]
    assert len(set(lows)) == len(lows)
    assert all(1 < low <= identity.LOW_MASK for low in lows)
    assert lows == [numbers.low(device, ino) for device, ino in files]


def test_files_of_the_main_device_keep_their_own_number() -> None:
    assert identity.Numbers(5).low(5, 123456) == 123456


def test_layers_inside_a_snapshot_keep_what_is_below_its_number() -> None:
    outer = identity.prefix(77)
    numbers = identity.Numbers(5, outer | 12)
    assert numbers.low(5, outer | 123456) == 123456
    other = numbers.low(5, identity.prefix(78) | 123456)
    assert identity.lasts(123456)
    assert not identity.lasts(other)


@pytest.mark.root
def test_a_number_survives_copy_up_rename_forget_restart_and_settling(stack: Build) -> None:
    tree = stack({"d/f": b"f", "d/s/g": b"g", "l": b"l"})
    os.link(tree.lowers[0] / "l", tree.lowers[0] / "m")
    numbers = {path: tree.node(path).ino for path in ("d", "d/f", "d/s", "d/s/g", "l")}
    assert all(identity.split(ino)[0] == 7 for ino in numbers.values())
    for path in ("d/f", "d/s/g", "l"):
        tree.files.write(path.encode(), 0, b"x")
    tree.files.rename(b"d/s", b"s", 0)
    tree.files.rename(b"d", b"e", 0)
    moved = {"d": "e", "d/f": "e/f", "d/s": "s", "d/s/g": "s/g", "l": "l"}
    steps = (lambda: None, tree.files.forget, tree.reopen, lambda: tree.tree.settle(), tree.reopen)
    for step in steps:
        step()
        assert {old: tree.node(new).ino for old, new in moved.items()} == numbers
        listed = {entry.name: entry.ino for entry in tree.tree.readdir(tree.node("e"))}
        assert listed == {b"f": numbers["d/f"]}


@pytest.mark.root
def test_one_lower_file_in_two_snapshots_is_two_nodes(tmp_path: Path) -> None:
    lower = make_layer(tmp_path / "lower", {"f": b"f"})
    inodes = Inodes()
    trees = [Tree(TreeSpec(number, (lower,)), inodes) for number in (1, 2)]
    nodes = [tree.lookup(tree.root, b"f") for tree in trees]
    assert nodes[0].ino & identity.LOW_MASK == nodes[1].ino & identity.LOW_MASK
    assert nodes[0].ino != nodes[1].ino
    for node in nodes:
        inodes.remember(node)
        inodes.remember(node)
        assert inodes.get(node.ino) is node
    trees[0].close()
    with pytest.raises(KeyError):
        inodes.get(nodes[0].ino)
    inodes.forget(nodes[1].ino, 1)
    assert len(inodes) == 1
    inodes.forget(nodes[1].ino, 1)
    assert len(inodes) == 0
    trees[1].close()


@pytest.mark.root
def test_snapshots_of_one_chain_share_what_they_read_of_it(tmp_path: Path) -> None:
    lowers = tuple(make_layer(tmp_path / str(n), {f"d/{n}": b""}) for n in range(3))
    inodes = Inodes()
    trees = [Tree(TreeSpec(number, lowers), inodes) for number in (1, 2)]
    directories = [tree.lookup(tree.root, b"d") for tree in trees]
    listed = [tree.readdir(node) for tree, node in zip(trees, directories, strict=True)]
    assert [entry.name for entry in listed[0]] == [entry.name for entry in listed[1]]
    assert directories[0].index is directories[1].index  # type: ignore[attr-defined]
    for tree in trees:
        tree.close()


@pytest.mark.root
def test_roots_have_numbers_that_need_no_table(tmp_path: Path) -> None:
    lower = make_layer(tmp_path / "lower", {"f": b"f"})
    tree = Tree(TreeSpec(9, (lower,)))
    assert tree.root.ino == identity.root(9)
    assert identity.split(tree.root.ino) == (9, 0)
    tree.close()
    single = Tree(TreeSpec(0, (lower,), single=True))
    assert single.root.ino == 1
    assert single.lookup(single.root, b"f").ino == os.stat(lower / "f").st_ino
    single.close()


@pytest.mark.root
def test_layers_on_several_devices_do_not_share_numbers(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "one") as one, tmpfs(tmp_path / "two") as two:
        lowers = [
            make_layer(one / "l", {f"a{n}": b"" for n in range(50)}),
            make_layer(two / "l", {f"b{n}": b"" for n in range(50)}),
            make_layer(tmp_path / "l", {f"c{n}": b"" for n in range(50)}),
        ]
        for name in ("upper", "work"):
            (tmp_path / name).mkdir()
        tree = Tree(TreeSpec(3, tuple(lowers), tmp_path / "upper", tmp_path / "work"))
        listed = {entry.name: entry.ino for entry in tree.readdir(tree.root)}
        assert len(set(listed.values())) == len(listed) == 150
        os.close(tree.open(tree.lookup(tree.root, b"a7"), os.O_RDWR))
        fresh, fd = tree.create(tree.root, b"fresh", 0o644, os.O_RDWR, **WHO)
        os.close(fd)
        again = {entry.name: entry.ino for entry in tree.readdir(tree.root)}
        assert again == listed | {b"fresh": fresh.ino}
        assert len(set(again.values())) == 151
        for name, ino in again.items():
            assert tree.lookup(tree.root, name).ino == ino
        tree.close()
