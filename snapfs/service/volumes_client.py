"""The client of the volumes' service: typed calls that raise the SnapfsError that was raised."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path

from snapfs.service import volumes_v1_pb2 as pb
from snapfs.service import volumes_v1_pb2_grpc
from snapfs.service import volumes_wire as wire
from snapfs.service.connection import Connection
from snapfs.service.convert import timestamp
from snapfs.volumes import Branch, Described, Manner, Taken, VolumeSet, VolumeSnapshot
from snapfs.volumes.queries import Query


class VolumesClient(Connection):
    """snapfs.v1.Volumes over one connection; the calls are those of volumes.Volumes.

    References have their times in nanoseconds (volumes/refs.py).
    """

    def __init__(self, address: Path, *, author: str = "", timeout_s: float = 60) -> None:
        """`author` is who makes the changes, for the history."""
        super().__init__(address, timeout_s=timeout_s)
        self.author = author
        self._stub = volumes_v1_pb2_grpc.VolumesStub(self._channel)

    def create(
        self,
        name: str,
        *,
        prefix: str = "",
        description: str = "",
        attributes: Mapping[str, str] | None = None,
        mount_path: str = "",
        size_bytes: int = 0,
        branch: str = "",
    ) -> Described:
        request = pb.CreateVolumeRequest(
            name=name,
            prefix=prefix,
            description=description,
            attributes=dict(attributes or {}),
            mount_path=mount_path,
            size_bytes=size_bytes,
            branch=branch,
            author=self.author,
        )
        return wire.described_from_wire(self._call(self._stub.Create, request))

    def clone(
        self,
        of: str,
        name: str,
        *,
        ref: str = "",
        branch: str = "",
        mount_path: str = "",
        size_bytes: int = 0,
    ) -> Described:
        request = pb.CloneVolumeRequest(
            of=of,
            name=name,
            ref=ref,
            branch=branch,
            mount_path=mount_path,
            size_bytes=size_bytes,
            author=self.author,
        )
        return wire.described_from_wire(self._call(self._stub.Clone, request))

    def describe(self, name: str) -> Described:
        request = pb.GetVolumeRequest(name=name)
        return wire.described_from_wire(self._call(self._stub.Get, request))

    def walk(self) -> Iterator[Described]:
        return map(wire.described_from_wire, self._stream(self._stub.List, pb.ListVolumesRequest()))

    def remove(self, name: str, *, history: bool = False) -> None:
        request = pb.RemoveVolumeRequest(name=name, history=history, author=self.author)
        self._call(self._stub.Remove, request)

    def mount(self, name: str, path: str = "") -> str:
        return self._call(self._stub.Mount, pb.MountVolumeRequest(name=name, path=path)).path

    def umount(self, name: str) -> None:
        self._call(self._stub.Umount, pb.UmountVolumeRequest(name=name))

    def resize(self, name: str, size_bytes: int) -> Described:
        """Set what the volume's own changes may take; 0 for no limit."""
        request = pb.ResizeVolumeRequest(name=name, size_bytes=size_bytes)
        return wire.described_from_wire(self._call(self._stub.Resize, request))

    def diff(self, of: str, before: str = "", after: str = "") -> Iterator[tuple[str, bytes]]:
        """Yield kind and path of what differs; "" is HEAD before, and the working copy after."""
        request = pb.DiffVolumeRequest(of=of, to=after, **{"from": before})
        for response in self._stream(self._stub.Diff, request):
            yield from ((it.kind, it.path) for it in response.changes)

    def snapshot(
        self,
        name: str,
        message: str,
        *,
        branch: str = "",
        attributes: Mapping[str, str] | None = None,
    ) -> Taken:
        request = pb.SnapshotVolumeRequest(
            name=name,
            message=message,
            branch=branch,
            attributes=dict(attributes or {}),
            author=self.author,
        )
        return wire.taken_from_wire(self._call(self._stub.Snapshot, request))

    def log(self, of: str, ref: str = "", *, everything: bool = False) -> Iterator[VolumeSnapshot]:
        request = pb.LogVolumeRequest(of=of, ref=ref, all=everything)
        return map(wire.snapshot_from_wire, self._stream(self._stub.Log, request))

    def resolve(self, of: str, ref: str) -> VolumeSnapshot:
        request = pb.ResolveVolumeRequest(of=of, ref=ref)
        return wire.snapshot_from_wire(self._call(self._stub.Resolve, request))

    def reset(self, name: str, ref: str, *, manner: Manner, reason: str = "") -> VolumeSnapshot:
        request = pb.ResetVolumeRequest(
            name=name,
            ref=ref,
            manner=wire.manner_to_wire(manner),
            author=self.author,
            reason=reason,
        )
        return wire.snapshot_from_wire(self._call(self._stub.Reset, request))

    def switch(
        self, name: str, ref: str, *, discard: bool, manner: Manner, reason: str = ""
    ) -> VolumeSnapshot:
        request = pb.SwitchVolumeRequest(
            name=name,
            ref=ref,
            discard=discard,
            manner=wire.manner_to_wire(manner),
            author=self.author,
            reason=reason,
        )
        return wire.snapshot_from_wire(self._call(self._stub.Switch, request))

    def sets(self, query: Query) -> Iterator[VolumeSet]:
        return map(wire.set_from_wire, self._stream(self._stub.ListSets, wire.query_to_wire(query)))

    def edit_set(
        self,
        of: str,
        *,
        name: str | None = None,
        prefix: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> VolumeSet:
        request = pb.EditSetRequest(
            of=of,
            name=name,
            prefix=prefix,
            description=description,
            owner=owner,
            attributes=dict(attributes or {}),
        )
        return wire.set_from_wire(self._call(self._stub.EditSet, request))

    def edit_snapshot(
        self,
        of: str,
        ref: str,
        *,
        name: str | None = None,
        description: str | None = None,
        owner: str | None = None,
        attributes: Mapping[str, str] | None = None,
    ) -> VolumeSnapshot:
        request = pb.EditSnapshotRequest(
            of=of,
            ref=ref,
            name=name,
            description=description,
            owner=owner,
            attributes=dict(attributes or {}),
        )
        return wire.snapshot_from_wire(self._call(self._stub.EditSnapshot, request))

    def remove_set(self, of: str) -> None:
        self._call(self._stub.RemoveSet, pb.RemoveSetRequest(of=of, author=self.author))

    def prune(self, before_ns: int) -> int:
        request = pb.PruneVolumesRequest(before=timestamp(before_ns))
        return self._call(self._stub.Prune, request).snapshots

    def create_branch(self, of: str, name: str, *, ref: str = "") -> Branch:
        request = pb.CreateBranchRequest(of=of, name=name, ref=ref, author=self.author)
        return wire.branch_from_wire(self._call(self._stub.CreateBranch, request))

    def branches(self, of: str) -> Iterator[Branch]:
        request = pb.ListBranchesRequest(of=of)
        return map(wire.branch_from_wire, self._stream(self._stub.ListBranches, request))

    def rename_branch(self, of: str, name: str, new_name: str) -> Branch:
        request = pb.RenameBranchRequest(of=of, name=name, new_name=new_name)
        return wire.branch_from_wire(self._call(self._stub.RenameBranch, request))

    def remove_branch(self, of: str, name: str) -> Branch:
        request = pb.RemoveBranchRequest(of=of, name=name, author=self.author)
        return wire.branch_from_wire(self._call(self._stub.RemoveBranch, request))
