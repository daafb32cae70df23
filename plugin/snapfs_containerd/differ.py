"""The containerd.services.diff.v1 server: translate, call the differ, translate back.

Blobs are containerd's where the configuration names its socket (`diff.containerd`): its differs
read and write its own content store, and one outside it must do so as a client. Without a socket
they are those of our own content, in the namespace that the call names. See docs/containerd.md.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import closing
from pathlib import Path

import grpc

from snapfs.images import TAR_GZIP, Asked, Contents, Differ, OwnContents, Packed
from snapfs.metadata import Context
from snapfs.model import FailedPrecondition, InvalidArgument, Mount, NotImplementedYet
from snapfs.service.offered import Offered
from snapfs.service.status import answers
from snapfs_containerd import descriptor_pb2, diff_pb2, diff_pb2_grpc, mount_pb2
from snapfs_containerd.contents import ContainerdContents

SERVICE = diff_pb2.DESCRIPTOR.services_by_name["Diff"].full_name
NAMESPACE_HEADER = "containerd-namespace"
LEASE_HEADER = "containerd-lease"

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
    return lambda context: ContainerdContents(socket, context, timeout_s=timeout_s)


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
        with closing(self._reach(_caller(context))) as contents:
            packed = self._differ.compare(
                contents, _mounts(request.left), _mounts(request.right), asked
            )
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
        with closing(self._reach(_caller(context))) as contents:
            applied = self._differ.apply(
                contents, wanted.digest, wanted.size, _mounts(request.mounts)
            )
        return diff_pb2.ApplyResponse(applied=_descriptor(applied))


def _caller(context: grpc.ServicerContext) -> Context:
    headers = {str(key): str(value) for key, value in context.invocation_metadata() or ()}
    namespace = headers.get(NAMESPACE_HEADER, "")
    if not namespace:
        raise FailedPrecondition(f"the call names no namespace; send {NAMESPACE_HEADER}")
    return Context(namespace, headers.get(LEASE_HEADER, ""))


def _mounts(given: Iterable[mount_pb2.Mount]) -> list[Mount]:
    return [
        Mount(type=it.type, source=it.source, target=it.target, options=tuple(it.options))
        for it in given
    ]


def _descriptor(packed: Packed) -> descriptor_pb2.Descriptor:
    return descriptor_pb2.Descriptor(
        media_type=packed.media_type, digest=packed.digest, size=packed.size_bytes
    )
