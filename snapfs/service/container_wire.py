"""Containers and sandboxes in snapfs.v1: messages from objects and back."""

from __future__ import annotations

from collections.abc import Mapping

from google.protobuf.any_pb2 import Any

from snapfs.metadata import Container, Runtime, Sandbox, Typed
from snapfs.service import container_v1_pb2 as pb
from snapfs.service.convert import time_ns, timestamp


def container_to_wire(it: Container) -> pb.Container:
    return pb.Container(
        id=it.id,
        labels=it.labels,
        image=it.image,
        runtime=_runtime_to_wire(it.runtime),
        spec=_any(it.spec),
        snapshotter=it.snapshotter,
        snapshot_key=it.snapshot_key,
        sandbox_id=it.sandbox_id,
        extensions=_anys(it.extensions),
        created_at=timestamp(it.created_ns),
        updated_at=timestamp(it.updated_ns),
        revision=it.revision,
    )


def container_from_wire(message: pb.Container) -> Container:
    return Container(
        id=message.id,
        labels=dict(message.labels),
        image=message.image,
        runtime=_runtime_from_wire(message.runtime),
        spec=_typed(message.spec) if message.HasField("spec") else None,
        snapshotter=message.snapshotter,
        snapshot_key=message.snapshot_key,
        sandbox_id=message.sandbox_id,
        extensions=_all_typed(message.extensions),
        created_ns=time_ns(message.created_at),
        updated_ns=time_ns(message.updated_at),
        revision=message.revision,
    )


def sandbox_to_wire(it: Sandbox) -> pb.Sandbox:
    return pb.Sandbox(
        id=it.id,
        labels=it.labels,
        runtime=_runtime_to_wire(it.runtime),
        spec=_any(it.spec),
        sandboxer=it.sandboxer,
        extensions=_anys(it.extensions),
        created_at=timestamp(it.created_ns),
        updated_at=timestamp(it.updated_ns),
        revision=it.revision,
    )


def sandbox_from_wire(message: pb.Sandbox) -> Sandbox:
    return Sandbox(
        id=message.id,
        labels=dict(message.labels),
        runtime=_runtime_from_wire(message.runtime),
        spec=_typed(message.spec) if message.HasField("spec") else None,
        sandboxer=message.sandboxer,
        extensions=_all_typed(message.extensions),
        created_ns=time_ns(message.created_at),
        updated_ns=time_ns(message.updated_at),
        revision=message.revision,
    )


def _runtime_to_wire(it: Runtime) -> pb.RuntimeInfo:
    return pb.RuntimeInfo(name=it.name, options=_any(it.options))


def _runtime_from_wire(message: pb.RuntimeInfo) -> Runtime:
    options = _typed(message.options) if message.HasField("options") else None
    return Runtime(message.name, options)


def _any(it: Typed | None) -> Any | None:
    return None if it is None else Any(type_url=it.type_url, value=it.value)


def _typed(message: Any) -> Typed:
    return Typed(message.type_url, message.value)


def _anys(them: Mapping[str, Typed]) -> dict[str, Any]:
    return {name: Any(type_url=it.type_url, value=it.value) for name, it in them.items()}


def _all_typed(messages: Mapping[str, Any]) -> dict[str, Typed]:
    return {name: _typed(it) for name, it in messages.items()}
