"""Attributes of lower directories are answered without Python before anybody lists them.

`ls -l` asks for them with the listing of the directory above.
"""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree
from tests.support.past_python import without_python

pytestmark = [pytest.mark.fuse, pytest.mark.root]
PLAIN, MERGED, OPAQUE, OVER = "plain", "merged", "opaque", "over"
VALUES = {PLAIN: b"bottom", MERGED: b"top", OPAQUE: b"top", OVER: b"top"}
MANY = 1100


def bottom(layer: Path) -> None:
    for name in (PLAIN, MERGED, OPAQUE):
        (layer / "place" / name).mkdir(parents=True)
        os.setxattr(layer / "place" / name, "user.of", b"bottom")
        os.setxattr(layer / "place" / name, "user.below", b"bottom")
    (layer / "place" / OVER).write_text("a file")


def top(layer: Path) -> None:
    for name in (MERGED, OPAQUE, OVER):
        (layer / "place" / name).mkdir(parents=True)
        os.setxattr(layer / "place" / name, "user.of", b"top")
    os.setxattr(layer / "place" / OPAQUE, "trusted.overlay.opaque", b"y")


@pytest.fixture
def tree(own_house: House) -> Tree:
    made = own_house.active(bottom, top)
    assert sorted(os.listdir(made / "place")) == sorted(VALUES)
    for name in VALUES:
        (made / "place" / name).stat()
    return made


def shown(path: Path) -> tuple[bytes, list[str]]:
    with pytest.raises(OSError) as refused:
        os.getxattr(path, "user.none")
    assert refused.value.errno == errno.ENODATA
    return os.getxattr(path, "user.of"), sorted(
        name for name in os.listxattr(path) if not name.startswith("trusted.")
    )


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_attributes_are_those_of_the_topmost_one(own_house: House, tree: Tree) -> None:
    with without_python(own_house, "GETXATTR", 2 * len(VALUES)):
        for name, value in VALUES.items():
            names = ["user.below", "user.of"] if name == PLAIN else ["user.of"]
            assert shown(tree / "place" / name) == (value, names)


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_attributes_are_those_of_what_became_of_it(own_house: House, tree: Tree) -> None:
    place = tree / "place"
    assert os.getxattr(place / PLAIN, "user.of") == b"bottom"
    os.setxattr(place / PLAIN, "user.of", b"changed")
    assert os.getxattr(place / PLAIN, "user.of") == b"changed"
    held = os.open(place / MERGED, os.O_RDONLY | os.O_DIRECTORY)
    try:
        (place / MERGED).rename(tree / "moved")
        assert os.getxattr(held, "user.of") == os.getxattr(tree / "moved", "user.of") == b"top"
        (tree / "moved").rmdir()
        (place / MERGED).mkdir()
        assert os.getxattr(held, "user.of") == b"top"
        assert os.listxattr(place / MERGED) == []
    finally:
        os.close(held)


@pytest.mark.modes(Mode.PASSTHROUGH)
def test_directories_among_very_many_names_have_theirs(own_house: House) -> None:
    def fill(layer: Path) -> None:
        for number in range(MANY):
            (layer / f"d{number}").mkdir()
            os.setxattr(layer / f"d{number}", "user.of", b"%d" % number)

    tree = own_house.active(fill)
    assert len(os.listdir(tree.path)) == MANY
    for number in range(0, MANY, 50):
        assert os.getxattr(tree / f"d{number}", "user.of") == b"%d" % number
