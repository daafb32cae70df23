"""From what a handler raises to what the kernel is told: the only place where exceptions become
errnos."""

from __future__ import annotations

import errno
import functools
import os
import types
from collections.abc import Awaitable, Callable, Coroutine, Generator
from typing import Any, Concatenate, ParamSpec, TypeVar

import pyfuse3
import structlog

from snapfs.fuse.noticing import noticing
from snapfs.fuse.session import Operations
from snapfs.fuse.trees import StaleNode

log = structlog.get_logger(__name__)

Owner = TypeVar("Owner", bound=Operations)
Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")

MOST_NODES = 3
"""That one request names, and one more for good measure."""

Handler = Callable[Concatenate[Owner, Parameters], Coroutine[Any, Any, Result]]


async def recovering(
    recover: Callable[[int], Awaitable[bool]],
    stale: StaleNode,
    handle: Callable[[], Awaitable[Result]],
) -> Result:
    """Answer a request that named a node of an earlier worker's, once that is found again.

    A handler finds the nodes that it is asked about before it does anything else.
    """
    for _ in range(MOST_NODES):
        if not await recover(stale.ino):
            break
        try:
            return await handle()
        except StaleNode as error:
            stale = error
    raise stale


async def raising(answer: Awaitable[Result]) -> Result:
    """Make the refusal of a handler of pyfuse3's the OSError that it was."""
    try:
        return await answer
    except pyfuse3.FUSEError as error:
        raise OSError(error.errno, os.strerror(error.errno)) from None


def answering(handler: Handler[Owner, Parameters, Result]) -> Handler[Owner, Parameters, Result]:
    """Make an OSError the reply; anything else unexpected is logged and answered with EIO.

    ENOSYS never leaves by this way: the kernel would stop asking, for every file of the mount.
    A handler that has to wait lets another reader go on first.
    """

    @functools.wraps(handler)
    @types.coroutine
    def answer(
        self: Owner, *args: Parameters.args, **kwargs: Parameters.kwargs
    ) -> Generator[Any, Any, Result]:
        try:
            try:
                return (yield from noticing(self.waiting, handler(self, *args, **kwargs)))
            except StaleNode as error:
                again = recovering(self.recover, error, lambda: handler(self, *args, **kwargs))
                return (yield from noticing(self.waiting, again))
        except pyfuse3.FUSEError:
            raise
        except OSError as error:
            number = error.errno or errno.EIO
            if number == errno.EIO:
                log.error("fuse.io_error", operation=handler.__name__, error=str(error))
            raise pyfuse3.FUSEError(
                errno.EOPNOTSUPP if number == errno.ENOSYS else number
            ) from None
        except Exception:
            log.exception("fuse.unexpected_error", operation=handler.__name__)
            raise pyfuse3.FUSEError(errno.EIO) from None

    return answer  # type: ignore[return-value]  # mypy: `wraps` gives the first argument a name
