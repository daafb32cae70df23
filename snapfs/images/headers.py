"""Tar archives whose headers cannot fill the memory.

tarfile reads what stands before an entry (its name, what it links to, attributes, the map of a
sparse file) into memory whole, whatever its size is said to be.
"""

from __future__ import annotations

import tarfile
from typing import Any

MAX_BYTES = 1 << 20
"""Of all headers of one entry, and of all those that are for every entry."""


class LongHeaders(Exception):
    """Names, attributes and maps of an entry take more than any entry needs."""

    def __init__(self) -> None:
        super().__init__(f"has headers of over {MAX_BYTES} bytes")


class _Headers:
    """A stream while the headers of one entry are read from it, which tarfile does into memory."""

    def __init__(self, stream: Any) -> None:
        self.stream = stream
        self.tell = stream.tell
        self.seek = stream.seek
        self._left = MAX_BYTES

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise LongHeaders
        self._left -= size
        data: bytes = self.stream.read(size)
        return data


class _Member(tarfile.TarInfo):
    """An entry whose headers are bounded; Python's tarfile.py lets `_proc_member` be overridden."""

    def _proc_member(self, archive: BoundedTar) -> tarfile.TarInfo:
        if self.type == tarfile.XGLTYPE:
            archive.global_bytes += self.size
            if archive.global_bytes > MAX_BYTES:
                raise LongHeaders
        stream = archive.fileobj
        if isinstance(stream, _Headers):  # of an entry that has several
            return self._parse(archive)
        archive.fileobj = _Headers(stream)
        try:
            return self._parse(archive)
        finally:
            archive.fileobj = stream

    def _parse(self, archive: BoundedTar) -> tarfile.TarInfo:
        found: tarfile.TarInfo = super()._proc_member(archive)  # type: ignore[misc]  # no stubs
        return found


class BoundedTar(tarfile.TarFile):
    """An archive whose entries have bounded headers, to read from; LongHeaders."""

    tarinfo = _Member
    fileobj: Any
    members: list[tarfile.TarInfo]
    global_bytes = 0
    """Size of the headers for all entries, which are kept."""
