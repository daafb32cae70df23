"""Who swaps a directory of a layer for a link, between a look and a use, leads nobody out of it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from snapfs.beneath import by_steps, open_beneath
from snapfs.overlay import LayerCopy, Tree, TreeSpec, diff, has_changed
from snapfs.overlay.node import Dir
from snapfs.overlay.quiet import is_written
from snapfs.snapshots.usage import blocks_by_inode, measure
from tests.support.outside import SECRET, Outside, outside_of, put_back, put_link, swapping

pytestmark = pytest.mark.root

ROUNDS = 150


@pytest.fixture
def outside(tmp_path: Path) -> Iterator[Outside]:
    with outside_of(tmp_path) as made:
        yield made


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer with the same names as outside."""
    path = tmp_path / "layer"
    (path / "dir" / "sub").mkdir(parents=True)
    for place in (path / "dir", path / "dir" / "sub"):
        (place / "file").write_bytes(b"of the layer")
    os.mkfifo(path / "dir" / "pipe")
    return path


def tree_over(layer: Path, tmp_path: Path, *, upper: bool) -> Tree:
    for name in ("work", "other"):
        (tmp_path / name).mkdir()
    other = tmp_path / "other"
    if upper:
        return Tree(TreeSpec(1, (other,), layer, tmp_path / "work", sync=False))
    return Tree(TreeSpec(1, (layer,), other, tmp_path / "work", sync=False))


@pytest.mark.parametrize("upper", [True, False], ids=["upper", "lower"])
def test_a_node_that_was_found_leads_nowhere_else_when_its_directory_is_a_link(
    outside: Outside, layer: Path, tmp_path: Path, upper: bool
) -> None:
    tree = tree_over(layer, tmp_path, upper=upper)
    try:
        directory = tree.lookup(tree.root, b"dir")
        assert isinstance(directory, Dir)
        file, sub = tree.lookup(directory, b"file"), tree.lookup(directory, b"sub")
        assert isinstance(sub, Dir)
        put_link(layer, outside.path)
        uses: list[Callable[[], object]] = [
            lambda: os.read(tree.open(file, os.O_RDONLY), 100),
            lambda: os.write(tree.open(file, os.O_RDWR), b"mine"),
            lambda: list(tree.readdir(sub)),
            lambda: list(tree.readdir(directory)),
            lambda: tree.lookup(sub, b"file"),
            lambda: tree.getattr(file).size,
            lambda: tree.setxattr(file, b"user.mine", b"1"),
            lambda: tree.unlink(sub, b"file"),
            lambda: tree.rmdir(directory, b"sub"),
        ]
        for use in uses:
            with suppress(OSError):
                assert use() != SECRET
        assert (outside.path / "sub").is_dir()
        assert outside.uses() == b""
        assert os.listxattr(outside.path / "file") == []
        assert is_written(tree.real_path(file))  # nobody can say
    finally:
        tree.close()


@pytest.mark.parametrize("upper", [True, False], ids=["upper", "lower"])
def test_a_walk_of_a_tree_whose_directories_are_swapped_stays_in_its_layers(
    outside: Outside, layer: Path, tmp_path: Path, upper: bool
) -> None:
    tree = tree_over(layer, tmp_path, upper=upper)
    try:
        with swapping(layer, outside.path):
            for _ in range(ROUNDS):
                with suppress(OSError):
                    directory = tree.lookup(tree.root, b"dir")
                    if isinstance(directory, Dir):
                        list(tree.readdir(directory))
                        fd = tree.open(tree.lookup(directory, b"file"), os.O_RDONLY)
                        assert os.read(fd, 100) != SECRET
                        os.close(fd)
    finally:
        tree.close()


def test_copies_of_a_layer_that_changes_have_nothing_from_outside(
    outside: Outside, layer: Path, tmp_path: Path
) -> None:
    """What is copied ahead is taken for the copy when its file is as it was: the link is gone."""
    for number in range(ROUNDS):
        target, spare = tmp_path / f"target{number}", tmp_path / f"spare{number}"
        target.mkdir()
        spare.mkdir()
        copy = LayerCopy(layer, (), target, spare, None)
        with swapping(layer, outside.path):
            copy.warm()
        copy.make()
        for place in (target / "dir", target / "dir" / "sub"):
            assert (place / "file").read_bytes() == b"of the layer"
        last = (target,), copy.known()
        copy.clear()
        with swapping(layer, outside.path):
            has_changed(layer, last, doubted=True)


def test_a_directory_that_becomes_a_link_before_a_file_of_it_is_copied_is_not_followed(
    outside: Outside, layer: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from snapfs.overlay import rawcopy

    target, spare = tmp_path / "target", tmp_path / "spare"
    target.mkdir()
    spare.mkdir()
    real = rawcopy.copy_entry

    def swapped(*arguments: object) -> None:
        put_link(layer, outside.path)
        try:
            real(*arguments)  # type: ignore[arg-type]
        finally:
            put_back(layer)

    copy = LayerCopy(layer, (), target, spare, None)
    with monkeypatch.context() as patched:
        patched.setattr(rawcopy, "copy_entry", swapped)
        copy.warm()
    copy.make()
    copy.clear()
    assert (target / "dir" / "file").read_bytes() == b"of the layer"


def test_what_differs_and_what_is_taken_is_counted_in_the_layer_only(
    outside: Outside, layer: Path, tmp_path: Path
) -> None:
    (tmp_path / "below").mkdir()
    for number in range(100):
        (outside.path / f"another{number}").mkdir()
    outside.uses()
    with swapping(layer, outside.path):
        for _ in range(ROUNDS):
            measure(layer)
            blocks_by_inode(layer)
            with suppress(OSError):
                for change in diff.changes(layer, [tmp_path / "below"]):
                    assert b"another" not in change.path
            with suppress(OSError):
                list(diff.between([layer], [tmp_path / "below"]))


@pytest.mark.parametrize("opened", [open_beneath, by_steps])
def test_a_path_is_opened_beneath_its_directory_only(
    opened: Callable[[int, bytes, int], int], outside: Outside, layer: Path
) -> None:
    (layer / "link").symlink_to(outside.path)
    (layer / "to").symlink_to("dir")
    top = os.open(layer, os.O_PATH | os.O_DIRECTORY)
    try:
        fd = opened(top, b"dir/sub/file", os.O_RDONLY)
        assert os.read(fd, 100) == b"of the layer"
        os.close(fd)
        os.close(opened(top, b".", os.O_RDONLY | os.O_DIRECTORY))
        refused = (b"link/file", b"to/file", b"link", b"/etc/passwd", b"dir/../../outside/file")
        for path in refused:
            with pytest.raises(OSError, match=r"."):
                opened(top, path, os.O_RDONLY)
    finally:
        os.close(top)
