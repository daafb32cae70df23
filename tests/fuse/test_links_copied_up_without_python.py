"""Symbolic links are copied up without Python also where data must be durable before it is seen."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree, drop_dentries
from tests.support.past_python import assert_usage_is_a_walk, begun, without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = [Mode.PASSTHROUGH, Mode.NO_OPEN]
LINKS = 10


def fill(layer: Path) -> None:
    (layer / "d").mkdir()
    for name in ("file", "other"):
        (layer / "d" / name).write_bytes(b"data")
    for number in range(LINKS):
        (layer / "d" / f"link{number}").symlink_to(f"to{number}")


@pytest.fixture
def tree(house: House) -> Tree:
    return house.active(fill)


def test_owners_of_links(house: House, tree: Tree) -> None:
    directory = tree / "d"
    before = begun(directory, "file")
    with without_python(house, "SETATTR", LINKS):
        for number in range(LINKS):
            os.chown(directory / f"link{number}", 1000, 1001, follow_symlinks=False)
    for _ in range(2):
        for number in range(LINKS):
            link = directory / f"link{number}"
            found = link.lstat()
            assert (found.st_uid, found.st_gid) == (1000, 1001)
            assert found.st_ino == before[link.name].st_ino
            assert found.st_mtime_ns == before[link.name].st_mtime_ns
            assert os.readlink(link) == os.readlink(tree.upper / "d" / link.name) == f"to{number}"
        drop_dentries()
    with without_python(house, "SETATTR", 0):
        os.chown(directory / "other", 6, 6)
    assert (directory / "other").read_bytes() == b"data"
    assert_usage_is_a_walk(house, tree)
