"""The clients of containers and sandboxes: typed calls that raise what the service raised."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

from snapfs.metadata import Container, Runtime, Sandbox
from snapfs.model import Labels
from snapfs.service import container_v1_pb2 as pb
from snapfs.service import container_v1_pb2_grpc
from snapfs.service import container_wire as wire
from snapfs.service.connection import Connection


class ContainerClient(Connection):
    """snapfs.v1.Containers of one namespace over one connection."""

    def __init__(self, address: Path, namespace: str, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self.namespace = namespace
        self._stub = container_v1_pb2_grpc.ContainersStub(self._channel)

    def create(self, container: Container) -> Container:
        request = pb.CreateContainerRequest(
            namespace=self.namespace, container=wire.container_to_wire(container)
        )
        return wire.container_from_wire(self._call(self._stub.Create, request))

    def get(self, id_: str) -> Container:
        """Return a container, or raise NotFound."""
        request = pb.GetContainerRequest(namespace=self.namespace, id=id_)
        return wire.container_from_wire(self._call(self._stub.Get, request))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Container]:
        """Yield containers in order of id."""
        request = pb.ListContainersRequest(namespace=self.namespace, filters=filters)
        for answer in self._stream(self._stub.List, request):
            yield from map(wire.container_from_wire, answer.containers)

    def update(
        self, container: Container, paths: Sequence[str] = (), *, expect_revision: int | None = None
    ) -> Container:
        """Update by field mask. Raises NotFound, Conflict, InvalidArgument."""
        request = pb.UpdateContainerRequest(
            namespace=self.namespace,
            container=wire.container_to_wire(container),
            paths=paths,
            expect_revision=expect_revision or 0,
        )
        return wire.container_from_wire(self._call(self._stub.Update, request))

    def label(self, id_: str, labels: Labels) -> Container:
        """Set labels; an empty value deletes one."""
        kept = {key: value for key, value in labels.items() if value}
        wanted = Container(id=id_, labels=kept, runtime=Runtime(""), spec=None)
        return self.update(wanted, [f"labels.{key}" for key in labels])

    def remove(self, id_: str) -> None:
        request = pb.RemoveContainerRequest(namespace=self.namespace, id=id_)
        self._call(self._stub.Remove, request)


class SandboxClient(Connection):
    """snapfs.v1.Sandboxes of one namespace over one connection."""

    def __init__(self, address: Path, namespace: str, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self.namespace = namespace
        self._stub = container_v1_pb2_grpc.SandboxesStub(self._channel)

    def create(self, sandbox: Sandbox) -> Sandbox:
        request = pb.CreateSandboxRequest(
            namespace=self.namespace, sandbox=wire.sandbox_to_wire(sandbox)
        )
        return wire.sandbox_from_wire(self._call(self._stub.Create, request))

    def get(self, id_: str) -> Sandbox:
        """Return a sandbox, or raise NotFound."""
        request = pb.GetSandboxRequest(namespace=self.namespace, id=id_)
        return wire.sandbox_from_wire(self._call(self._stub.Get, request))

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Sandbox]:
        """Yield sandboxes in order of id."""
        request = pb.ListSandboxesRequest(namespace=self.namespace, filters=filters)
        for answer in self._stream(self._stub.List, request):
            yield from map(wire.sandbox_from_wire, answer.sandboxes)

    def update(
        self, sandbox: Sandbox, paths: Sequence[str] = (), *, expect_revision: int | None = None
    ) -> Sandbox:
        """Update by field mask. Raises NotFound, Conflict, InvalidArgument."""
        request = pb.UpdateSandboxRequest(
            namespace=self.namespace,
            sandbox=wire.sandbox_to_wire(sandbox),
            paths=paths,
            expect_revision=expect_revision or 0,
        )
        return wire.sandbox_from_wire(self._call(self._stub.Update, request))

    def label(self, id_: str, labels: Labels) -> Sandbox:
        """Set labels; an empty value deletes one."""
        kept = {key: value for key, value in labels.items() if value}
        wanted = Sandbox(id=id_, labels=kept, runtime=Runtime(""), spec=None)
        return self.update(wanted, [f"labels.{key}" for key in labels])

    def remove(self, id_: str) -> None:
        request = pb.RemoveSandboxRequest(namespace=self.namespace, id=id_)
        self._call(self._stub.Remove, request)
