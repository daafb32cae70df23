"""Lower files with several names, in a tree that changes.

The first copy-up of such a file makes one upper file for all its names: it is kept in the work
directory as `l<low>` and every name that the lower layers still show leads there. A name is put
into the upper layer when it is the one copied up, when it is renamed, and for the rest when the
tree is settled. `pending` counts names still found in the lower layers; at zero the record goes.

Counts are made durable after the change that they follow, so that a crash may leave one too high,
never too low: settling would look for one name in vain, and never lose one.
"""

from __future__ import annotations

import contextlib
import errno
import os
from collections.abc import Iterator

from . import xattrs
from ._names import Handed
from .work import Work


class Link:
    """One lower file with several names of which one was removed or copied up."""

    __slots__ = ("low", "pending", "removed", "upper")

    def __init__(self, low: int) -> None:
        self.low = low
        self.removed = 0
        """Names whited out before any copy-up."""
        self.upper = False
        """Copied up: `l<low>` exists and `pending` counts."""
        self.pending = 0

    @property
    def stash(self) -> bytes:
        return b"l%x" % self.low

    @property
    def record(self) -> bytes:
        return b"r%x" % self.low


@contextlib.contextmanager
def _where_there_is_room() -> Iterator[None]:
    """Let a count stay too high on disk when it does not fit: the change it follows is done."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise


class Links:
    """All such files of one tree, by the low part of their number."""

    def __init__(self, work: Work, names: list[bytes], handed: Handed) -> None:
        """`handed` is told that there are any: such files then need nodes."""
        self._work = work
        self._handed = handed
        self._links: dict[int, Link] = {}
        for name in sorted(names, reverse=True):
            self._load(name)

    def _load(self, name: bytes) -> None:
        """Take in one record; `r` sorts before `l` here and is stale when both exist."""
        low = int(name[1:], 16)
        link = self._record(low)
        fd = self._work.layer.fd
        if name.startswith(b"r"):
            link.removed = int(os.readlink(name, dir_fd=fd))
            return
        link.upper = True
        link.pending = int(xattrs.get(self._work.proc(name), xattrs.PENDING) or b"1")

    def _record(self, low: int) -> Link:
        self._handed.linked = True
        return self._links.setdefault(low, Link(low))

    def __bool__(self) -> bool:
        return bool(self._links)

    def get(self, low: int) -> Link | None:
        return self._links.get(low)

    def copied(self) -> list[Link]:
        """Files with an upper copy."""
        return [link for link in self._links.values() if link.upper]

    def count_removed(self, low: int, nlink: int) -> None:
        """A name of a lower file that has no copy was whited out; `nlink` is the lower count."""
        link = self._record(low)
        link.removed += 1
        if link.removed >= nlink:
            self._forget_record(link)
            del self._links[low]
            return
        fd, temp = self._work.layer.fd, self._work.temp()
        with _where_there_is_room():
            os.symlink(b"%d" % link.removed, temp, dir_fd=fd)
            os.rename(temp, link.record, src_dir_fd=fd, dst_dir_fd=fd)

    def _forget_record(self, link: Link) -> None:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(link.record, dir_fd=self._work.layer.fd)

    def begin(self, low: int, temp: bytes, nlink: int, *, named: int) -> Link | None:
        """Record the copy `temp` of a file of `nlink` lower names, unless none would be pending.

        `named` of the names will be in the upper layer at once; they count as pending until then.
        """
        link = self._links.get(low) or Link(low)
        pending = nlink - link.removed
        if pending - named <= 0:
            return None
        xattrs.put(self._work.proc(temp), xattrs.PENDING, b"%d" % pending)
        fd = self._work.layer.fd
        os.link(temp, link.stash, src_dir_fd=fd, dst_dir_fd=fd, follow_symlinks=False)
        link.pending = pending
        link.upper = True
        self._handed.linked = True
        self._links[low] = link
        return link

    def count_found(self, link: Link) -> bool:
        """One name less is found in the lower layers; True when it was the last."""
        link.pending -= 1
        if link.removed:
            self._forget_record(link)
            link.removed = 0
        if link.pending <= 0:
            return True
        with _where_there_is_room():
            xattrs.put(self._work.proc(link.stash), xattrs.PENDING, b"%d" % link.pending)
        return False

    def end(self, link: Link, keep_as: bytes | None) -> None:
        """Drop a record; `keep_as` is a name in the work directory for a file still needed."""
        fd = self._work.layer.fd
        del self._links[link.low]
        link.upper = False
        if keep_as is None:
            os.unlink(link.stash, dir_fd=fd)
        else:
            os.rename(link.stash, keep_as, src_dir_fd=fd, dst_dir_fd=fd)
