"""A docker-archive as an OCI image: the same bytes, with a manifest of our making."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import msgspec

from snapfs.images import manifests, sources
from snapfs.images.manifests import Descriptor, DockerImage
from snapfs.images.sources import GZIP_MAGIC, ZSTD_MAGIC, Source

_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True, slots=True)
class Converted:
    """What an image of a docker-archive is in OCI's terms."""

    manifest: Descriptor
    documents: dict[str, bytes]
    """By digest: the manifest and the configuration."""
    files: dict[str, str]
    """Paths in the source, by the digest of what is there: the layers."""


def as_oci(source: Source, image: DockerImage) -> Converted:
    """Return the OCI form of an image; reads each layer once, for its digest."""
    config = sources.read(source, image.config)
    files: dict[str, str] = {}
    layers = []
    for path in image.layers:
        layer = _describe(source, path)
        files[layer.digest] = path
        layers.append(layer)
    config_digest = digest(config)
    document = {
        "schemaVersion": 2,
        "mediaType": manifests.MANIFESTS[0],
        "config": {
            "mediaType": manifests.OCI_CONFIG,
            "digest": config_digest,
            "size": len(config),
        },
        "layers": [
            {"mediaType": it.media_type, "digest": it.digest, "size": it.size} for it in layers
        ],
    }
    raw = msgspec.json.encode(document)
    manifest = Descriptor(manifests.MANIFESTS[0], digest(raw), len(raw))
    return Converted(manifest, {config_digest: config, manifest.digest: raw}, files)


def digest(raw: bytes) -> str:
    return f"sha256:{hashlib.sha256(raw).hexdigest()}"


def _describe(source: Source, path: str) -> Descriptor:
    hash_ = hashlib.sha256()
    size = 0
    head = b""
    with source.open(path) as file:
        while data := file.read(_CHUNK_BYTES):
            head = head or data[:4]
            hash_.update(data)
            size += len(data)
    suffix = ""
    if head.startswith(GZIP_MAGIC):
        suffix = "+gzip"
    elif head.startswith(ZSTD_MAGIC):
        suffix = "+zstd"
    return Descriptor(manifests.OCI_LAYER + suffix, f"sha256:{hash_.hexdigest()}", size)
