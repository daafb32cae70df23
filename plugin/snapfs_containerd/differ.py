"""The containerd.services.diff.v1 server: translate, call the differ, translate back.

Blobs are containerd's where the configuration names its socket (`diff.containerd`): its differs
read and write its own content store, and one outside it must do so as a client. Without a socket
they are those of our own content, in the namespace that the call names. See docs/containerd.md.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path

import grpc

from snapfs.images import TAR_GZIP, Asked, Contents, Differ, OwnContents, Packed
from snapfs.metadata import Context
from snapfs.model import InvalidArgument, Mount, NotImplementedYet
from snapfs.service.offered import Offered
from snapfs.service.status import answers
from snapfs_containerd import descriptor_pb2, diff_pb2, diff_pb2_grpc
from snapfs_containerd.contents import ContainerdContents
from snapfs_containerd.served import OWNER
from snapfs_containerd.wire import LEASE_HEADER, NAMESPACE_HEADER, mounts_from_wire, named

SERVICE = diff_pb2.DESCRIPTOR.services_by_name["Diff"].full_name

Reach = Callable[[Context], Contents]
"""Returns where the blobs of a namespace are."""


def register(server: grpc.Server, offered: Offered) -> str:
    """Add the service to `server`; return its full name (entry point snapfs.services)."""
    settings = offered.config.diff
    servicer = DiffServicer(
        Differ(offered.snapshotter),
        _reach(offered, settings.containerd),
        applies=settings.apply,
    )
    diff_pb2_grpc.add_DiffServicer_to_server(servicer, server)
    return SERVICE


def _reach(offered: Offered, socket: Path) -> Reach:
    if not socket.name:
        return lambda context: OwnContents(offered.metadata, context)
    timeout_s = offered.config.timeouts.call_s
    directory = offered.config.root
    return lambda context: ContainerdContents(
        socket, context, timeout_s=timeout_s, directory=directory
    )


class DiffServicer(diff_pb2_grpc.DiffServicer):
    """containerd's diff service over one snapshotter."""

    def __init__(self, differ: Differ, reach: Reach, *, applies: bool) -> None:
        self._differ = differ
        self._reach = reach
        self._applies = applies

    @answers
    def Diff(
        self, request: diff_pb2.DiffRequest, context: grpc.ServicerContext
    ) -> diff_pb2.DiffResponse:
        latest_s = None
        if request.HasField("source_date_epoch"):
            latest_s = request.source_date_epoch.seconds
        asked = Asked(
            media_type=request.media_type or TAR_GZIP,
            ref=request.ref,
            labels=dict(request.labels),
            latest_s=latest_s,
        )
        left, right = mounts_from_wire(request.left), mounts_from_wire(request.right)
        with closing(self._reach(self._caller(context, right))) as contents:
            packed = self._differ.compare(contents, left, right, asked)
        return diff_pb2.DiffResponse(diff=_descriptor(packed))

    @answers
    def Apply(
        self, request: diff_pb2.ApplyRequest, context: grpc.ServicerContext
    ) -> diff_pb2.ApplyResponse:
        if not self._applies:
            raise NotImplementedYet("layers are not applied here; see diff.apply")
        if request.payloads:
            raise NotImplementedYet("layers are not processed on their way; leave payloads out")
        wanted = request.diff
        if not wanted.digest:
            raise InvalidArgument("the descriptor has no digest")
        target = mounts_from_wire(request.mounts)
        with closing(self._reach(self._caller(context, target))) as contents:
            applied = self._differ.apply(contents, wanted.digest, wanted.size, target)
        return diff_pb2.ApplyResponse(applied=_descriptor(applied))

    def _caller(self, context: grpc.ServicerContext, shown: Sequence[Mount]) -> Context:
        """Return in whose name a call is made.

        containerd tells a proxy for differs neither namespace nor lease (containerd#12328); what
        it calls its snapshots begins with the namespace.
        """
        namespace = named(context, NAMESPACE_HEADER)
        if not namespace:
            snapshot = self._differ.shown(shown)
            namespace, slash, _ = snapshot.name.partition("/")
            if snapshot.owner != OWNER or not slash:
                raise NotImplementedYet(
                    f"the call names no namespace, and snapshot {snapshot.name!r} tells of none; "
                    f"send {NAMESPACE_HEADER}"
                )
        return Context(namespace, named(context, LEASE_HEADER))


def _descriptor(packed: Packed) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(
        media_type=packed.media_type, digest=packed.digest, size=packed.size_bytes
    )
