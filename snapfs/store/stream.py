"""The portable stream of a whole store: what `save` writes and `restore` reads.

It is the line `snapfs store 1`, then frames: length u32, CRC-32 of the payload u32, payload in
msgpack, numbers big-endian. First a Head, then a Sequence for each scope that has one, a SavedRow
for each row in order of oid, an End with the SHA-256 of all before it. Rows are as in the row
sub-database, checksums included. Intents are not in it: they are work left to do on one machine's
directories. Nor is the log: a restored store tells its changes from then on.
"""

from __future__ import annotations

import hashlib
import io
import os
import struct
import tempfile
import zlib
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any, BinaryIO, TypeAlias

import msgspec

from snapfs.model import DataLoss, FailedPrecondition, InvalidArgument
from snapfs.store import faults, schema, tables
from snapfs.store.reading import ReadTx
from snapfs.store.schema import Sub
from snapfs.store.tables import MAX_ROW_BYTES, Registry, Row, Shape, Table

VERSION = 1

_LINE = b"snapfs store "
_LINE_BYTES = 32
_FRAME = struct.Struct(">II")
_MAX_FRAME_BYTES = MAX_ROW_BYTES + 4096


class Head(msgspec.Struct, frozen=True, array_like=True, tag=0):
    uuid: bytes
    revision: int
    oid: int
    """The last oid given."""
    tables: list[Shape]


class Sequence(msgspec.Struct, frozen=True, array_like=True, tag=1):
    scope: str
    last: int


class SavedRow(msgspec.Struct, frozen=True, array_like=True, tag=2):
    oid: int
    value: bytes


class End(msgspec.Struct, frozen=True, array_like=True, tag=3):
    rows: int
    sha256: bytes


_Frame: TypeAlias = Head | Sequence | SavedRow | End
_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(_Frame)


def save(tx: ReadTx, out: BinaryIO) -> Head:
    """Write all that `tx` sees to `out`; return what its head says. It does not sync `out`."""
    digest = hashlib.sha256()

    def put(raw: bytes) -> None:
        digest.update(raw)
        out.write(raw)

    put(b"%s%d\n" % (_LINE, VERSION))
    head = Head(
        uuid=tx.uuid,
        revision=tx.revision,
        oid=tx.counter(schema.OID_KEY),
        tables=tx.stored_shapes(),
    )
    put(_frame(head))
    for scope, last in tx.sequences():
        put(_frame(Sequence(scope, last)))
    count = 0
    for key, value in tx.items(Sub.ROW):
        schema.unseal(Sub.ROW, key, value)
        put(_frame(SavedRow(schema.number(key), value)))
        count += 1
    out.write(_frame(End(count, digest.digest())))
    return head


@contextmanager
def spool(path: Path) -> Iterator[BinaryIO]:
    """Open a file without a name in the directory `path`; it is gone when the block ends."""
    with ExitStack() as stack:
        with faults.translated(path):
            file = stack.enter_context(tempfile.TemporaryFile(dir=path))
        yield file


class Stream:
    """A saved store in a file that can be read again; made by `receive`."""

    def __init__(self, file: BinaryIO, registry: Registry, head: Head) -> None:
        self._file = file
        self.registry = registry
        self.head = head

    def sequences(self) -> Iterator[Sequence]:
        for frame in self._frames():
            if isinstance(frame, Sequence):
                yield frame

    def rows(self) -> Iterator[tuple[SavedRow, Row[object]]]:
        """Yield the rows in order of oid, as they are stored and decoded."""
        for frame in self._frames():
            if isinstance(frame, SavedRow):
                yield frame, _row(self.registry, frame)

    def _frames(self) -> Iterator[_Frame]:
        self._file.seek(0)
        _read_line(self._file.read)
        while not isinstance(frame := _read_frame(self._file.read), End):
            yield frame


def saved(source: BinaryIO, tables: Iterable[Table[Any]]) -> Stream:
    """Verify a saved store in a file that can be sought; return it, good while that is open.

    Raises what `receive` does.
    """
    with open(os.devnull, "wb") as nowhere:
        received = receive(source, nowhere, Registry(tuple(tables)), Path(os.devnull))
    return Stream(source, received.registry, received.head)


def receive(source: BinaryIO, kept: BinaryIO, registry: Registry, path: Path) -> Stream:
    """Copy a stream to `kept` and verify all of it; return it as it lies there.

    Reads `source` to the end of the stream and no further. Raises InvalidArgument for something
    else than a saved store, DataLoss for one that is damaged or cut short, FailedPrecondition
    for a newer one or one with rows of a table that `registry` lacks; what writing to `kept`
    raises is said to be of `path`.
    """
    digest = hashlib.sha256()
    unhashed = b""

    def read(size: int) -> bytes:
        nonlocal unhashed
        raw = source.read(size)
        while 0 < len(raw) < size and (more := source.read(size - len(raw))):
            raw += more
        unhashed += raw
        with faults.translated(path):
            kept.write(raw)
        return raw

    _read_line(read)
    head, rows, last_oid = None, 0, 0
    while True:
        digest.update(unhashed)
        unhashed = b""
        frame = _read_frame(read)
        if isinstance(frame, End):
            break
        if (head is None) != isinstance(frame, Head):
            raise DataLoss("the saved store does not begin with its one head; fetch it again")
        if isinstance(frame, Head):
            head = frame
        if isinstance(frame, SavedRow):
            _check_row(head, last_oid, frame, _row(registry, frame))
            rows, last_oid = rows + 1, frame.oid
    if head is None or frame != End(rows, digest.digest()):
        raise DataLoss("the saved store does not match its own checksum; fetch it again")
    with faults.translated(path):
        kept.flush()
    return Stream(kept, registry, head)


def _check_row(head: Head | None, last_oid: int, saved: SavedRow, row: Row[object]) -> None:
    if head is None or not last_oid < saved.oid <= head.oid:
        raise DataLoss(f"row {saved.oid} of the saved store is out of order")
    if not 0 < row.create_rev <= row.spec_rev <= row.mod_rev <= head.revision:
        raise DataLoss(f"the revisions of row {saved.oid} of the saved store are out of order")


def _frame(frame: _Frame) -> bytes:
    payload = _encoder.encode(frame)
    return _FRAME.pack(len(payload), zlib.crc32(payload)) + payload


def _read_line(read: Callable[[int], bytes]) -> None:
    line = io.BytesIO()
    while line.tell() < _LINE_BYTES and not line.getvalue().endswith(b"\n"):
        line.write(read(1) or b"\n")
    word, _, version = line.getvalue().rstrip(b"\n").rpartition(b" ")
    if word != _LINE.rstrip() or not version.isdigit():
        raise InvalidArgument("this is not a saved store; name a file that `save` has written")
    if int(version) != VERSION:
        raise FailedPrecondition(
            f"the saved store is of version {int(version)} and this snapfs reads {VERSION}; "
            "use the snapfs that wrote it or a newer one"
        )


def _read_frame(read: Callable[[int], bytes]) -> _Frame:
    header = read(_FRAME.size)
    length, crc = _FRAME.unpack(header) if len(header) == _FRAME.size else (0, 0)
    payload = read(length) if 0 < length <= _MAX_FRAME_BYTES else b""
    if not payload or len(payload) != length or zlib.crc32(payload) != crc:
        raise DataLoss("the saved store is damaged or cut short; fetch it again")
    try:
        frame: _Frame = _decoder.decode(payload)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"the saved store is damaged ({error}); fetch it again") from error
    return frame


def _row(registry: Registry, saved: SavedRow) -> Row[object]:
    tag, packed = tables.decode_tag(saved.oid, saved.value)
    table = registry.by_tag.get(tag)
    if table is None:
        raise FailedPrecondition(
            f"the saved store has rows of table {tag}, which this program does not know; "
            "use the program that made them"
        )
    return tables.decode_row(table, saved.oid, packed)
