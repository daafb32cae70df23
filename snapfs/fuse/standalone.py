"""A plain overlay with no daemon and no metadata: what `snapfs-overlay` runs.

The same handover and the same handlers as in a lane, with one tree as the root and this process as
both ends. Ends when the file system is unmounted, or unmounts it when asked by SIGTERM or SIGINT.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pyfuse3
import structlog
import trio

from snapfs import confinement
from snapfs.fuse import handover, mounts, session
from snapfs.fuse.answering import answering
from snapfs.fuse.attributes import View
from snapfs.fuse.awake import kept_awake
from snapfs.fuse.backing import ids_of
from snapfs.fuse.channel import Opcode, Request
from snapfs.fuse.modes import Mode
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.options import IdRange, OverlayOptions
from snapfs.fuse.trees import SingleForest
from snapfs.model import FailedPrecondition
from snapfs.overlay import Inodes, Tree, TreeSpec, check_upper

log = structlog.get_logger(__name__)

MOUNT_TIMEOUT_S = 20.0
PREDECESSOR_TIMEOUT_S = 20.0
POLL_S = 0.05
OVERFLOW_ID = 65534
"""Shown for an owner that no range covers, as the kernel shows nobody."""


def serve(options: OverlayOptions, mountpoint: Path, *, ready: Callable[[], None]) -> None:
    """Mount on `mountpoint` and serve until unmounted; `ready` is called once it is usable.

    Raises OSError with nothing left mounted.
    """
    with sole_use(options.upper, options.work, timeout_s=PREDECESSOR_TIMEOUT_S):
        _serve(options, mountpoint, ready)


@contextlib.contextmanager
def sole_use(upper: Path | None, work: Path | None, *, timeout_s: float) -> Iterator[None]:
    """Hold a mount's directories, without which two would take each other's files.

    umount(8) returns before the process behind the mount has settled its layer and ended: wait for
    it. Raises OSError(EBUSY) when it holds one for longer. The locks end with their holder.
    """
    deadline_s = time.monotonic() + timeout_s
    with contextlib.ExitStack() as stack:
        for what, path in (("work", work), ("upper", upper)):
            if path is not None:
                fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
                stack.callback(os.close, fd)
                _lock(fd, what, path, deadline_s)
        yield


def _lock(fd: int, what: str, path: Path, deadline_s: float) -> None:
    while not _locked(fd):
        if time.monotonic() > deadline_s:
            text = f"{what} directory is in use by another mount; unmount that, or take another"
            raise OSError(errno.EBUSY, text, str(path))
        time.sleep(POLL_S)


def _locked(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _serve(options: OverlayOptions, mountpoint: Path, ready: Callable[[], None]) -> None:
    _check_room(options)
    inodes = Inodes()
    tree = Tree(_spec(options), inodes)
    try:
        connection = handover.connect(
            mountpoint,
            source=options.source,
            subtype=options.subtype,
            flags=options.mount_flags,
            options=(("allow_other",) if options.allows_others else ()) + options.security,
            wanted=_flags(options),
            timeout_s=MOUNT_TIMEOUT_S,
        )
        device = mounts.mounted_at(mountpoint)[-1].device
        mounts.tune(device)
        kept = confinement.confine(confinement.WORKER)
        if kept:
            log.info("overlay.not_confined", kept=kept)
        with kept_awake(options.awake):
            trio.run(_run, options, tree, inodes, connection, mountpoint, ready)
        tree.settle()
    finally:
        tree.close()


def _check_room(options: OverlayOptions) -> None:
    """Refuse directories in which the first change would fail."""
    if options.upper is None or options.work is None:
        return
    try:
        check_upper(options.upper, options.work)
    except OSError as error:
        raise FailedPrecondition(error.strerror or str(error)) from error


async def _run(
    options: OverlayOptions,
    tree: Tree,
    inodes: Inodes,
    connection: handover.Connection,
    mountpoint: Path,
    ready: Callable[[], None],
) -> None:
    # The session gives its own descriptor to libfuse.
    spare = replace(connection, fd=os.dup(connection.fd))
    forest = SingleForest(tree, inodes, ids_of(spare), caches_absence=options.timeout_s > 0)
    operations = PlainOperations(forest, options)
    async with trio.open_nursery() as nursery:
        await nursery.start(_unmount_on_signal, mountpoint)
        nursery.start_soon(operations.refused_pages.drop)
        await session.serve(operations, connection.fd, connection.init, ready=ready)
        nursery.cancel_scope.cancel()
    spare.close()


async def _unmount_on_signal(
    mountpoint: Path, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED
) -> None:
    with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT, signal.SIGHUP) as signals:
        task_status.started()
        async for number in signals:
            log.info("overlay.signal", signal=signal.Signals(number).name)
            await trio.to_thread.run_sync(_detach, mountpoint, abandon_on_cancel=True)


def _detach(mountpoint: Path) -> None:
    try:
        mounts.unmount(mountpoint, mounts.MNT_DETACH)
    except OSError as error:
        log.error("overlay.unmount_failed", mountpoint=str(mountpoint), error=str(error))


class PlainOperations(OverlayOperations):
    """The handlers, less what options switch off."""

    def __init__(self, forest: SingleForest, options: OverlayOptions) -> None:
        super().__init__(forest, _view(options), redirects=options.redirects)
        self._durable = options.durable
        self._xattrs = options.xattrs
        self._acl = options.acl
        self.names.shows_xattrs = options.xattrs and options.acl
        if not options.durable:
            for synced in (Opcode.FSYNC, Opcode.FSYNCDIR, Opcode.SYNCFS):
                self.raw[synced] = _nothing_to_do

    @answering
    async def fsync(self, fh: int, datasync: bool) -> None:
        if self._durable:
            await super().fsync(fh, datasync)

    @answering
    async def fsyncdir(self, fh: int, datasync: bool) -> None:
        if self._durable:
            await super().fsyncdir(fh, datasync)

    @answering
    async def getxattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> bytes:
        self._check_xattr(name)
        return await super().getxattr(inode, name, ctx)

    async def set_attribute(
        self, inode: int, name: bytes, value: bytes, flags: int, *, uid: int, pid: int
    ) -> None:
        self._check_xattr(name)
        await super().set_attribute(inode, name, value, flags, uid=uid, pid=pid)

    @answering
    async def removexattr(self, inode: int, name: bytes, ctx: pyfuse3.RequestContext) -> None:
        self._check_xattr(name)
        await super().removexattr(inode, name, ctx)

    @answering
    async def listxattr(self, inode: int, ctx: pyfuse3.RequestContext) -> Sequence[bytes]:
        return await super().listxattr(inode, ctx) if self._xattrs else []

    def _check_xattr(self, name: bytes) -> None:
        if not self._xattrs or (not self._acl and name.startswith(b"system.posix_acl_")):
            raise OSError(errno.EOPNOTSUPP, os.strerror(errno.EOPNOTSUPP))


async def _nothing_to_do(request: Request) -> bytes:
    return b""


class MappedOwners:
    """Owners of the layers as somebody else is to see them: ranges first, then one for all."""

    def __init__(self, options: OverlayOptions) -> None:
        self._uids = options.uid_ranges
        self._gids = options.gid_ranges
        self._uid = options.squash_uid
        self._gid = options.squash_gid

    def shown(self, uid: int, gid: int) -> tuple[int, int]:
        return (
            _shown(self._uids, uid) if self._uid is None else self._uid,
            _shown(self._gids, gid) if self._gid is None else self._gid,
        )

    def stored_uid(self, uid: int) -> int:
        return _stored(self._uids, uid)

    def stored_gid(self, gid: int) -> int:
        return _stored(self._gids, gid)


def _shown(ranges: tuple[IdRange, ...], number: int) -> int:
    for found in ranges:
        if found.stored <= number < found.stored + found.length:
            return number - found.stored + found.shown
    return OVERFLOW_ID if ranges else number


def _stored(ranges: tuple[IdRange, ...], number: int) -> int:
    for found in ranges:
        if found.shown <= number < found.shown + found.length:
            return number - found.shown + found.stored
    return OVERFLOW_ID if ranges else number


def _view(options: OverlayOptions) -> View:
    translated = options.uid_ranges or options.gid_ranges
    squashed = options.squash_uid is not None or options.squash_gid is not None
    mapped = MappedOwners(options) if translated or squashed else None
    return View(options.timeout_s, mapped, static_nlink=options.static_nlink)


def _spec(options: OverlayOptions) -> TreeSpec:
    return TreeSpec(
        number=1,
        lowers=options.lowers,
        upper=options.upper,
        work=options.work,
        single=True,
        dot_whiteouts=True,
        sync=options.durable,
        atime=options.atime,
        metacopy=options.metacopy,
    )


def _flags(options: OverlayOptions) -> handover.Init:
    wanted = Mode.PASSTHROUGH.wanted
    return wanted if options.acl else wanted & ~handover.Init.POSIX_ACL
