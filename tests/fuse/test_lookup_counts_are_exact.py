"""After the kernel has forgotten everything, the worker holds nothing."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)


def wide(layer: Path) -> None:
    for number in range(40):
        directory = layer / f"d{number}"
        directory.mkdir()
        for inner in range(40):
            (directory / f"f{inner}").write_text("x")
        os.link(directory / "f0", directory / "again")


def forgotten(house: House) -> bool:
    drop_dentries()
    status = house.worker()
    return not (status.nodes or status.lookups or status.files)


def test_walk_then_forget_leaves_no_node_and_no_open_tree(own_house: House) -> None:
    tree = own_house.active(wide, wide)
    subprocess.run(["find", tree.path, "-size", "+1"], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["tar", "cf", "/dev/null", "."], cwd=tree.path, check=True)
    assert own_house.worker().nodes > 1600
    eventually(lambda: forgotten(own_house), what="the end of all nodes")
    assert own_house.worker().trees == ()


def test_changes_then_forget_leave_no_node(own_house: House) -> None:
    tree = own_house.active(wide)
    subprocess.run(["cp", "-a", tree / "d0", tree / "copy"], check=True)
    subprocess.run(["chmod", "-R", "go-r", tree / "d1"], check=True)
    os.rename(tree / "d2", tree / "renamed")
    os.rename(tree / "d3" / "f1", tree / "d4" / "f1")
    os.link(tree / "d5" / "f5", tree / "hard")
    os.symlink("x", tree / "symbolic")
    subprocess.run(["rm", "-r", tree / "d6", tree / "copy"], check=True)
    with (tree / "d7" / "f7").open() as file:
        os.unlink(tree / "d7" / "f7")
        assert file.read() == "x"
    eventually(lambda: forgotten(own_house), what="the end of all nodes")


def test_tree_that_was_forgotten_opens_again(own_house: House) -> None:
    tree = own_house.active(wide)
    number = (tree / "d0" / "f1").stat().st_ino
    (tree / "d0" / "f1").write_text("copied up")
    eventually(lambda: forgotten(own_house), what="the end of all nodes")
    assert (tree / "d0" / "f1").stat().st_ino == number
    assert (tree / "d0" / "f1").read_text() == "copied up"
