"""What a mapping has changed and nobody may write: the kernel is to drop it.

The kernel asks nobody before a shared mapping is changed, and shows the page to all who read the
file. When it may not be written, the kernel keeps it, as if it had been. Dropped, it is read anew.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import NoReturn

import pyfuse3
import structlog
import trio

from snapfs.fuse.threads import notified

FROM_CACHE = 1 << 0
"""FUSE_WRITE_CACHE: pages of a mapping."""

log = structlog.get_logger(__name__)


class RefusedPages:
    """The files of which the kernel has pages that differ from the layer."""

    def __init__(self, limiter: trio.CapacityLimiter) -> None:
        self._limiter = limiter
        self._files: set[int] = set()
        self._some = trio.Event()

    @contextlib.contextmanager
    def noting(self, nodeid: int, how: int) -> Iterator[None]:
        """Write a file in the block; `how` has the flags of the request."""
        try:
            yield
        except OSError:
            if how & FROM_CACHE:
                self._files.add(nodeid)
                self._some.set()
            raise

    async def drop(self) -> NoReturn:
        """Have the kernel drop what was refused, as long as the session lasts.

        In a thread, which waits until the kernel has read the refusal: a page that is being written
        is not dropped before.
        """
        while True:
            await self._some.wait()
            self._some = trio.Event()
            files, self._files = list(self._files), set()
            await notified(self._limiter, _drop, files)


def _drop(files: Sequence[int]) -> None:
    for nodeid in files:
        try:
            pyfuse3.invalidate_inode(nodeid)
        except FileNotFoundError:
            pass  # the kernel has forgotten it since
        except OSError as error:
            log.error("fuse.refused_page_kept", inode=nodeid, error=str(error))
