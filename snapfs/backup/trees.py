"""Copying a layer's directory with all that is in it.

Data is cloned where both lie on one file system that can, else copied, holes as holes. Hard links
within the layer stay such. No file of the copy is the source's own, linked: programs see link
counts of lower files, and so would see that there is a backup.
"""

from __future__ import annotations

import errno
import itertools
import os
import shutil
import stat
from contextlib import ExitStack
from pathlib import Path

from snapfs.overlay.syscalls import copy_data, set_times
from snapfs.seals.walking import Found, Place, walk

_INHERITED = ("system.posix_acl_access", "system.posix_acl_default")
"""What is made in a directory with a default ACL has these from the start."""


def copy(source: Path, target: Path) -> None:
    """Make `target`, which must not exist, a copy of the directory `source`; OSError.

    It is not durable yet. Times of directories are set when all is in them. Beside it, `links`
    has a name of each file with several while it is made.
    """
    stash = target.with_name("links")
    for directory in (target, stash):
        directory.mkdir(mode=0o700)
    with ExitStack() as stack:
        place = Place(_open(target.parent))
        stack.callback(place.close)
        stash_fd = _open(stash)
        stack.callback(os.close, stash_fd)
        copier = _Copier(place, os.fsencode(target.name), stash_fd)
        for found in walk(source):
            copier.take(found)
        copier.finish()
    shutil.rmtree(stash)


def _open(directory: Path) -> int:
    return os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)


class _Copier:
    """Follows a walk, with the copy of the directory that the walk is in."""

    def __init__(self, place: Place, name: bytes, stash_fd: int) -> None:
        self._place = place
        self._name = name
        self._stash_fd = stash_fd
        self._numbers = itertools.count()
        self._open: list[tuple[bytes, os.stat_result]] = []
        """Directories from the top to where we are, which get their times when we leave."""
        self._linked: dict[tuple[int, int], str] = {}
        """Name in the stash of the copy of each file with several names."""

    def take(self, found: Found) -> None:
        """Copy one path."""
        self._leave(found.depth)
        if found.is_directory:
            self._directory(found)
        elif found.status.st_nlink == 1:
            self._make(found)
        elif not self._link(found):
            self._make(found)
            self._keep(found)

    def finish(self) -> None:
        self._leave(0)

    def _directory(self, found: Found) -> None:
        name = self._name if found.depth == 0 else found.name
        if found.depth:
            os.mkdir(name, 0o700, dir_fd=self._place.fd)
        self._dress(found, name)
        self._place.descend(name)
        self._open.append((name, found.status))

    def _leave(self, depth: int) -> None:
        while len(self._open) > depth:
            name, status = self._open.pop()
            self._place.ascend()
            set_times(self._place.fd, name, status.st_atime_ns, status.st_mtime_ns)

    def _link(self, found: Found) -> bool:
        """Make the path a link to the copy of the same file, if there is one with room."""
        stashed = self._linked.get((found.status.st_dev, found.status.st_ino))
        if stashed is None:
            return False
        try:
            os.link(stashed, found.name, src_dir_fd=self._stash_fd, dst_dir_fd=self._place.fd)
        except OSError as error:
            if error.errno != errno.EMLINK:
                raise
            return False
        return True

    def _keep(self, found: Found) -> None:
        """Put a new copy into the stash, for the other names of the file."""
        stashed = str(next(self._numbers))
        os.link(
            found.name,
            stashed,
            src_dir_fd=self._place.fd,
            dst_dir_fd=self._stash_fd,
            follow_symlinks=False,
        )
        self._linked[found.status.st_dev, found.status.st_ino] = stashed

    def _make(self, found: Found) -> None:
        """Make a copy of what is no directory."""
        mode, here = found.status.st_mode, self._place.fd
        if stat.S_ISREG(mode):
            self._regular(found)
        elif stat.S_ISLNK(mode):
            os.symlink(os.readlink(found.name, dir_fd=found.parent_fd), found.name, dir_fd=here)
        else:
            os.mknod(found.name, stat.S_IFMT(mode) | 0o600, found.status.st_rdev, dir_fd=here)
        self._dress(found, found.name)

    def _regular(self, found: Found) -> None:
        reading = os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NOATIME
        making = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        source = os.open(found.name, reading, dir_fd=found.parent_fd)
        try:
            target = os.open(found.name, making, 0o600, dir_fd=self._place.fd)
            try:
                copy_data(source, target, found.status.st_size)
            finally:
                os.close(target)
        finally:
            os.close(source)

    def _dress(self, found: Found, name: bytes) -> None:
        """Give a copy owner, attributes, mode and times: each may take away what came before."""
        status, here = found.status, self._place.fd
        os.chown(name, status.st_uid, status.st_gid, dir_fd=here, follow_symlinks=False)
        proc = f"/proc/self/fd/{here}/{os.fsdecode(name)}"
        wanted = os.listxattr(found.proc, follow_symlinks=False)
        for attribute in os.listxattr(proc, follow_symlinks=False):
            if attribute in _INHERITED and attribute not in wanted:
                os.removexattr(proc, attribute, follow_symlinks=False)
        for attribute in wanted:
            value = os.getxattr(found.proc, attribute, follow_symlinks=False)
            os.setxattr(proc, attribute, value, follow_symlinks=False)
        if not stat.S_ISLNK(status.st_mode):
            os.chmod(name, stat.S_IMODE(status.st_mode), dir_fd=here)
        set_times(here, name, status.st_atime_ns, status.st_mtime_ns)
