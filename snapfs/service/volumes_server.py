"""The volumes' service of snapfs.v1: translate, call the volumes, translate back."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc

from snapfs.service import volumes_v1_pb2 as pb
from snapfs.service import volumes_v1_pb2_grpc
from snapfs.service import volumes_wire as wire
from snapfs.service.convert import batches, time_ns
from snapfs.service.snapshotter import ChangedPath
from snapfs.service.status import answers
from snapfs.volumes import Note, Volumes
from snapfs.volumes.model import DEFAULT_BRANCH
from snapfs.volumes.refs import HEAD

SERVICE = pb.DESCRIPTOR.services_by_name["Volumes"].full_name

Between = Callable[[Sequence[Path], Sequence[Path]], Iterator[ChangedPath]]
"""Says how one stack of layers differs from another; overlay.diff.between is one."""


def register(server: grpc.Server, volumes: Volumes, between: Between) -> str:
    """Add the service to `server`; return its full name."""
    servicer = VolumesServicer(volumes, between)
    volumes_v1_pb2_grpc.add_VolumesServicer_to_server(servicer, server)
    return SERVICE


class VolumesServicer(volumes_v1_pb2_grpc.VolumesServicer):
    """snapfs.v1.Volumes over the volumes of one root."""

    def __init__(self, volumes: Volumes, between: Between) -> None:
        self._volumes = volumes
        self._between = between

    @answers
    def Create(
        self, request: pb.CreateVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeResponse:
        self._volumes.create(
            request.name,
            prefix=request.prefix,
            description=request.description,
            attributes=dict(request.attributes),
            mount_path=request.mount_path,
            size_bytes=request.size_bytes or None,
            branch=request.branch or DEFAULT_BRANCH,
            why=Note(author=request.author, reason="created"),
        )
        return self._describe(request.name)

    @answers
    def Clone(
        self, request: pb.CloneVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeResponse:
        self._volumes.clone(
            request.of,
            request.name,
            ref=request.ref or HEAD,
            branch=request.branch,
            mount_path=request.mount_path,
            size_bytes=request.size_bytes or None,
            why=Note(author=request.author, reason=f"cloned from {request.of}"),
        )
        return self._describe(request.name)

    @answers
    def Get(self, request: pb.GetVolumeRequest, context: grpc.ServicerContext) -> pb.VolumeResponse:
        return self._describe(request.name)

    @answers
    def List(
        self, request: pb.ListVolumesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VolumeResponse]:
        yield from map(wire.described_to_wire, self._volumes.describe_all())

    @answers
    def Remove(
        self, request: pb.RemoveVolumeRequest, context: grpc.ServicerContext
    ) -> pb.RemoveVolumeResponse:
        why = Note(author=request.author, reason="removed")
        self._volumes.remove(request.name, history=request.history, why=why)
        return pb.RemoveVolumeResponse()

    @answers
    def Mount(
        self, request: pb.MountVolumeRequest, context: grpc.ServicerContext
    ) -> pb.MountVolumeResponse:
        return pb.MountVolumeResponse(path=self._volumes.mount(request.name, request.path))

    @answers
    def Umount(
        self, request: pb.UmountVolumeRequest, context: grpc.ServicerContext
    ) -> pb.UmountVolumeResponse:
        self._volumes.umount(request.name)
        return pb.UmountVolumeResponse()

    @answers
    def Resize(
        self, request: pb.ResizeVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeResponse:
        self._volumes.resize(request.name, request.size_bytes or None)
        return self._describe(request.name)

    @answers
    def Diff(
        self, request: pb.DiffVolumeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.DiffVolumeResponse]:
        before = self._volumes.layers(request.of, getattr(request, "from") or HEAD)
        after = self._volumes.layers(request.of, request.to)
        for batch in batches(self._between(after, before)):
            yield pb.DiffVolumeResponse(
                changes=(pb.DiffVolumeResponse.Change(kind=it.kind, path=it.path) for it in batch)
            )

    @answers
    def Snapshot(
        self, request: pb.SnapshotVolumeRequest, context: grpc.ServicerContext
    ) -> pb.SnapshotVolumeResponse:
        taken = self._volumes.history.snapshot(
            request.name,
            request.message,
            branch=request.branch,
            attributes=dict(request.attributes),
            why=Note(author=request.author),
        )
        return wire.taken_to_wire(taken)

    @answers
    def Log(
        self, request: pb.LogVolumeRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VolumeSnapshot]:
        found = self._volumes.log(request.of, request.ref, everything=request.all)
        yield from map(wire.snapshot_to_wire, found)

    @answers
    def Resolve(
        self, request: pb.ResolveVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeSnapshot:
        return wire.snapshot_to_wire(self._volumes.resolve(request.of, request.ref))

    @answers
    def Reset(
        self, request: pb.ResetVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeSnapshot:
        found = self._volumes.history.reset(
            request.name,
            request.ref,
            manner=wire.manner_from_wire(request.manner),
            why=Note(author=request.author, reason=request.reason or f"reset to {request.ref}"),
        )
        return wire.snapshot_to_wire(found)

    @answers
    def Switch(
        self, request: pb.SwitchVolumeRequest, context: grpc.ServicerContext
    ) -> pb.VolumeSnapshot:
        found = self._volumes.history.switch(
            request.name,
            request.ref,
            discard=request.discard,
            manner=wire.manner_from_wire(request.manner),
            why=Note(author=request.author, reason=request.reason or f"switch to {request.ref}"),
        )
        return wire.snapshot_to_wire(found)

    @answers
    def Prune(
        self, request: pb.PruneVolumesRequest, context: grpc.ServicerContext
    ) -> pb.PruneVolumesResponse:
        count = self._volumes.history.prune(time_ns(request.before))
        return pb.PruneVolumesResponse(snapshots=count)

    @answers
    def CreateBranch(
        self, request: pb.CreateBranchRequest, context: grpc.ServicerContext
    ) -> pb.Branch:
        made = self._volumes.branches.create(
            request.of,
            request.name,
            ref=request.ref or HEAD,
            why=Note(author=request.author, reason=f"created at {request.ref or HEAD}"),
        )
        return wire.branch_to_wire(made)

    @answers
    def ListBranches(
        self, request: pb.ListBranchesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.Branch]:
        yield from map(wire.branch_to_wire, self._volumes.branches.of(request.of))

    @answers
    def RenameBranch(
        self, request: pb.RenameBranchRequest, context: grpc.ServicerContext
    ) -> pb.Branch:
        renamed = self._volumes.branches.rename(request.of, request.name, request.new_name)
        return wire.branch_to_wire(renamed)

    @answers
    def RemoveBranch(
        self, request: pb.RemoveBranchRequest, context: grpc.ServicerContext
    ) -> pb.Branch:
        why = Note(author=request.author, reason="removed")
        return wire.branch_to_wire(self._volumes.branches.remove(request.of, request.name, why=why))

    def _describe(self, name: str) -> pb.VolumeResponse:
        return wire.described_to_wire(self._volumes.describe(name))

    @answers
    def ListSets(
        self, request: pb.ListSetsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.VolumeSet]:
        yield from map(wire.set_to_wire, self._volumes.sets.walk(wire.query_from_wire(request)))

    @answers
    def EditSet(self, request: pb.EditSetRequest, context: grpc.ServicerContext) -> pb.VolumeSet:
        done = self._volumes.sets.edit(
            request.of,
            name=wire.given(request, "name"),
            prefix=wire.given(request, "prefix"),
            description=wire.given(request, "description"),
            owner=wire.given(request, "owner"),
            attributes=dict(request.attributes),
        )
        return wire.set_to_wire(done)

    @answers
    def EditSnapshot(
        self, request: pb.EditSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.VolumeSnapshot:
        done = self._volumes.sets.edit_snapshot(
            request.of,
            request.ref or HEAD,
            name=wire.given(request, "name"),
            description=wire.given(request, "description"),
            owner=wire.given(request, "owner"),
            attributes=dict(request.attributes),
        )
        return wire.snapshot_to_wire(done)

    @answers
    def RemoveSet(
        self, request: pb.RemoveSetRequest, context: grpc.ServicerContext
    ) -> pb.RemoveSetResponse:
        self._volumes.sets.remove(request.of, Note(author=request.author, reason="removed"))
        return pb.RemoveSetResponse()
