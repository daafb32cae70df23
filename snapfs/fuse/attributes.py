"""Between the overlay's records and pyfuse3's: attributes, file-system figures, changes asked for.

Timeouts are long because nobody else writes: what the kernel has cached, it got from us or changed
through us.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Protocol

import pyfuse3

from snapfs.fuse import channel
from snapfs.overlay import Attributes, SetAttr

FOREVER_S = 365 * 24 * 3600.0


class Owners(Protocol):
    """Translates owners between the layers and who looks at them (snapfs-overlay's id mapping)."""

    def shown(self, uid: int, gid: int) -> tuple[int, int]: ...

    def stored_uid(self, uid: int) -> int: ...

    def stored_gid(self, gid: int) -> int: ...


class SameOwners:
    """Owners are shown as they are stored."""

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        return uid, gid

    def stored_uid(self, uid: int) -> int:
        return uid

    def stored_gid(self, gid: int) -> int:
        return gid


class Caller(Protocol):
    """Who sent a request."""

    @property
    def uid(self) -> int: ...

    @property
    def gid(self) -> int: ...


@dataclass(frozen=True, slots=True)
class View:
    """How attributes look to the kernel and how long it may keep them."""

    timeout_s: float = FOREVER_S
    owners: Owners | None = None
    static_nlink: bool = False
    """Directories show one link."""

    def entry(self, attributes: Attributes) -> pyfuse3.EntryAttributes:
        """Return the reply for a node."""
        entry = pyfuse3.EntryAttributes()
        (
            entry.st_ino,
            entry.st_mode,
            entry.st_nlink,
            entry.st_uid,
            entry.st_gid,
            entry.st_rdev,
            entry.st_size,
            entry.st_blocks,
            entry.st_blksize,
            entry.st_atime_ns,
            entry.st_mtime_ns,
            entry.st_ctime_ns,
        ) = attributes
        entry.attr_timeout = entry.entry_timeout = self.timeout_s
        if self.owners is not None:
            entry.st_uid, entry.st_gid = self.owners.shown(attributes.uid, attributes.gid)
        if self.static_nlink and attributes.mode & 0o170000 == 0o040000:
            entry.st_nlink = 1
        return entry

    def absent(self) -> pyfuse3.EntryAttributes:
        """Return the reply that lets the kernel remember that a name does not exist."""
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = 0
        entry.entry_timeout = self.timeout_s
        return entry

    def wanted(self, asked: pyfuse3.EntryAttributes, fields: pyfuse3.SetattrFields) -> SetAttr:
        """Return what a SETATTR request asks to change."""
        uid = asked.st_uid if fields.update_uid else None
        gid = asked.st_gid if fields.update_gid else None
        if self.owners is not None:
            uid = None if uid is None else self.owners.stored_uid(uid)
            gid = None if gid is None else self.owners.stored_gid(gid)
        return SetAttr(
            mode=asked.st_mode & 0o7777 if fields.update_mode else None,
            uid=uid,
            gid=gid,
            size=asked.st_size if fields.update_size else None,
            atime_ns=asked.st_atime_ns if fields.update_atime else None,
            mtime_ns=asked.st_mtime_ns if fields.update_mtime else None,
            gives_times=channel.gives_times(),
        )

    def caller(self, ctx: Caller) -> tuple[int, int]:
        """Return the owner that a file made by this request gets."""
        if self.owners is None:
            return ctx.uid, ctx.gid
        return self.owners.stored_uid(ctx.uid), self.owners.stored_gid(ctx.gid)


def statvfs(figures: os.statvfs_result) -> pyfuse3.StatvfsData:
    """Return the reply to STATFS."""
    reply = pyfuse3.StatvfsData()
    reply.f_bsize = figures.f_bsize
    reply.f_frsize = figures.f_frsize
    reply.f_blocks = figures.f_blocks
    reply.f_bfree = figures.f_bfree
    reply.f_bavail = figures.f_bavail
    reply.f_files = figures.f_files
    reply.f_ffree = figures.f_ffree
    reply.f_favail = figures.f_favail
    reply.f_namemax = figures.f_namemax
    return reply
