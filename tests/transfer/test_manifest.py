"""A manifest comes back as it was written; what is no manifest is refused."""

from __future__ import annotations

import io
import stat

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.model import DataLoss, InvalidArgument, SnapfsError
from snapfs.transfer import manifest
from snapfs.transfer.manifest import Chunk, Entry

ROOT = Entry(b"", stat.S_IFDIR | 0o755)

_names = st.binary(min_size=1, max_size=8).filter(
    lambda name: name not in (b".", b"..") and not {0, ord("/")} & set(name)
)
_xattrs = st.dictionaries(_names.map(lambda name: b"user." + name), st.binary(max_size=20))


@st.composite
def _entries(draw: st.DrawFn) -> list[Entry]:
    found = [ROOT]
    _fill(draw, b"", found, 2)
    return found


def _fill(draw: st.DrawFn, prefix: bytes, found: list[Entry], levels: int) -> None:
    for name in sorted(draw(st.sets(_names, max_size=4))):
        kind = draw(st.sampled_from([stat.S_IFREG, stat.S_IFDIR, stat.S_IFLNK, stat.S_IFCHR]))
        chunks = ()
        if kind == stat.S_IFREG and draw(st.booleans()):
            chunks = (Chunk(5, 10, bytes(32)), Chunk(100, 1, b"d" * 32))
        entry = Entry(
            prefix + name,
            kind | draw(st.integers(0, 0o7777)),
            draw(st.integers(0, 1 << 31)),
            draw(st.integers(0, 1 << 31)),
            draw(st.integers(-(1 << 40), 1 << 62)),
            tuple(sorted(draw(_xattrs).items())),
            target=draw(_names) if kind == stat.S_IFLNK else b"",
            size_bytes=200 if chunks else 0,
            chunks=chunks,
        )
        found.append(entry)
        if kind == stat.S_IFDIR and levels:
            _fill(draw, prefix + name + b"/", found, levels - 1)


def _written(entries: list[Entry]) -> bytes:
    file = io.BytesIO()
    writer = manifest.Writer(file)
    for entry in entries:
        writer.add(entry)
    return file.getvalue()


@given(_entries())
def test_what_was_written_is_read(entries: list[Entry]) -> None:
    assert list(manifest.read(io.BytesIO(_written(entries)))) == entries


@given(_entries(), st.data())
def test_damage_is_refused_or_gives_other_entries(
    entries: list[Entry], data: st.DataObject
) -> None:
    raw = bytearray(_written(entries))
    at = data.draw(st.integers(0, len(raw) - 1))
    raw[at] ^= data.draw(st.integers(1, 255))
    try:
        found = list(manifest.read(io.BytesIO(bytes(raw))))
    except SnapfsError:
        return
    assert found != entries


@pytest.mark.parametrize(
    "path", [b"..", b"../etc/passwd", b"/etc/passwd", b"a//b", b"a/.", b"a\0b", b"a" * 256]
)
def test_paths_that_lead_out_of_a_layer_are_refused(path: bytes) -> None:
    with pytest.raises(DataLoss):
        list(manifest.read(io.BytesIO(_written([ROOT, Entry(path, stat.S_IFREG)]))))


@pytest.mark.parametrize(
    "entries",
    [
        [],
        [Entry(b"a", stat.S_IFDIR)],
        [ROOT, ROOT],
        [ROOT, Entry(b"b", stat.S_IFREG), Entry(b"a", stat.S_IFREG)],
        [ROOT, Entry(b"a", stat.S_IFREG), Entry(b"a/b", stat.S_IFREG)],
        [ROOT, Entry(b"a", stat.S_IFLNK, target=b"/etc"), Entry(b"a/b", stat.S_IFREG)],
        [ROOT, Entry(b"x/b", stat.S_IFREG)],
        [ROOT, Entry(b"a", stat.S_IFREG, link=b"../x")],
        [ROOT, Entry(b"a", 0o644)],
        [ROOT, Entry(b"a", stat.S_IFREG, xattrs=((b"trusted.overlay.origin", b"x"),))],
        [ROOT, Entry(b"a", stat.S_IFREG, xattrs=((b"", b"x"),))],
        [ROOT, Entry(b"a", stat.S_IFREG, xattrs=((b"user." + b"x" * 251, b"x"),))],
        [ROOT, Entry(b"a", -1)],
        [ROOT, Entry(b"a", stat.S_IFREG | 1 << 40)],
        [ROOT, Entry(b"a", stat.S_IFREG, uid=-1)],
        [ROOT, Entry(b"a", stat.S_IFREG, gid=(1 << 32) - 1)],
        [ROOT, Entry(b"a", stat.S_IFREG, mtime_ns=1 << 63)],
        [ROOT, Entry(b"a", stat.S_IFBLK, rdev=-1)],
        [ROOT, Entry(b"a", stat.S_IFBLK, rdev=1 << 32)],
        [ROOT, Entry(b"a", stat.S_IFLNK, target=b"a\0b")],
        [ROOT, Entry(b"a", stat.S_IFREG, size_bytes=5, chunks=(Chunk(0, 6, bytes(32)),))],
        [ROOT, Entry(b"a", stat.S_IFREG, size_bytes=9, chunks=(Chunk(0, 6, bytes(31)),))],
        [ROOT, Entry(b"a", stat.S_IFDIR, size_bytes=9, chunks=(Chunk(0, 6, bytes(32)),))],
        [
            ROOT,
            Entry(b"a", stat.S_IFREG, size_bytes=1 << 30, chunks=(Chunk(0, 1 << 29, bytes(32)),)),
        ],
    ],
)
def test_what_no_layer_can_be_is_refused(entries: list[Entry]) -> None:
    with pytest.raises(DataLoss):
        list(manifest.read(io.BytesIO(_written(entries))))


def test_another_versions_rules_are_refused() -> None:
    header = msgspec.msgpack.encode(manifest.Header(format=2))
    raw = len(header).to_bytes(4) + header
    with pytest.raises(InvalidArgument, match="upgrade"):
        list(manifest.read(io.BytesIO(raw)))
