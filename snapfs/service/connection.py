"""A client's connection to the service: calls with a deadline, errors as they were raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import grpc
from google.protobuf.message import Message

from snapfs.closing import Closing
from snapfs.model import PermissionDenied, Unavailable
from snapfs.service import answered, denied
from snapfs.service.grpc_server import MAX_MESSAGE_BYTES
from snapfs.service.status import error_of, was_answered

CONNECT_S = 5
"""For whoever accepts on the socket to say the first word: gRPC's own thread does it."""

NEXT_S = 20
"""For the next service to answer who waits in the queue of one that has ended (queued.py)."""
JUST_BEGUN_S = 1
"""The same, for one that has just taken the place of the one before."""

_NO_CONNECTION = "settings frame"
"""gRPC's words for somebody who accepted and said nothing: the call was not sent."""

_Answer = TypeVar("_Answer", bound=Message)


class Connection(Closing):
    """A connection to `snapfs serve`; made on the first call, usable from many threads.

    Each call waits at most `timeout_s` (fsck and streams: for the whole answer).
    """

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        self.address = address
        self._timeout_s = timeout_s
        self._channel = grpc.insecure_channel(
            f"unix:{address}",
            options=(
                ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
                ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
                # A proxy named in the environment is not for a local socket.
                ("grpc.enable_http_proxy", 0),
                # Also the least time that gRPC gives a connection to come about: else 20 s.
                ("grpc.min_reconnect_backoff_ms", CONNECT_S * 1000),
            ),
        )

    def close(self) -> None:
        """End the connection; twice is fine."""
        self._channel.close()

    def _call(self, method: Callable[..., _Answer], request: Message) -> _Answer:
        with self._errors():
            try:
                return method(request, timeout=self._timeout_s)
            except grpc.RpcError as failure:
                self._await_next(failure)
            return method(request, timeout=self._timeout_s)

    def _await_next(self, failure: grpc.RpcError) -> None:
        """Wait until the next service answers, when the call got no further than the queue of one
        that has ended; else, and when none comes, raise the failure."""
        if _NO_CONNECTION not in str(failure.details()).lower():
            raise failure
        timeout_s = NEXT_S if answered.outlived(self.address) else JUST_BEGUN_S
        try:
            grpc.channel_ready_future(self._channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise failure from None

    def _stream(
        self, method: Callable[..., Iterable[_Answer]], request: Message
    ) -> Iterator[_Answer]:
        with self._errors():
            try:
                yield from method(request, timeout=self._timeout_s)
            except grpc.RpcError as failure:
                self._await_next(failure)
            else:
                return
            yield from method(request, timeout=self._timeout_s)

    @contextmanager
    def _errors(self) -> Iterator[None]:
        try:
            yield
        except grpc.RpcError as failure:
            error = error_of(failure)
            if isinstance(error, Unavailable) and not was_answered(failure):
                # gRPC tells the whole way there; the system's own words come last.
                reason = str(error).rpartition("error: ")[2].lower()
                if "permission denied" in reason:
                    raise PermissionDenied(denied.who_may(self.address, reason)) from failure
                if _NO_CONNECTION in reason and answered.outlived(self.address):
                    raise Unavailable(
                        f"socket {self.address}: the service has ended, and the next one does not "
                        "answer yet; try again, or see `systemctl status snapfs`"
                    ) from failure
                if _NO_CONNECTION in reason and (other := answered.holder(self.address)):
                    what = "says nothing" if "timed out" in reason else "does not speak as snapfs"
                    raise Unavailable(
                        f"socket {self.address}: {other} accepts there, but {what}; "
                        "stop that one, or name the service's socket with --address"
                    ) from failure
                raise Unavailable(
                    f"nothing answers on socket {self.address} ({reason}); "
                    "start the service (systemctl start snapfs, or snapfs serve)"
                ) from failure
            raise error from failure
