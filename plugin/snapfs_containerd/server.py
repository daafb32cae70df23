"""The containerd.services.snapshots.v1 server: translate, call a snapshotter, translate back.

Which snapshotter is meant, and what a caller may see of it, is served.py's business; every refusal
is the snapshotter's, the table from errors to status is service/status.py's. See
docs/containerd.md and, for registered snapshotters, docs/metadata.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

import grpc
from google.protobuf.empty_pb2 import Empty

from snapfs.metadata import Backend
from snapfs.model import InvalidArgument
from snapfs.service.convert import batches
from snapfs.service.offered import Offered
from snapfs.service.snapshotter import Snapshotter
from snapfs.service.status import answers
from snapfs_containerd import snapshots_pb2 as pb
from snapfs_containerd import snapshots_pb2_grpc
from snapfs_containerd.names import NAME, is_accepted
from snapfs_containerd.served import InNamespace, Own
from snapfs_containerd.wire import caller, info_to_wire, mount_to_wire

SERVICE = pb.DESCRIPTOR.services_by_name["Snapshots"].full_name

Choose = Callable[[str, grpc.ServicerContext], Backend]
"""Returns the snapshotter that a call names, or raises InvalidArgument."""


def register(server: grpc.Server, offered: Offered) -> str:
    """Add the service to `server`; return its full name (entry point snapfs.services)."""
    own = Own(offered.snapshotter)

    def choose(name: str, context: grpc.ServicerContext) -> Backend:
        if name in offered.config.snapshotters:
            return InNamespace(offered.metadata.snapshots(name), caller(context))
        _check_own(name)
        return own

    return _register(server, choose)


def register_snapshots(server: grpc.Server, snapshotter: Snapshotter) -> str:
    """Add the service over one snapshotter to `server`; return its full name."""
    own = Own(snapshotter)

    def choose(name: str, _context: grpc.ServicerContext) -> Backend:
        _check_own(name)
        return own

    return _register(server, choose)


def _register(server: grpc.Server, choose: Choose) -> str:
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsServicer(choose), server)
    return SERVICE


def _check_own(name: str) -> None:
    # containerd's own service says InvalidArgument too for a snapshotter it does not have.
    if not is_accepted(name):
        raise InvalidArgument(
            f"snapshotter {name!r} is not served here: call the proxy_plugins stanza "
            f"'{NAME}', or '{NAME}-' and a suffix"
        )


class SnapshotsServicer(snapshots_pb2_grpc.SnapshotsServicer):
    """containerd's snapshots service."""

    def __init__(self, choose: Choose) -> None:
        self._choose = choose

    @answers
    def Prepare(
        self, request: pb.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.PrepareSnapshotResponse:
        of = self._choose(request.snapshotter, context)
        mounts = of.prepare(request.key, request.parent, dict(request.labels))
        return pb.PrepareSnapshotResponse(mounts=map(mount_to_wire, mounts))

    @answers
    def View(
        self, request: pb.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.ViewSnapshotResponse:
        of = self._choose(request.snapshotter, context)
        mounts = of.view(request.key, request.parent, dict(request.labels))
        return pb.ViewSnapshotResponse(mounts=map(mount_to_wire, mounts))

    @answers
    def Mounts(self, request: pb.MountsRequest, context: grpc.ServicerContext) -> pb.MountsResponse:
        mounts = self._choose(request.snapshotter, context).mounts(request.key)
        return pb.MountsResponse(mounts=map(mount_to_wire, mounts))

    @answers
    def Commit(self, request: pb.CommitSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        of = self._choose(request.snapshotter, context)
        of.commit(request.key, request.name, dict(request.labels), request.parent)
        return Empty()

    @answers
    def Remove(self, request: pb.RemoveSnapshotRequest, context: grpc.ServicerContext) -> Empty:
        self._choose(request.snapshotter, context).remove(request.key)
        return Empty()

    @answers
    def Stat(
        self, request: pb.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.StatSnapshotResponse:
        found = self._choose(request.snapshotter, context).stat(request.key)
        return pb.StatSnapshotResponse(info=info_to_wire(found))

    @answers
    def Update(
        self, request: pb.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> pb.UpdateSnapshotResponse:
        of, info = self._choose(request.snapshotter, context), request.info
        changed = of.update(info.name, dict(info.labels), list(request.update_mask.paths))
        return pb.UpdateSnapshotResponse(info=info_to_wire(changed))

    @answers
    def List(
        self, request: pb.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListSnapshotsResponse]:
        of = self._choose(request.snapshotter, context)
        for batch in batches(of.walk(list(request.filters))):
            yield pb.ListSnapshotsResponse(info=map(info_to_wire, batch))

    @answers
    def Usage(self, request: pb.UsageRequest, context: grpc.ServicerContext) -> pb.UsageResponse:
        usage = self._choose(request.snapshotter, context).usage(request.key)
        return pb.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    @answers
    def Cleanup(self, request: pb.CleanupRequest, context: grpc.ServicerContext) -> Empty:
        self._choose(request.snapshotter, context).cleanup()
        return Empty()
