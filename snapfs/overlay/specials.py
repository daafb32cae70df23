"""Copies of files that have no content: symbolic links, devices, fifos and sockets."""

from __future__ import annotations

import os
import stat

from . import devices, xattrs
from .syscalls import set_times
from .work import Work


class Special:
    """Such a file of a lower layer, held for its copy-up."""

    __slots__ = ("_fd", "_path", "_real")

    size_bytes = 0
    allocated_bytes = 0

    def __init__(self, dir_fd: int, path: bytes) -> None:
        self._real = os.stat(path, dir_fd=dir_fd, follow_symlinks=False)
        self._fd = os.dup(dir_fd)
        """Our own: a layer closes what leads to a long path when it needs others."""
        self._path = path

    @property
    def nlink(self) -> int:
        return self._real.st_nlink

    def close(self) -> None:
        """Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def copy(self, work: Work, name: bytes, ino: bytes) -> None:
        """Make a file like this one in the work directory, but for its number of names."""
        at, real = work.layer.fd, self._real
        source = b"/proc/self/fd/%d/%s" % (self._fd, self._path)
        if stat.S_ISLNK(real.st_mode):
            os.symlink(os.readlink(self._path, dir_fd=self._fd), name, dir_fd=at)
        else:
            os.mknod(name, stat.S_IFMT(real.st_mode) | 0o600, real.st_rdev, dir_fd=at)
        os.chown(name, real.st_uid, real.st_gid, dir_fd=at, follow_symlinks=False)
        xattrs.copy(source, work.proc(name))
        if devices.shown(real.st_rdev, source) != real.st_rdev:
            devices.mark(work.proc(name))
        xattrs.put(work.proc(name), xattrs.INO, ino)
        if not stat.S_ISLNK(real.st_mode):
            os.chmod(name, stat.S_IMODE(real.st_mode), dir_fd=at)
        set_times(at, name, real.st_atime_ns, real.st_mtime_ns)
