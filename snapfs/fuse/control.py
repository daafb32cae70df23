"""What supervisor and worker say to each other: one JSON object a packet, over SOCK_SEQPACKET.

The supervisor that started a worker opens with `Begin` and gets `Ready`; one that comes later, at
the worker's door, opens with `Hello` and gets `Welcome` or `Refused`. After that each request
carries an id that the `Answer` repeats. The worker never asks. Unknown fields are ignored, so that
a newer supervisor can talk to the worker of an older release; what such a one must understand is
counted in `PROTOCOL`.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TypeAlias

import msgspec

from snapfs.fuse.handover import Init, InitRequest
from snapfs.fuse.modes import Mode

PROTOCOL = 2
"""Goes up when workers and supervisors on both sides of an upgrade would not understand each other.
"""
MAX_PACKET_BYTES = 128 * 1024
PROBE_NAME = b".flush"
"""A file in a lane's root for the supervisor to open; see lane.py."""


Limits: TypeAlias = tuple[int | None, int | None]
"""Bytes and inodes that a snapshot may take at most."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """What a worker needs to serve, beside the descriptor that it inherits."""

    unique: int
    minor: int
    max_readahead_bytes: int
    offered: int
    frozen: tuple[int, ...] = ()
    """Snapshots that are to be frozen from the first request on."""
    quota: Limits = (None, None)
    """For snapshots whose labels say none."""
    paused: tuple[int, ...] = ()
    """Those of `frozen` that thaw when the supervisor goes."""

    @classmethod
    def of(
        cls, init: InitRequest, frozen: tuple[int, ...], paused: tuple[int, ...], quota: Limits
    ) -> Begin:
        offered = int(init.offered)
        readahead = init.max_readahead_bytes
        return cls(init.unique, init.minor, readahead, offered, frozen, quota, paused)

    @property
    def init(self) -> InitRequest:
        return InitRequest(self.unique, self.minor, self.max_readahead_bytes, Init(self.offered))


class Hello(msgspec.Struct, frozen=True, tag="hello"):
    """A control process that did not start this worker, and who it takes the worker for."""

    protocol: int
    version: str
    lane: str
    frozen: tuple[int, ...] = ()
    """Snapshots that it has frozen itself; all others are thawed."""
    quota: Limits = (None, None)
    """For snapshots whose labels say none."""


class Welcome(msgspec.Struct, frozen=True, tag="welcome"):
    """Who the worker is; the lane's FUSE descriptor comes with it."""

    protocol: int
    version: str
    lane: str
    served: Served
    unique: int
    minor: int
    max_readahead_bytes: int
    offered: int
    mode: str = Mode.PASSTHROUGH.value
    """The value of a Mode: what the mount was made as."""

    @classmethod
    def of(cls, version: str, lane: str, served: Served, init: InitRequest, mode: Mode) -> Welcome:
        return cls(
            PROTOCOL,
            version,
            lane,
            served,
            init.unique,
            init.minor,
            init.max_readahead_bytes,
            int(init.offered),
            mode.value,
        )

    @property
    def init(self) -> InitRequest:
        return InitRequest(self.unique, self.minor, self.max_readahead_bytes, Init(self.offered))


class Served(msgspec.Struct, frozen=True):
    """What a worker shows, and where."""

    root: str
    mountpoint: str
    device: str
    """`major:minor` of the mount."""
    layers: tuple[int, int]
    """st_dev and st_ino of the root's layers: another root may have come to the same path."""

    @classmethod
    def of(cls, root: Path, mountpoint: Path, device: str) -> Served:
        """Describe a lane, or raise OSError when there is no such root."""
        found = (root / "layers").stat()
        real = os.fspath(root.resolve())
        return cls(real, os.fspath(mountpoint), device, (found.st_dev, found.st_ino))


class Refused(msgspec.Struct, frozen=True, tag="refused"):
    protocol: int
    version: str
    reason: str


class Freeze(msgspec.Struct, frozen=True, tag="freeze"):
    id: int
    snapshot: int
    timeout_s: float
    """The worker undoes a freeze that takes longer."""
    lasting: bool = True
    """It stays when the supervisor goes, until the next one comes and says how it ended."""


class Thaw(msgspec.Struct, frozen=True, tag="thaw"):
    id: int
    snapshot: int


class Drop(msgspec.Struct, frozen=True, tag="drop"):
    id: int
    snapshot: int
    timeout_s: float


class GetStatus(msgspec.Struct, frozen=True, tag="status"):
    id: int


class GetUsage(msgspec.Struct, frozen=True, tag="usage"):
    """What a snapshot takes; answered without it when it is not shown or not counted yet."""

    id: int
    snapshot: int


class GetUnbound(msgspec.Struct, frozen=True, tag="unbound"):
    """Which files of a snapshot the kernel may write by itself, whatever its quota says."""

    id: int
    snapshot: int


class Rebind(msgspec.Struct, frozen=True, tag="rebind"):
    """The quota of a snapshot has changed in the metadata."""

    id: int
    snapshot: int


class Stop(msgspec.Struct, frozen=True, tag="stop"):
    """End after the requests in flight; the mount stays for a successor."""

    id: int


class Leave(msgspec.Struct, frozen=True, tag="leave"):
    """The control process ends: without another, unmount and end when the last user is gone."""

    id: int


Request: TypeAlias = (
    Freeze | Thaw | Drop | GetStatus | GetUsage | GetUnbound | Rebind | Stop | Leave
)


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
    copying: int
    """Copy-ups under way."""
    copied: int
    trees: tuple[int, ...]
    frozen: tuple[int, ...]
    dropped: tuple[int, ...]
    features: dict[str, str] = {}
    """What the mount could do beyond plain pyfuse3, with why it cannot; empty: it can."""
    backing: int = 0
    """Files that the kernel reads and writes by itself, or may at the next open."""
    answered: dict[str, int] = {}
    """Requests that the fast lane answered, by the name of their operation."""
    left: dict[str, int] = {}
    """... and those that it left to Python."""
    ended: int = 0
    """Files that came and went there before Python made a node of them."""
    directories: int = 0
    """Nothing: a control process of an earlier release waits for it."""


class Answer(msgspec.Struct, frozen=True, tag="answer"):
    id: int
    error: str | None = None
    late: bool = False
    """The error is a deadline that passed."""
    unfinished: bool = False
    """Part of it was done by then, for good: who asks again gets further."""
    errno: int | None = None
    """Of the error, where a system call made it."""
    refused: bool = False
    """The error is what somebody else must change first."""
    status: WorkerStatus | None = None
    usage: tuple[int, int] | None = None
    """Bytes and inodes."""
    unbound: tuple[int, tuple[str, ...]] | None = None
    """How many files, and the paths of the first few."""
    held_ns: int | None = None
    """Of a thaw: how long changes were held."""


Message: TypeAlias = Begin | Hello | Welcome | Refused | Request | Ready | Answer

_encoder = msgspec.json.Encoder()
_decoder: msgspec.json.Decoder[Message] = msgspec.json.Decoder(
    Begin
    | Hello
    | Welcome
    | Refused
    | Freeze
    | Thaw
    | Drop
    | GetStatus
    | GetUsage
    | GetUnbound
    | Rebind
    | Stop
    | Leave
    | Ready
    | Answer
)


def encode(message: Message) -> bytes:
    return _encoder.encode(message)


def decode(packet: bytes) -> Message:
    """Read one packet, or raise msgspec.MsgspecError."""
    return _decoder.decode(packet)
