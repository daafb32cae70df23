"""A tree that was closed has no part in what is opened after it."""

from __future__ import annotations

from pathlib import Path

from snapfs.overlay import Inodes, Tree, TreeSpec


def test_nodes_of_a_closed_tree_are_not_found_by_the_next_one(tmp_path: Path) -> None:
    for name in ("upper", "work", "lower"):
        (tmp_path / name).mkdir()
    (tmp_path / "lower" / "dir").mkdir()
    (tmp_path / "lower" / "dir" / "file").write_bytes(b"lower")
    spec = TreeSpec(1, (tmp_path / "lower",), tmp_path / "upper", tmp_path / "work")
    inodes = Inodes()
    first = Tree(spec, inodes)
    held = first.lookup(first.lookup(first.root, b"dir"), b"file")
    first.close()
    second = Tree(spec, inodes)
    here = second.lookup(second.root, b"dir")
    assert held.parent is not None
    assert here.ino == held.parent.ino
    assert here.tree is second
    assert second.lookup(here, b"file").tree is second
    assert [it.name for it in second.readdir(here)] == [b"file"]
    second.close()
