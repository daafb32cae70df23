"""Small conversions that both services share: times, mounts, batches."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import TypeVar

from google.protobuf.timestamp_pb2 import Timestamp

BATCH = 100
"""Records a message of a stream carries, as containerd's own service does."""

_T = TypeVar("_T")

_SECOND_NS = 1_000_000_000


def timestamp(time_ns: int) -> Timestamp:
    """Return a time since the epoch, in nanoseconds, as protobuf has it; nothing is rounded."""
    seconds, nanos = divmod(time_ns, _SECOND_NS)
    return Timestamp(seconds=seconds, nanos=nanos)


def time_ns(stamp: Timestamp) -> int:
    """Return a protobuf time in nanoseconds since the epoch."""
    return stamp.seconds * _SECOND_NS + stamp.nanos


def batches(items: Iterable[_T], size: int = BATCH) -> Iterator[list[_T]]:
    """Yield the items in lists of at most `size`; nothing for no items."""
    source = iter(items)
    while batch := list(islice(source, size)):
        yield batch
