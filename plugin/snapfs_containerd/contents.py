"""containerd's content store as a client of containerd.services.content.v1, for one namespace.

Writes are one stream a blob: WRITE messages at growing offsets, then COMMIT. A stream that ends
without a commit leaves an ingest, which is aborted. A caller without a lease gets one for what is
written, which ends by itself: containerd's collector would take it before an image names it.
"""

from __future__ import annotations

import queue
import tempfile
import threading
import uuid
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, BinaryIO, cast

import grpc

from snapfs.closing import Closing
from snapfs.metadata import Context
from snapfs.model import AlreadyExists, DeadlineExceeded, FailedPrecondition, Labels, Unavailable
from snapfs.service.status import error_of
from snapfs_containerd import content_pb2 as pb
from snapfs_containerd import content_pb2_grpc, leases_pb2, leases_pb2_grpc
from snapfs_containerd.wire import LEASE_HEADER, NAMESPACE_HEADER

Headers = tuple[tuple[str, str], ...]

LEASE_LIFE_S = 3600
EXPIRES = "containerd.io/gc.expire"

CHUNK_BYTES = 1 << 20
"""Of one message; containerd takes up to 16 MiB."""


class ContainerdContents(Closing):
    """Blobs of a namespace of containerd."""

    def __init__(
        self, socket: Path, context: Context, *, timeout_s: float, directory: Path
    ) -> None:
        """`timeout_s` bounds each call, and each answer of those that carry a blob's bytes.

        What is fetched lies in `directory`, without a name, while it is used.
        """
        self._directory = directory
        self._channel = grpc.insecure_channel(f"unix:{socket}")
        self._stub = content_pb2_grpc.ContentStub(self._channel)
        self._timeout_s = timeout_s
        self._headers: Headers = ((NAMESPACE_HEADER, context.namespace),)
        if context.lease:
            self._headers += ((LEASE_HEADER, context.lease),)

    def writer(self, ref: str) -> ContainerdWriter:
        if len(self._headers) == 1:
            self._headers += ((LEASE_HEADER, self._new_lease()),)
        return ContainerdWriter(self._stub, self._headers, ref, self._timeout_s)

    def _new_lease(self) -> str:
        until = datetime.now(UTC) + timedelta(seconds=LEASE_LIFE_S)
        labels = {EXPIRES: until.strftime("%Y-%m-%dT%H:%M:%SZ")}
        request = leases_pb2.CreateRequest(id=f"snapfs-{uuid.uuid4()}", labels=labels)
        leases = leases_pb2_grpc.LeasesStub(self._channel)
        try:
            made = leases.Create(request, timeout=self._timeout_s, metadata=self._headers)
        except grpc.RpcError as error:
            raise error_of(error) from None
        return made.lease.id

    def label(self, digest: str, key: str, value: str) -> None:
        """Set a label of content that is there, if it has none of this name."""
        timeout_s, headers = self._timeout_s, self._headers
        wanted = pb.InfoRequest(digest=digest)
        try:
            info = self._stub.Info(wanted, timeout=timeout_s, metadata=headers).info
            if key not in info.labels:
                request = pb.UpdateRequest(info=pb.Info(digest=digest, labels={key: value}))
                request.update_mask.paths.append(f"labels.{key}")
                self._stub.Update(request, timeout=timeout_s, metadata=headers)
        except grpc.RpcError as error:
            raise error_of(error) from None

    def open(self, digest: str, size_bytes: int) -> BinaryIO:
        """Fetch content into a file without a name; raises NotFound.

        Raises FailedPrecondition when it has more bytes, before they fill the disk.
        """
        file = tempfile.TemporaryFile(dir=self._directory)  # noqa: SIM115  # the caller closes it
        try:
            request = pb.ReadContentRequest(digest=digest)
            answers = self._stub.Read(request, metadata=self._headers)
            while (answer := _next(answers, self._timeout_s)) is not None:
                if answer.offset + len(answer.data) > size_bytes:
                    raise FailedPrecondition(
                        f"content {digest} has more than the {size_bytes} bytes that its "
                        "descriptor says; fetch it again"
                    )
                file.seek(answer.offset)
                file.write(answer.data)
        except Exception:
            file.close()
            raise
        file.seek(0)
        return cast(BinaryIO, file)

    def close(self) -> None:
        self._channel.close()


class ContainerdWriter(Closing):
    """A blob on its way to containerd."""

    def __init__(
        self,
        stub: content_pb2_grpc.ContentStub,
        headers: Headers,
        ref: str,
        timeout_s: float,
    ) -> None:
        self._stub, self._headers, self._ref, self._timeout_s = stub, headers, ref, timeout_s
        self._requests: queue.SimpleQueue[pb.WriteContentRequest | None] = queue.SimpleQueue()
        self._answers = stub.Write(iter(self._requests.get, None), metadata=headers)
        self._waiting = bytearray()
        self._offset = 0
        self._is_done = False
        self._ask(pb.WriteContentRequest(action=pb.STAT, ref=ref))

    def write(self, data: bytes) -> int:
        self._waiting += data
        if len(self._waiting) >= CHUNK_BYTES:
            self._send()
        return len(data)

    def commit(self, size_bytes: int, digest: str, labels: Labels) -> None:
        """Make what was written content; AlreadyExists when it is there."""
        self._send()
        request = pb.WriteContentRequest(
            action=pb.COMMIT,
            ref=self._ref,
            offset=self._offset,
            total=size_bytes,
            expected=digest,
            labels=labels,
        )
        try:
            self._ask(request)
        except AlreadyExists:  # containerd has dropped the ingest
            self._is_done = True
            raise
        self._is_done = True

    def close(self) -> None:
        """End the stream; what is not committed is aborted."""
        self._requests.put(None)
        self._answers.cancel()  # type: ignore[no-untyped-call]  # the stubs give it no types
        if self._is_done:
            return
        try:
            self._stub.Abort(
                pb.AbortRequest(ref=self._ref), timeout=self._timeout_s, metadata=self._headers
            )
        except grpc.RpcError:
            return  # containerd drops it after a day

    def _send(self) -> None:
        if self._waiting:
            data = bytes(self._waiting)
            self._waiting.clear()
            self._ask(
                pb.WriteContentRequest(
                    action=pb.WRITE, ref=self._ref, offset=self._offset, data=data
                )
            )
            self._offset += len(data)

    def _ask(self, request: pb.WriteContentRequest) -> pb.WriteContentResponse:
        self._requests.put(request)
        answer: pb.WriteContentResponse | None = _next(self._answers, self._timeout_s)
        if answer is None:
            raise Unavailable("containerd ended the writing of a blob; try again")
        return answer


def _next(answers: Any, timeout_s: float) -> Any:
    """Return the next answer of a stream, None at its end; DeadlineExceeded when none comes."""
    watch = threading.Timer(timeout_s, answers.cancel)
    watch.daemon = True
    watch.start()
    try:
        return next(answers, None)
    except grpc.RpcError as error:
        if answers.code() is grpc.StatusCode.CANCELLED:
            raise DeadlineExceeded(
                f"containerd did not answer for {timeout_s:g} s; look at its log and try again"
            ) from None
        raise error_of(error) from None
    finally:
        watch.cancel()
