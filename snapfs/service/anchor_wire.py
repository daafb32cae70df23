"""The anchors' part of snapfs.v1: messages from entries and back; nothing is lost either way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from snapfs.anchors import Deleted, Entry, Put, Ref
from snapfs.model import Internal
from snapfs.service import snapfs_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp


def reference_to_wire(ref: Ref) -> pb.Reference:
    return pb.Reference(type=ref.type, value=ref.value)


def reference_from_wire(message: pb.Reference) -> Ref:
    return Ref(message.type, message.value)


def moment_to_wire(at_ns: int | None) -> Timestamp | None:
    return None if at_ns is None else timestamp(at_ns)


def entry_to_wire(entry: Entry) -> pb.AnchorEntry:
    return pb.AnchorEntry(
        name=entry.name,
        at=timestamp(entry.at_ns),
        reference=None if entry.ref is None else reference_to_wire(entry.ref),
        author=entry.author,
        reason=entry.reason,
        revision=entry.revision,
    )


def entry_from_wire(message: pb.AnchorEntry) -> Entry:
    if not message.HasField("reference"):
        return Deleted(
            name=message.name,
            at_ns=time_ns(message.at),
            author=message.author,
            reason=message.reason,
            revision=message.revision,
        )
    return Put(
        name=message.name,
        at_ns=time_ns(message.at),
        ref=reference_from_wire(message.reference),
        author=message.author,
        reason=message.reason,
        revision=message.revision,
    )


def entries_from_wire(messages: Iterable[pb.AnchorEntry]) -> Iterator[Entry]:
    return map(entry_from_wire, messages)


def put_from_wire(message: pb.AnchorEntry) -> Put:
    """Return an entry that has a reference, as the service promised."""
    match entry_from_wire(message):
        case Put() as put:
            return put
        case Deleted():
            raise Internal("the service sent an entry without a reference; see its log")


def deleted_from_wire(message: pb.AnchorEntry) -> Deleted:
    """Return an entry that has no reference, as the service promised."""
    match entry_from_wire(message):
        case Deleted() as deleted:
            return deleted
        case Put():
            raise Internal("the service sent an entry that deletes nothing; see its log")
