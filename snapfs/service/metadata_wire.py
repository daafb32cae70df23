"""The images' and metadata's part of snapfs.v1: messages from objects and back."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapfs.images import Described
from snapfs.metadata import Content, Garbage, Lease, Name, Namespace, Resource, Step, resources
from snapfs.metadata.schema import CollectionBody
from snapfs.model import Labels
from snapfs.service import metadata_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp


@dataclass(frozen=True, slots=True)
class LayerRecord:
    """A layer of an image, as the service tells of it."""

    digest: str
    size_bytes: int
    diff_id: str
    snapshot: str
    created_by: str


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """An image, as the service tells of it."""

    name: str
    media_type: str
    digest: str
    labels: Labels
    created_ns: int
    updated_ns: int
    snapshot: str
    platform: str
    layers: tuple[LayerRecord, ...]
    size_bytes: int


@dataclass(frozen=True, slots=True)
class LeaseRecord:
    """A lease with what it holds."""

    id: str
    labels: Labels
    created_ns: int
    resources: tuple[Resource, ...]


def image_to_wire(it: Described) -> pb.Image:
    layers = [
        pb.ImageLayer(
            digest=layer.descriptor.digest,
            size_bytes=layer.descriptor.size,
            diff_id=layer.diff_id,
            snapshot=layer.chain_id,
            created_by=made,
        )
        for layer, made in zip(it.layers, it.created_by, strict=True)
    ]
    return pb.Image(
        name=it.image.name,
        media_type=it.image.target.media_type,
        digest=it.image.target.digest,
        labels=it.image.labels,
        created_at=timestamp(it.image.created_ns),
        updated_at=timestamp(it.image.updated_ns),
        snapshot=it.snapshot,
        platform=it.platform,
        layers=layers,
        size_bytes=it.size_bytes,
    )


def image_from_wire(message: pb.Image) -> ImageRecord:
    return ImageRecord(
        message.name,
        message.media_type,
        message.digest,
        dict(message.labels),
        time_ns(message.created_at),
        time_ns(message.updated_at),
        message.snapshot,
        message.platform,
        tuple(
            LayerRecord(it.digest, it.size_bytes, it.diff_id, it.snapshot, it.created_by)
            for it in message.layers
        ),
        message.size_bytes,
    )


def namespace_to_wire(it: Namespace) -> pb.Namespace:
    return pb.Namespace(name=it.name, labels=it.labels)


def namespace_from_wire(message: pb.Namespace) -> Namespace:
    return Namespace(name=message.name, labels=dict(message.labels))


def resource_to_wire(it: Resource) -> pb.Resource:
    return pb.Resource(type=it.type, id=it.id)


def resources_from_wire(messages: Iterable[pb.Resource]) -> tuple[Resource, ...]:
    return tuple(Resource(it.type, it.id) for it in messages)


def object_from_wire(message: pb.Resource) -> Name:
    """Return what a resource means, or raise InvalidArgument."""
    return resources.parse(Resource(message.type, message.id))


def lease_to_wire(it: Lease, held: Iterable[Resource]) -> pb.Lease:
    return pb.Lease(
        id=it.id,
        labels=it.labels,
        created_at=timestamp(it.created_ns),
        resources=map(resource_to_wire, held),
    )


def lease_from_wire(message: pb.Lease) -> LeaseRecord:
    return LeaseRecord(
        message.id,
        dict(message.labels),
        time_ns(message.created_at),
        resources_from_wire(message.resources),
    )


def content_to_wire(it: Content) -> pb.Content:
    return pb.Content(
        digest=it.digest,
        size_bytes=it.size_bytes,
        labels=it.labels,
        created_at=timestamp(it.created_ns),
    )


def content_from_wire(message: pb.Content) -> Content:
    return Content(
        digest=message.digest,
        size_bytes=message.size_bytes,
        labels=dict(message.labels),
        created_ns=time_ns(message.created_at),
    )


def collection_to_wire(it: CollectionBody) -> pb.Collection:
    return pb.Collection(
        began_at=timestamp(it.began_ns),
        elapsed_ns=it.elapsed_ns,
        mark_ns=it.mark_ns,
        marked=it.marked,
        removed=it.removed,
        failed=it.failed,
    )


def collection_from_wire(message: pb.Collection) -> CollectionBody:
    return CollectionBody(
        time_ns(message.began_at),
        message.elapsed_ns,
        message.marked,
        dict(message.removed),
        message.mark_ns,
        message.failed,
    )


def step_to_wire(it: Garbage | Step) -> pb.Garbage:
    return pb.Garbage(table=it.table, namespace=it.namespace, name=it.name)


def step_from_wire(message: pb.Garbage) -> Step:
    return Step(message.table, message.namespace, message.name)
