"""What supervisor and worker say to each other: one JSON object a packet, over SOCK_SEQPACKET.

The supervisor opens with `Begin` and gets `Ready`; after that each of its requests carries an id
that the `Answer` repeats. The worker never asks. Unknown fields are ignored, so that a newer
supervisor can talk to the worker of an older release.
"""

from __future__ import annotations

from typing import TypeAlias

import msgspec

from snapfs.fuse.handover import Init, InitRequest

MAX_PACKET_BYTES = 128 * 1024
PROBE_NAME = b".flush"
"""A file in a lane's root for the supervisor to open; see lane.py."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """What a worker needs to serve, beside the descriptor that it inherits."""

    unique: int
    minor: int
    max_readahead_bytes: int
    offered: int
    frozen: tuple[int, ...] = ()
    """Snapshots that are to be frozen from the first request on."""

    @classmethod
    def of(cls, init: InitRequest, frozen: tuple[int, ...]) -> Begin:
        return cls(init.unique, init.minor, init.max_readahead_bytes, int(init.offered), frozen)

    @property
    def init(self) -> InitRequest:
        return InitRequest(self.unique, self.minor, self.max_readahead_bytes, Init(self.offered))


class Freeze(msgspec.Struct, frozen=True, tag="freeze"):
    id: int
    snapshot: int
    timeout_s: float
    """The worker undoes a freeze that takes longer."""


class Thaw(msgspec.Struct, frozen=True, tag="thaw"):
    id: int
    snapshot: int


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    id: int
    snapshot: int
    timeout_s: float


class GetStatus(msgspec.Struct, frozen=True, tag="status"):
    id: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End after the requests in flight; the mount stays for a successor."""

    id: int


Request: TypeAlias = Freeze | Thaw | Drop | GetStatus | Stop


class Ready(msgspec.Struct, frozen=True, tag="ready"):
    """Requests of the kernel are being served."""

    pid: int


class WorkerStatus(msgspec.Struct, frozen=True):
    """What a worker counts. `lookups` is the kernel's references to nodes, the lane's root left
    out."""

    pid: int
    uptime_s: float
    nodes: int
    lookups: int
    files: int
    directories: int
    copying: int
    """Copy-ups under way."""
    copied: int
    trees: tuple[int, ...]
    frozen: tuple[int, ...]
    dropped: tuple[int, ...]


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    id: int
    error: str | None = None
    late: bool = False
    """The error is a deadline that passed."""
    status: WorkerStatus | None = None


Message: TypeAlias = Begin | Request | Ready | Answer

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(
    Begin | Freeze | Thaw | Drop | GetStatus | Stop | Ready | Answer
)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(packet: bytes) -> Message:
    """Read one packet, or raise msgspec.MsgspecError."""
    return _decoder.decode(packet)
