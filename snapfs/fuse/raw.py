"""Requests that are answered past pyfuse3, by the handlers in `Operations.raw`."""

from __future__ import annotations

import contextlib
import errno
import types
from collections.abc import Callable, Coroutine, Generator, Mapping
from typing import Any, cast

import structlog

from snapfs.fuse.channel import Body, NotSupported, Opcode, RawHandler, Request, Requests
from snapfs.fuse.noticing import noticing

log = structlog.get_logger(__name__)


class RawRequests:
    """Reads requests through the channel and answers those that have a handler."""

    def __init__(self, handlers: Mapping[int, RawHandler], waiting: Callable[[], None]) -> None:
        """`waiting` is called when a handler first waits."""
        self._requests = Requests(handlers)
        self._handlers = dict(handlers)
        self._waiting = waiting
        self.receive = self._requests.receive

    @types.coroutine
    def serve(self, fd: int, request: Request) -> Generator[Any, Any, None]:
        """Answer one request. What a handler raises is the answer, and never leaves by here."""
        handling = self._handlers[request.opcode](request)
        try:
            body = yield from noticing(self._waiting, cast("Coroutine[Any, Any, Any]", handling))
        except NotSupported:
            return self._requests.refuse(fd, request.unique, errno.ENOSYS)
        except OSError as error:
            return self._requests.refuse(fd, request.unique, _errno(request, error))
        except Exception:
            log.exception("fuse.unexpected_error", operation=_name(request))
            return self._requests.refuse(fd, request.unique, errno.EIO)
        if body is not None:
            self._answer(fd, request, body)
        return None

    def _answer(self, fd: int, request: Request, body: Body) -> None:
        try:
            self._requests.answer(fd, request.unique, body)
        except OSError as error:  # no such reply to such a request; its caller must not wait on
            log.error("fuse.bad_reply", operation=_name(request), bytes=len(body), error=str(error))
            with contextlib.suppress(OSError):
                self._requests.refuse(fd, request.unique, errno.EIO)


def _errno(request: Request, error: OSError) -> int:
    number = error.errno or errno.EIO
    if number == errno.EIO:
        log.error("fuse.io_error", operation=_name(request), error=str(error))
    return errno.EOPNOTSUPP if number == errno.ENOSYS else number


def _name(request: Request) -> str:
    return Opcode(request.opcode).name.lower()
