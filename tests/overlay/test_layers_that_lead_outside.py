"""A layer made by a stranger leads nowhere but into the layers: by redirects, links, attributes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from snapfs.overlay import Tree, TreeSpec, xattrs
from snapfs.overlay.node import Dir, Node

pytestmark = pytest.mark.root

SECRET = b"secret"
REDIRECTS = [
    b"/../outside",
    b"../outside",
    b"..",
    b"/..",
    b"/",
    b".",
    b"",
    b"/door",
    b"/door/inner",
    b"door",
    b"//door//inner",
    b"/real/../../outside",
    b"\0outside",
    b"/" + b"x" * 5000,
]


class Stage:
    """Two layers, of which the upper one is a stranger's, and a directory that is no layer."""

    def __init__(self, base: Path) -> None:
        self.outside = base / "outside"
        self.lower, self.stranger = base / "lower", base / "stranger"
        (self.outside / "inner").mkdir(parents=True)
        for place in (self.outside, self.outside / "inner"):
            (place / "secret").write_bytes(SECRET)
        (self.lower / "real").mkdir(parents=True)
        (self.lower / "real" / "file").write_bytes(b"plain")
        (self.lower / "door").symlink_to(self.outside)
        (self.stranger / "moved").mkdir(parents=True)
        (self.stranger / "data").touch()
        self.uppers = 0
        self.base = base

    def tree(self) -> Tree:
        self.uppers += 1
        made = [self.base / f"{name}{self.uppers}" for name in ("upper", "work")]
        for directory in made:
            directory.mkdir()
        return Tree(TreeSpec(1, (self.stranger, self.lower), *made, sync=False))


@pytest.fixture
def stage(tmp_path: Path) -> Stage:
    return Stage(tmp_path)


def everything(tree: Tree, node: Node, depth: int = 0) -> Iterator[tuple[bytes, bytes]]:
    """Yield name and content of each file that a tree shows; what cannot be read is left out."""
    if depth > 8 or not isinstance(node, Dir):
        return
    for entry in tree.readdir(node):
        with suppress(OSError):
            found = tree.lookup(node, entry.name)
            if found is None:
                continue
            if isinstance(found, Dir):
                yield from everything(tree, found, depth + 1)
            else:
                fd = tree.open(found, os.O_RDONLY)
                with os.fdopen(fd, "rb") as file:
                    yield entry.name, file.read()


def check(stage: Stage) -> None:
    tree = stage.tree()
    try:
        shown = list(everything(tree, tree.root))
        assert all(SECRET not in content for _, content in shown), shown
        assert (b"secret", SECRET) not in shown
    finally:
        tree.close()
    for place in (stage.outside, stage.outside / "inner"):
        assert os.listdir(place).count("secret") == 1


@pytest.mark.parametrize("redirect", REDIRECTS, ids=repr)
def test_a_redirect_finds_nothing_outside_the_layers(stage: Stage, redirect: bytes) -> None:
    with suppress(OSError):  # longer than an attribute may be
        os.setxattr(stage.stranger / "moved", xattrs.REDIRECT, redirect)
    check(stage)


@pytest.mark.parametrize("redirect", REDIRECTS, ids=repr)
def test_a_copy_of_metadata_finds_no_data_outside_the_layers(stage: Stage, redirect: bytes) -> None:
    os.truncate(stage.stranger / "data", len(SECRET))
    os.setxattr(stage.stranger / "data", xattrs.METACOPY, b"")
    for end in (redirect, redirect + b"/secret"):
        with suppress(OSError):
            os.setxattr(stage.stranger / "data", xattrs.REDIRECT, end)
        check(stage)


NAMES = [
    *(xattrs.OPAQUE, xattrs.REDIRECT, xattrs.WHITEOUT, xattrs.METACOPY, xattrs.IMPURE),
    *(xattrs.INO, xattrs.PENDING, xattrs.DEVICE, xattrs.PROTATTR, xattrs.PROTECTED),
]


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["moved", "data", "."]), st.sampled_from(NAMES), st.binary(max_size=60)
        ),
        max_size=6,
    )
)
@example([("data", xattrs.INO, b"-1"), ("data", xattrs.PENDING, b"999999999999999999999")])
@example([(".", xattrs.PROTECTED, b"\xff"), ("data", xattrs.PROTATTR, b"\xff\0ia")])
def test_attributes_of_any_value_end_in_an_error_or_in_the_layers(
    stage: Stage, attributes: list[tuple[str, bytes, bytes]]
) -> None:
    for path, name, value in attributes:
        os.setxattr(stage.stranger / path, name, value)
    check(stage)
    for path, name, _ in attributes:
        with suppress(OSError):
            os.removexattr(stage.stranger / path, name)
