"""Chunks on their way: zstd, with what the other side has already as the dictionary.

The base of a chunk is what the file of the same path has around the same place in a layer below.
Both sides have that layer, so a page changed within a chunk costs the page, not the chunk. A base
is a hint: the digest of what was unpacked decides.
"""

from __future__ import annotations

import hashlib

import msgspec
import zstandard

from snapfs.model import DataLoss
from snapfs.transfer.manifest import Chunk

LEVEL = 3
MARGIN_BYTES = 16 << 10
"""How far a base reaches beyond its chunk, on either side."""


class Packed(msgspec.Struct, frozen=True, array_like=True):
    """A chunk as it travels."""

    digest: bytes
    base: int
    """0: packed alone; else one more than the number of the layer, counted from the parent."""
    data: bytes


def pack(chunk: Chunk, data: bytes, base: bytes = b"", layer: int = 0) -> Packed:
    """Compress a chunk; with a base, which lies in layer number `layer` below."""
    if not base:
        compressor = zstandard.ZstdCompressor(level=LEVEL)
        return Packed(chunk.digest, 0, compressor.compress(data))
    dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    compressor = zstandard.ZstdCompressor(level=LEVEL, dict_data=dictionary)
    return Packed(chunk.digest, layer + 1, compressor.compress(data))


def unpack(chunk: Chunk, packed: bytes, base: bytes = b"") -> bytes:
    """Return a chunk's data, or raise DataLoss when it is not what the chunk's digest names."""
    dictionary = None
    if base:
        dictionary = zstandard.ZstdCompressionDict(base, dict_type=zstandard.DICT_TYPE_RAWCONTENT)
    try:
        if zstandard.frame_content_size(packed) != chunk.size_bytes:
            raise _damaged(chunk)
        data = zstandard.ZstdDecompressor(dict_data=dictionary).decompress(packed)
    except zstandard.ZstdError as error:
        raise _damaged(chunk) from error
    if not matches(chunk, data):
        raise _damaged(chunk)
    return data


def matches(chunk: Chunk, data: bytes) -> bool:
    """Say whether `data` is what the chunk's digest names."""
    return len(data) == chunk.size_bytes and hashlib.sha256(data).digest() == chunk.digest


def base_range(chunk: Chunk) -> tuple[int, int]:
    """Return offset and length of a chunk's base in the file below."""
    start = max(0, chunk.offset - MARGIN_BYTES)
    return start, chunk.offset + chunk.size_bytes + MARGIN_BYTES - start


def _damaged(chunk: Chunk) -> DataLoss:
    return DataLoss(
        f"chunk {chunk.digest.hex()[:16]} is not what its digest names; transfer it again"
    )
