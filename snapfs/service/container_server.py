"""The containers' and sandboxes' services of snapfs.v1: translate, call, translate back."""

from __future__ import annotations

from collections.abc import Iterator

import grpc

from snapfs.metadata import Context, Metadata
from snapfs.service import container_v1_pb2 as pb
from snapfs.service import container_v1_pb2_grpc
from snapfs.service import container_wire as wire
from snapfs.service.convert import batches
from snapfs.service.status import answers

CONTAINERS = pb.DESCRIPTOR.services_by_name["Containers"].full_name
SANDBOXES = pb.DESCRIPTOR.services_by_name["Sandboxes"].full_name


def register_containers(server: grpc.Server, metadata: Metadata) -> str:
    """Add the containers' service to `server`; return its full name."""
    servicer = ContainersServicer(metadata)
    container_v1_pb2_grpc.add_ContainersServicer_to_server(servicer, server)
    return CONTAINERS


def register_sandboxes(server: grpc.Server, metadata: Metadata) -> str:
    """Add the sandboxes' service to `server`; return its full name."""
    servicer = SandboxesServicer(metadata)
    container_v1_pb2_grpc.add_SandboxesServicer_to_server(servicer, server)
    return SANDBOXES


class ContainersServicer(container_v1_pb2_grpc.ContainersServicer):
    """snapfs.v1.Containers over one root."""

    def __init__(self, metadata: Metadata) -> None:
        self._containers = metadata.containers

    @answers
    def Create(
        self, request: pb.CreateContainerRequest, context: grpc.ServicerContext
    ) -> pb.Container:
        wanted = wire.container_from_wire(request.container)
        made = self._containers.create(Context(request.namespace), wanted)
        return wire.container_to_wire(made)

    @answers
    def Get(self, request: pb.GetContainerRequest, context: grpc.ServicerContext) -> pb.Container:
        return wire.container_to_wire(self._containers.get(request.namespace, request.id))

    @answers
    def List(
        self, request: pb.ListContainersRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListContainersResponse]:
        found = self._containers.walk(request.namespace, list(request.filters))
        for batch in batches(found):
            yield pb.ListContainersResponse(containers=map(wire.container_to_wire, batch))

    @answers
    def Update(
        self, request: pb.UpdateContainerRequest, context: grpc.ServicerContext
    ) -> pb.Container:
        made = self._containers.update(
            Context(request.namespace),
            wire.container_from_wire(request.container),
            list(request.paths),
            expect_revision=request.expect_revision or None,
        )
        return wire.container_to_wire(made)

    @answers
    def Remove(
        self, request: pb.RemoveContainerRequest, context: grpc.ServicerContext
    ) -> pb.RemoveContainerResponse:
        self._containers.delete(request.namespace, request.id)
        return pb.RemoveContainerResponse()


class SandboxesServicer(container_v1_pb2_grpc.SandboxesServicer):
    """snapfs.v1.Sandboxes over one root."""

    def __init__(self, metadata: Metadata) -> None:
        self._sandboxes = metadata.sandboxes

    @answers
    def Create(self, request: pb.CreateSandboxRequest, context: grpc.ServicerContext) -> pb.Sandbox:
        wanted = wire.sandbox_from_wire(request.sandbox)
        made = self._sandboxes.create(Context(request.namespace), wanted)
        return wire.sandbox_to_wire(made)

    @answers
    def Get(self, request: pb.GetSandboxRequest, context: grpc.ServicerContext) -> pb.Sandbox:
        return wire.sandbox_to_wire(self._sandboxes.get(request.namespace, request.id))

    @answers
    def List(
        self, request: pb.ListSandboxesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSandboxesResponse]:
        found = self._sandboxes.walk(request.namespace, list(request.filters))
        for batch in batches(found):
            yield pb.ListSandboxesResponse(sandboxes=map(wire.sandbox_to_wire, batch))

    @answers
    def Update(self, request: pb.UpdateSandboxRequest, context: grpc.ServicerContext) -> pb.Sandbox:
        made = self._sandboxes.update(
            Context(request.namespace),
            wire.sandbox_from_wire(request.sandbox),
            list(request.paths),
            expect_revision=request.expect_revision or None,
        )
        return wire.sandbox_to_wire(made)

    @answers
    def Remove(
        self, request: pb.RemoveSandboxRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSandboxResponse:
        self._sandboxes.delete(request.namespace, request.id)
        return pb.RemoveSandboxResponse()
