"""The containerd.services.snapshots.v1 server: translate, call the snapshotter, translate back.

Holds one rule: containerd removes whatever it is shown and does not know, so it is shown, and may
remove, what was made over this service. All else, the order of checks and every refusal, is the
snapshotter's, the table from errors to status is service/status.py's. See docs/containerd.md.
"""

from __future__ import annotations

from collections.abc import Iterator

import grpc
from google.protobuf.empty_pb2 import Empty

from snapfs.model import FailedPrecondition, InvalidArgument, Mount, Snapshot
from snapfs.service.convert import batches, timestamp
from snapfs.service.offered import Offered
from snapfs.service.snapshotter import Snapshotter
from snapfs.service.status import answers
from snapfs_containerd import mount_pb2, snapshots_pb2, snapshots_pb2_grpc
from snapfs_containerd.names import NAME, is_accepted

OWNER = "containerd"
"""Of what is made over this service."""

SERVICE = snapshots_pb2.DESCRIPTOR.services_by_name["Snapshots"].full_name


def register(server: grpc.Server, offered: Offered) -> str:
    """Add the service to `server`; return its full name (entry point snapfs.services)."""
    return register_snapshots(server, offered.snapshotter)


def register_snapshots(server: grpc.Server, snapshotter: Snapshotter) -> str:
    """Add the service over one snapshotter to `server`; return its full name."""
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(SnapshotsServicer(snapshotter), server)
    return SERVICE


class SnapshotsServicer(snapshots_pb2_grpc.SnapshotsServicer):
    """containerd's snapshots service over one snapshotter."""

    def __init__(self, snapshotter: Snapshotter) -> None:
        self._snapshotter = snapshotter

    @answers
    def Prepare(
        self, request: snapshots_pb2.PrepareSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.PrepareSnapshotResponse:
        _check_snapshotter(request.snapshotter)
        mounts = self._snapshotter.prepare(
            request.key, request.parent, dict(request.labels), owner=OWNER
        )
        return snapshots_pb2.PrepareSnapshotResponse(mounts=map(_mount, mounts))

    @answers
    def View(
        self, request: snapshots_pb2.ViewSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.ViewSnapshotResponse:
        _check_snapshotter(request.snapshotter)
        mounts = self._snapshotter.view(
            request.key, request.parent, dict(request.labels), owner=OWNER
        )
        return snapshots_pb2.ViewSnapshotResponse(mounts=map(_mount, mounts))

    @answers
    def Mounts(
        self, request: snapshots_pb2.MountsRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.MountsResponse:
        _check_snapshotter(request.snapshotter)
        mounts = self._snapshotter.mounts(request.key)
        return snapshots_pb2.MountsResponse(mounts=map(_mount, mounts))

    @answers
    def Commit(
        self, request: snapshots_pb2.CommitSnapshotRequest, context: grpc.ServicerContext
    ) -> Empty:
        _check_snapshotter(request.snapshotter)
        self._snapshotter.commit(
            request.key, request.name, dict(request.labels), parent=request.parent
        )
        return Empty()

    @answers
    def Remove(
        self, request: snapshots_pb2.RemoveSnapshotRequest, context: grpc.ServicerContext
    ) -> Empty:
        _check_snapshotter(request.snapshotter)
        if not _is_theirs(self._snapshotter.stat(request.key)):
            # containerd's collector goes on with the next one after this refusal.
            raise FailedPrecondition(
                f"snapshot {request.key!r} was not made by containerd; remove it with "
                "`snapfs snapshot remove`, or the image that it is of"
            )
        self._snapshotter.remove(request.key)
        return Empty()

    @answers
    def Stat(
        self, request: snapshots_pb2.StatSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.StatSnapshotResponse:
        _check_snapshotter(request.snapshotter)
        return snapshots_pb2.StatSnapshotResponse(info=_info(self._snapshotter.stat(request.key)))

    @answers
    def Update(
        self, request: snapshots_pb2.UpdateSnapshotRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UpdateSnapshotResponse:
        _check_snapshotter(request.snapshotter)
        snapshot = self._snapshotter.update(
            request.info.name, dict(request.info.labels), list(request.update_mask.paths)
        )
        return snapshots_pb2.UpdateSnapshotResponse(info=_info(snapshot))

    @answers
    def List(
        self, request: snapshots_pb2.ListSnapshotsRequest, context: grpc.ServicerContext
    ) -> Iterator[snapshots_pb2.ListSnapshotsResponse]:
        _check_snapshotter(request.snapshotter)
        found = filter(_is_theirs, self._snapshotter.walk(list(request.filters)))
        for batch in batches(found):
            yield snapshots_pb2.ListSnapshotsResponse(info=map(_info, batch))

    @answers
    def Usage(
        self, request: snapshots_pb2.UsageRequest, context: grpc.ServicerContext
    ) -> snapshots_pb2.UsageResponse:
        _check_snapshotter(request.snapshotter)
        usage = self._snapshotter.usage(request.key)
        return snapshots_pb2.UsageResponse(size=usage.size_bytes, inodes=usage.inodes)

    @answers
    def Cleanup(
        self, request: snapshots_pb2.CleanupRequest, context: grpc.ServicerContext
    ) -> Empty:
        _check_snapshotter(request.snapshotter)
        self._snapshotter.cleanup()
        return Empty()


def _is_theirs(snapshot: Snapshot) -> bool:
    """Say whether containerd made a snapshot."""
    return snapshot.owner == OWNER


def _check_snapshotter(name: str) -> None:
    # containerd's own service says InvalidArgument too for a snapshotter it does not have.
    if not is_accepted(name):
        raise InvalidArgument(
            f"snapshotter {name!r} is not served here: call the proxy_plugins stanza "
            f"'{NAME}', or '{NAME}-' and a suffix"
        )


def _mount(mount: Mount) -> mount_pb2.Mount:
    return mount_pb2.Mount(
        type=mount.type, source=mount.source, target=mount.target, options=mount.options
    )


def _info(snapshot: Snapshot) -> snapshots_pb2.Info:
    return snapshots_pb2.Info(
        name=snapshot.name,
        parent=snapshot.parent,
        kind=snapshots_pb2.Kind.ValueType(snapshot.kind.value),
        created_at=timestamp(snapshot.created_ns),
        updated_at=timestamp(snapshot.updated_ns),
        labels=snapshot.labels,
    )
