"""Documents of images: indexes, manifests, configurations, and what docker-archives have instead.

Pure: bytes in, values out. Sources: OCI image-spec 1.1; the docker-archive layout of `docker save`.
Unknown fields are kept where they must be (a document is content and never written anew).
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import msgspec

from snapfs.metadata.words import is_digest, shown
from snapfs.model import FailedPrecondition, InvalidArgument

OCI = "application/vnd.oci.image."
DOCKER = "application/vnd.docker."
INDEXES = (OCI + "index.v1+json", DOCKER + "distribution.manifest.list.v2+json")
MANIFESTS = (OCI + "manifest.v1+json", DOCKER + "distribution.manifest.v2+json")
OCI_CONFIG = OCI + "config.v1+json"
OCI_LAYER = OCI + "layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"
IMAGE_NAME = "io.containerd.image.name"
MAX_DOCUMENT_BYTES = 8 << 20
"""Longest document that is read whole."""

MAX_LAYERS = 500
"""More than any builder makes, and what kernel overlayfs mounts."""

MAX_NESTED = 8
"""Indexes on the way to a manifest; more than one is rare."""

_MACHINES = {"x86_64": "amd64", "aarch64": "arm64", "armv7l": "arm", "ppc64le": "ppc64le"}


class Platform(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""

    def __str__(self) -> str:
        return "/".join(part for part in (self.os, self.architecture, self.variant) if part)


class Descriptor(msgspec.Struct, frozen=True, rename="camel"):
    media_type: str
    digest: str
    size: int
    annotations: dict[str, str] = {}
    platform: Platform | None = None


class Typed(msgspec.Struct, frozen=True, rename="camel"):
    """Any document that says what it is; those of OCI may leave that to who refers to them."""

    media_type: str = ""
    manifests: list[Descriptor] | None = None

    @property
    def kind(self) -> str:
        """The media type, from its form where it is not said."""
        fallback = (MANIFESTS if self.manifests is None else INDEXES)[0]
        return self.media_type or fallback


class Index(msgspec.Struct, frozen=True, rename="camel"):
    manifests: list[Descriptor]


class Manifest(msgspec.Struct, frozen=True, rename="camel"):
    config: Descriptor
    layers: list[Descriptor]


class RootFs(msgspec.Struct, frozen=True):
    diff_ids: list[str] = []


class History(msgspec.Struct, frozen=True):
    created: str = ""
    created_by: str = ""
    comment: str = ""
    empty_layer: bool = False


class Config(msgspec.Struct, frozen=True):
    architecture: str = ""
    os: str = ""
    variant: str = ""
    created: str = ""
    rootfs: RootFs = RootFs()
    history: list[History] = []

    @property
    def platform(self) -> Platform:
        return Platform(self.architecture, self.os, self.variant)


class DockerImage(msgspec.Struct, frozen=True, rename="pascal"):
    """One image of a docker-archive's manifest.json."""

    config: str
    layers: list[str]
    repo_tags: list[str] | None = None


@dataclass(frozen=True, slots=True)
class Layer:
    """A layer of one image."""

    descriptor: Descriptor
    diff_id: str
    chain_id: str
    """Names the layer with all below it (image-spec, config.md, Layer ChainID)."""


Document = TypeVar("Document")


def parse(raw: bytes, kind: type[Document], what: str) -> Document:
    """Return the document in `raw`, or raise InvalidArgument naming `what`."""
    try:
        return msgspec.json.decode(raw, type=kind)
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{what} is not what it should be: {error}") from None


def is_index(descriptor: Descriptor) -> bool:
    return descriptor.media_type in INDEXES


def is_manifest(descriptor: Descriptor) -> bool:
    return descriptor.media_type in MANIFESTS


def check(descriptor: Descriptor, what: str) -> Descriptor:
    """Return the descriptor, or raise InvalidArgument when it cannot name content."""
    if not is_digest(descriptor.digest) or descriptor.size < 0:
        raise InvalidArgument(f"{what}: {shown(descriptor.digest)} cannot name content")
    return descriptor


def layers(manifest: Manifest, config: Config, what: str) -> tuple[Layer, ...]:
    """Return the layers of an image, lowest first."""
    diff_ids = config.rootfs.diff_ids
    if len(diff_ids) != len(manifest.layers):
        raise InvalidArgument(
            f"{what} has {len(manifest.layers)} layers, but its configuration names {len(diff_ids)}"
        )
    if len(diff_ids) > MAX_LAYERS:
        raise InvalidArgument(
            f"{what} has {len(diff_ids)} layers; at most {MAX_LAYERS} can be used"
        )
    found = []
    chain = ""
    for descriptor, diff_id in zip(manifest.layers, diff_ids, strict=True):
        if not is_digest(diff_id):
            raise InvalidArgument(f"{what}: {shown(diff_id)} cannot be the digest of a layer")
        chain = chain_id(chain, diff_id)
        found.append(Layer(check(descriptor, what), diff_id, chain))
    return tuple(found)


def chain_id(below: str, diff_id: str) -> str:
    """Return what names a layer on the chain `below`; the lowest one's is its own digest."""
    if not below:
        return diff_id
    return f"sha256:{hashlib.sha256(f'{below} {diff_id}'.encode()).hexdigest()}"


def host() -> Platform:
    """Return the platform of this machine."""
    machine = os.uname().machine
    return Platform(_MACHINES.get(machine, machine), "linux")


def parse_platform(text: str) -> Platform:
    """Return OS/ARCHITECTURE[/VARIANT], or raise InvalidArgument."""
    parts = text.split("/")
    if not 2 <= len(parts) <= 3 or not all(parts):
        raise InvalidArgument(f"platform {shown(text)} must be OS/ARCHITECTURE or with /VARIANT")
    return Platform(parts[1], parts[0], parts[2] if len(parts) == 3 else "")


def choose(manifests: Sequence[Descriptor], wanted: Platform, what: str) -> Descriptor:
    """Return the manifest for a platform; the only one if it does not say for which it is."""
    runnable = [each for each in manifests if is_manifest(each) or is_index(each)]
    for each in runnable:
        if each.platform is not None and _suits(each.platform, wanted):
            return each
    if len(runnable) == 1 and runnable[0].platform is None:
        return runnable[0]
    there = ", ".join(sorted({str(each.platform) for each in runnable if each.platform})) or "none"
    raise FailedPrecondition(f"{what} has no image for {wanted}; it has: {there}")


def check_platform(offered: Platform, wanted: Platform | None, what: str) -> None:
    """Raise FailedPrecondition when an image is for another platform than somebody asked for."""
    if wanted is not None and offered.architecture and not _suits(offered, wanted):
        raise FailedPrecondition(f"{what} is for {offered}, and not for {wanted}")


def _suits(offered: Platform, wanted: Platform) -> bool:
    same = (offered.os, offered.architecture) == (wanted.os, wanted.architecture)
    return same and (not wanted.variant or offered.variant == wanted.variant)


def names(annotations: dict[str, str]) -> Iterable[str]:
    """Return what an index's annotations call an image: its full name, or its tag."""
    full = annotations.get(IMAGE_NAME) or annotations.get(REF_NAME)
    return (full,) if full else ()
