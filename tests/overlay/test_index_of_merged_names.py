"""The packed index says what the layers' rules say, in an order that never changes."""

from __future__ import annotations

import os
import stat
import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.overlay._names import Index

pytestmark = [pytest.mark.root]

Kinds = dict[bytes, str]
NAMES = st.binary(min_size=1, max_size=6).filter(
    lambda name: b"/" not in name and b"\0" not in name and name not in (b".", b"..")
)
LAYERS = st.lists(
    st.dictionaries(NAMES, st.sampled_from(["file", "dir", "white", "link", "fifo"]), max_size=12),
    min_size=1,
    max_size=4,
)
TYPES = {"file": stat.S_IFREG, "dir": stat.S_IFDIR, "link": stat.S_IFLNK, "fifo": stat.S_IFIFO}


def build(base: Path, layers: Sequence[Kinds]) -> list[bytes]:
    paths = []
    for position, kinds in enumerate(layers):
        layer = os.fsencode(base / str(position))
        os.mkdir(layer)
        paths.append(layer)
        for name, kind in kinds.items():
            path = layer + b"/" + name
            match kind:
                case "file":
                    os.close(os.open(path, os.O_CREAT | os.O_WRONLY))
                case "dir":
                    os.mkdir(path)
                case "white":
                    os.mknod(path, stat.S_IFCHR)
                case "link":
                    os.symlink(b"x", path)
                case _:
                    os.mkfifo(path)
    return paths


def index_of(paths: Sequence[bytes], bits: int) -> Index:
    device = os.stat(paths[0]).st_dev
    return Index(
        [(path, device, False, False) for path in paths], device, _no_other, hash_bits=bits
    )


def _no_other(device: int, ino: int) -> int:
    raise AssertionError("only one device is used")


def expected(paths: Sequence[bytes], layers: Sequence[Kinds]) -> dict[bytes, tuple[int, ...]]:
    """Each name's entries, as overlayfs.rst has them: position and type of what is visible."""
    found: dict[bytes, tuple[int, ...]] = {}
    ended: set[bytes] = set()
    for position, kinds in enumerate(layers):
        for name, kind in kinds.items():
            is_dir = kind == "dir"
            if name in ended:
                continue
            if (name not in found or is_dir) and kind != "white":
                ino = os.lstat(paths[position] + b"/" + name).st_ino
                packed = ino << 20 | position << 4 | TYPES[kind] >> 12
                found[name] = (*found.get(name, ()), packed)
            if not is_dir:
                ended.add(name)
    return found


@settings(max_examples=60, deadline=None)
@given(layers=LAYERS, bits=st.sampled_from([1, 3, 55]))
def test_index_agrees_with_the_rules_for_any_layers(layers: list[Kinds], bits: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        paths = build(Path(base), layers)
        index = index_of(paths, bits)
        wanted = expected(paths, layers)
        found = {
            name: (entry,) if isinstance(entry, int) else entry for name, entry in index.items()
        }
        assert found == wanted
        assert len(index) == len(wanted)
        for name, entries in wanted.items():
            entry = index.get(name)
            assert (entry if isinstance(entry, tuple) else (entry,)) == entries
            assert name in index
        for missing in (b"", b"nothing here", *(name + b"x" for name in wanted)):
            if missing not in wanted:
                assert index.get(missing) is None
                assert missing not in index


@settings(max_examples=40, deadline=None)
@given(names=st.sets(NAMES, max_size=30), bits=st.sampled_from([1, 2, 55]), step=st.integers(1, 7))
def test_listing_in_any_steps_gives_each_name_once(names: set[bytes], bits: int, step: int) -> None:
    with tempfile.TemporaryDirectory() as base:
        index = index_of(build(Path(base), [dict.fromkeys(names, "file")]), bits)
        seen: list[bytes] = []
        key = 0
        while chunk := index.after(key, step):
            assert [place for place, _, _ in chunk] == sorted({place for place, _, _ in chunk})
            assert chunk[0][0] > max(key, 2)
            seen += [name for _, name, _ in chunk]
            key = chunk[-1][0]
        assert sorted(seen) == sorted(names)


@settings(max_examples=40, deadline=None)
@given(names=st.sets(NAMES, min_size=1, max_size=30), data=st.data())
def test_a_name_keeps_its_place_whatever_comes_and_goes(
    names: set[bytes], data: st.DataObject
) -> None:
    kept = data.draw(st.sampled_from(sorted(names)))
    others = data.draw(st.sets(NAMES, max_size=30))
    places = []
    for group in (names, {kept} | others):
        with tempfile.TemporaryDirectory() as base:
            index = index_of(build(Path(base), [dict.fromkeys(group, "file")]), 55)
            places.append({name: place for place, name, _ in index.after(0, 100)}[kept])
    assert places[0] == places[1]
    assert places[0] < 1 << 62


def test_directory_that_cannot_be_read_is_an_error_that_names_it(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="nothing"):
        index_of([os.fsencode(tmp_path), os.fsencode(tmp_path / "nothing")], 55)
    with pytest.raises(ValueError, match="hash_bits"):
        index_of([os.fsencode(tmp_path)], 56)
