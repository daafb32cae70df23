"""What metadata is about: namespaces, images, containers, sandboxes, leases, content, ingests.

Values only. Names and fields are containerd's (api/services/*, core/{images,containers,sandbox,
leases,content}); times are nanoseconds since 1970, sizes bytes.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from snapfs.model import Labels

NO_LABELS: Labels = {}


@dataclass(frozen=True, slots=True)
class Context:
    """For whom something is done: the namespace, and the lease that is to hold what is made."""

    namespace: str
    lease: str = ""
    """Id of a lease of the namespace, or empty for none."""


class Descriptor(msgspec.Struct, frozen=True, array_like=True):
    """What an image points at (OCI image-spec, descriptor.md)."""

    media_type: str
    digest: str
    size_bytes: int
    annotations: dict[str, str] = {}


class Typed(msgspec.Struct, frozen=True, array_like=True):
    """A value of somebody else's type (google.protobuf.Any)."""

    type_url: str
    value: bytes = b""


class Runtime(msgspec.Struct, frozen=True, array_like=True):
    name: str
    options: Typed | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Times:
    created_ns: int = 0
    updated_ns: int = 0
    revision: int = 0
    """Revision of the store that last changed it; what an update may insist on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Namespace(Times):
    name: str
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Image(Times):
    name: str
    target: Descriptor
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Container(Times):
    id: str
    runtime: Runtime
    spec: Typed | None
    image: str = ""
    snapshotter: str = ""
    snapshot_key: str = ""
    sandbox_id: str = ""
    labels: Labels = field(default_factory=dict)
    extensions: Mapping[str, Typed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Sandbox(Times):
    id: str
    runtime: Runtime
    spec: Typed | None = None
    sandboxer: str = ""
    labels: Labels = field(default_factory=dict)
    extensions: Mapping[str, Typed] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Lease(Times):
    id: str
    labels: Labels = field(default_factory=dict)


class ResourceType(enum.Enum):
    """Kinds of things that a lease holds, in the order in which they are listed."""

    CONTENT = "content"
    IMAGE = "images"
    INGEST = "ingests"
    SNAPSHOT = "snapshots"


@dataclass(frozen=True, slots=True)
class Resource:
    """Something that a lease holds.

    `type` is `content`, `images`, `ingests` or `snapshots/SNAPSHOTTER`; `id` a digest, a name, a
    reference or a key.
    """

    type: str
    id: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Content(Times):
    digest: str
    size_bytes: int
    labels: Labels = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ingest:
    """Content that is being written."""

    ref: str
    offset_bytes: int
    total_bytes: int
    """0 when it is not known."""
    expected: str
    """Digest that it shall have, or empty."""
    started_ns: int
    updated_ns: int


@dataclass(frozen=True, slots=True, kw_only=True)
class SnapshotLink(Times):
    """A snapshot as a namespace knows it."""

    snapshotter: str
    key: str
    """Key or name, as the namespace says it."""
    backend: str
    """Key or name, as the snapshotter says it."""
    parent: str = ""
    labels: Labels = field(default_factory=dict)
