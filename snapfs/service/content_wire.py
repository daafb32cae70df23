"""The contents' part of snapfs.v1: messages from objects and back."""

from __future__ import annotations

from snapfs.metadata import Ingest
from snapfs.service import content_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp

CHUNK_BYTES = 1 << 20
"""Bytes of content that one message carries."""


def ingest_to_wire(it: Ingest) -> pb.Ingest:
    return pb.Ingest(
        ref=it.ref,
        offset_bytes=it.offset_bytes,
        total_bytes=it.total_bytes,
        expected=it.expected,
        started_at=timestamp(it.started_ns),
        updated_at=timestamp(it.updated_ns),
    )


def ingest_from_wire(message: pb.Ingest) -> Ingest:
    return Ingest(
        ref=message.ref,
        offset_bytes=message.offset_bytes,
        total_bytes=message.total_bytes,
        expected=message.expected,
        started_ns=time_ns(message.started_at),
        updated_ns=time_ns(message.updated_at),
    )
