"""Parcels between stores: records in MessagePack, in messages of a bounded size."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, TypeVar

import msgspec

from snapfs.anchors import History
from snapfs.model import InvalidArgument, ResourceExhausted
from snapfs.service import sync_v1_pb2 as pb
from snapfs.sync.items import Item
from snapfs.sync.peer import Answer, Hello, SetName
from snapfs.sync.planning import Change
from snapfs.transfer import Offer, Packed

T = TypeVar("T")

PARCEL_BYTES = 1 << 20
"""Records of one parcel take about so much; a single one may take more."""

MAX_DESCRIPTION_BYTES = 256 << 20
"""Most that is taken of what another store says of a set or of its histories: it is held whole."""

OFFER = "offer"
MANIFEST = "manifest"
WANTED = "wanted"
CHUNKS = "chunks"
END = "end"
HAVE = "have"
DONE = "done"

_decoders: dict[type, msgspec.msgpack.Decoder[Any]] = {
    kind: msgspec.msgpack.Decoder(kind)
    for kind in (Answer, Change, Hello, History, Item, Offer, Packed, SetName)
}


def encode(record: msgspec.Struct) -> bytes:
    return msgspec.msgpack.encode(record)


def decode(kind: type[T], raw: bytes) -> T:
    """Return a record, or raise InvalidArgument when `raw` is none of this kind."""
    try:
        record: T = _decoders[kind].decode(raw)
    except msgspec.MsgspecError as error:
        raise InvalidArgument(
            f"what the other side sent is no {kind.__name__.lower()} ({error}); upgrade the older"
        ) from error
    return record


def decode_all(kind: type[T], parcels: Iterable[pb.Parcel]) -> Iterator[T]:
    """Yield the records of parcels."""
    for parcel in parcels:
        for raw in parcel.records:
            yield decode(kind, raw)


def bounded(parcels: Iterable[pb.Parcel], limit_bytes: int) -> Iterator[pb.Parcel]:
    """Yield parcels; raise ResourceExhausted when their records are more than can be held."""
    total = 0
    for parcel in parcels:
        total += sum(map(len, parcel.records))
        if total > limit_bytes:
            raise ResourceExhausted(
                f"the other side sends more than {limit_bytes >> 20} MiB of descriptions; take "
                "branches away that nobody needs, or do not sync with it"
            )
        yield parcel


def only(kind: type[T], parcel: pb.Parcel) -> T:
    """Return the one record of a parcel, or raise InvalidArgument."""
    if len(parcel.records) != 1:
        raise InvalidArgument(f"a parcel has {len(parcel.records)} records, where one is wanted")
    return decode(kind, parcel.records[0])


def pack(records: Iterable[bytes], kind: str = "") -> Iterator[pb.Parcel]:
    """Yield parcels that together have all records, in their order; at least one."""
    waiting: list[bytes] = []
    size = 0
    for record in records:
        waiting.append(record)
        size += len(record)
        if size >= PARCEL_BYTES:
            yield pb.Parcel(kind=kind, records=waiting)
            waiting, size = [], 0
    yield pb.Parcel(kind=kind, records=waiting)
