"""Where chunks end depends on the data alone."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.transfer import chunking


@contextmanager
def _open(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDONLY)
    try:
        yield fd
    finally:
        os.close(fd)


def _chunks(path: Path) -> list[tuple[int, bytes]]:
    with _open(path) as fd:
        return list(chunking.chunks(fd))


def test_chunks_put_together_are_the_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    data = random.Random(1).randbytes(9_000_001)
    path.write_bytes(data)
    found = _chunks(path)
    assert b"".join(part for _, part in found) == data
    assert [offset for offset, _ in found] == [
        sum(len(part) for _, part in found[:number]) for number in range(len(found))
    ]
    sizes = [len(part) for _, part in found[:-1]]
    assert max(sizes) <= chunking.MOST_BYTES
    assert min(sizes) >= chunking.LEAST_BYTES
    assert 32 << 10 < sum(sizes) / len(sizes) < 128 << 10


def test_a_byte_put_in_front_moves_chunks_and_changes_few(tmp_path: Path) -> None:
    data = random.Random(2).randbytes(4_000_000)
    (tmp_path / "before").write_bytes(data)
    (tmp_path / "after").write_bytes(b"!" + data)
    before = {part for _, part in _chunks(tmp_path / "before")}
    after = {part for _, part in _chunks(tmp_path / "after")}
    assert len(after - before) <= 2


def test_zeros_are_holes_whether_they_have_blocks_or_not(tmp_path: Path) -> None:
    head, tail = random.Random(3).randbytes(100_000), random.Random(4).randbytes(50_000)
    (tmp_path / "written").write_bytes(head + bytes(10 << 20) + tail + bytes(1 << 20))
    with (tmp_path / "sparse").open("wb") as file:
        file.write(head)
        file.seek((10 << 20) + len(head))
        file.write(tail)
        file.truncate((11 << 20) + len(head) + len(tail))
    written, sparse = _chunks(tmp_path / "written"), _chunks(tmp_path / "sparse")
    assert written == sparse
    assert sum(len(part) for _, part in written) < 400_000


def test_a_file_of_zeros_has_no_chunks(tmp_path: Path) -> None:
    (tmp_path / "zeros").write_bytes(bytes(100_000))
    assert _chunks(tmp_path / "zeros") == []


@settings(
    max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(
    seed=st.integers(0, 1 << 30),
    parts=st.lists(st.tuples(st.booleans(), st.integers(1, 400_000)), max_size=6),
    window=st.sampled_from([64 << 10, 128 << 10, 1 << 20]),
)
def test_chunks_do_not_depend_on_how_much_is_read_at_once(
    tmp_path: Path, seed: int, parts: list[tuple[bool, int]], window: int
) -> None:
    source = random.Random(seed)
    data = b"".join(bytes(size) if zero else source.randbytes(size) for zero, size in parts)
    (tmp_path / "file").write_bytes(data)
    whole = _chunks(tmp_path / "file")
    rebuilt = bytearray(len(data))
    for offset, part in whole:
        rebuilt[offset : offset + len(part)] = part
    assert rebuilt == data
    usual, chunking._WINDOW_BYTES = chunking._WINDOW_BYTES, window
    try:
        assert _chunks(tmp_path / "file") == whole
    finally:
        chunking._WINDOW_BYTES = usual
