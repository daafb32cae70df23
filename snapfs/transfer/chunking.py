"""Content-defined chunks of a file's data: the same data gives the same chunks, wherever it lies.

What a manifest says of a layer hangs on these rules, so both ends must have the same: a change of
any of them is another `manifest.FORMAT`. Holes are a matter of content, not of blocks: an aligned
64 KiB of zeros is one, whether the file system has blocks for it or not, and chunks begin anew
behind it.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
from collections.abc import Iterator

from snapfs.transfer._cut import cut

LEAST_BYTES = 16 << 10
WANTED_BYTES = 64 << 10
MOST_BYTES = 256 << 10
HOLE_BYTES = 64 << 10

_WINDOW_BYTES = 4 << 20
_STRICT = ((1 << 18) - 1) << 40
_LOOSE = ((1 << 14) - 1) << 40
_ZEROS = bytes(HOLE_BYTES)


def _gear() -> bytes:
    """Return 256 numbers that look random and are the same everywhere."""
    numbers = (hashlib.sha256(b"snapfs gear %d" % byte).digest()[:8] for byte in range(256))
    return struct.pack("256Q", *(int.from_bytes(number) for number in numbers))


_GEAR = _gear()


def lengths(data: bytes | bytearray | memoryview, *, final: bool) -> list[int]:
    """Return the lengths of the chunks that `data` begins with.

    Without `final` more is to come: those only that this cannot change.
    """
    return cut(data, _GEAR, LEAST_BYTES, WANTED_BYTES, MOST_BYTES, _STRICT, _LOOSE, final)


def chunks(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of the chunks of a regular file that nobody writes; raises OSError."""
    rest, rest_at = b"", 0
    for start, data in _runs(fd):
        if rest and start != rest_at + len(rest):
            yield from _split(rest, rest_at, lengths(rest, final=True))
            rest = b""
        if not rest:
            rest_at = start
        data = rest + data
        sizes = lengths(data, final=False)
        yield from _split(data, rest_at, sizes)
        whole = sum(sizes)
        rest, rest_at = data[whole:], rest_at + whole
    yield from _split(rest, rest_at, lengths(rest, final=True))


def _split(data: bytes, start: int, sizes: list[int]) -> Iterator[tuple[int, bytes]]:
    at = 0
    for size in sizes:
        yield start + at, data[at : at + size]
        at += size


def _runs(fd: int) -> Iterator[tuple[int, bytes]]:
    """Yield (offset, data) of what is no hole; neighbours may touch."""
    size = os.fstat(fd).st_size
    at = 0
    while (at := _next_data(fd, at, size)) < size:
        window = _read(fd, at, min(_WINDOW_BYTES, size - at))
        yield from _nonzero(window, at)
        at += len(window)


def _next_data(fd: int, at: int, size: int) -> int:
    """Return the next place, at a multiple of a hole's size, that may hold more than zeros."""
    if at >= size:
        return size
    try:
        found = os.lseek(fd, at, os.SEEK_DATA)
    except OSError as error:
        if error.errno == errno.ENXIO:
            return size
        raise
    return max(at, found - found % HOLE_BYTES)


def _read(fd: int, at: int, count: int) -> bytes:
    data = os.pread(fd, count, at)
    while len(data) < count:
        more = os.pread(fd, count - len(data), at + len(data))
        if not more:
            raise OSError(errno.EIO, "the file became shorter while it was read")
        data += more
    return data


def _nonzero(window: bytes, start: int) -> Iterator[tuple[int, bytes]]:
    begin: int | None = None
    for at in range(0, len(window), HOLE_BYTES):
        block = window[at : at + HOLE_BYTES]
        is_hole = block == _ZEROS[: len(block)]
        if is_hole and begin is not None:
            yield start + begin, window[begin:at]
            begin = None
        elif not is_hole and begin is None:
            begin = at
    if begin is not None:
        yield start + begin, window[begin:]
