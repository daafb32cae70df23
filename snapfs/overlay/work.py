"""The work directory: half-made files, removed files still in use, the index of hard links.

All names live in `<work>/snapfs`, beside what the kernel's overlayfs keeps in `<work>/work`:

    t<n>     half made; removed when the tree is opened
    tx<low>  changing places with a whiteout, on its way to o<low>
    o<low>   removed from the tree while known (node.stash); removed at forget or when the tree is
    opened l<low>   a copied-up file that has further names in the lower layers (links.py)
    r<low>   a symlink whose target counts removed names of a lower hard link (links.py)
    w        the whiteout that others are hard links to
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

from .freeing import BIG_BYTES, Freeing
from .layer import Layer, scan, stat_or_none
from .ordering import Order
from .syscalls import rename
from .types import BLOCK_BYTES

_DIRECTORY = b"snapfs"
_WHITEOUT = b"w"
_CHANGING = b"tx"
"""What changes places with a whiteout, on its way to be kept."""


def has_link_records(path: bytes | Path) -> bool:
    """Whether a work directory holds copied-up hard links that are not settled."""
    try:
        names = os.listdir(os.path.join(os.fsencode(path), _DIRECTORY))
    except (FileNotFoundError, NotADirectoryError):
        return False
    return any(name.startswith(b"l") for name in names)


def own_directory(path: bytes | Path) -> bytes:
    """Return our own directory in a work directory, made if it is not there."""
    own = os.path.join(os.fsencode(path), _DIRECTORY)
    with contextlib.suppress(FileExistsError):
        os.mkdir(own, 0o700)
    return own


class Work:
    """Owner of one tree's work directory. Paths are names in it."""

    __slots__ = ("_count", "_freeing", "layer", "order", "retired")

    def __init__(self, layer: Layer, freeing: Freeing, order: Order) -> None:
        """`layer` is what `own_directory` names."""
        self.layer = layer
        self._freeing = freeing
        self.order = order
        self._count = 0
        self.retired: Callable[[os.stat_result], object] = bool
        """Told of the whiteout that others are links to, when it can have no more."""

    def clean(self, *, keep_removed: bool = False) -> list[bytes]:
        """Remove what a predecessor left half made or in use; returns the names of link records."""
        records = []
        rubbish = b"t" if keep_removed else b"to"
        for entry in list(scan(self.layer.proc(b"."))):
            is_directory = entry.is_dir(follow_symlinks=False)
            if keep_removed and is_directory and entry.name.startswith(_CHANGING):
                self._keep(entry.name)
            elif entry.name[:1] in rubbish:
                self.discard(entry.name)
            elif entry.name[:1] in b"lr":
                records.append(entry.name)
            elif entry.name[:1] == b"o" and is_directory:
                self.empty(entry.name)
        return records

    def _keep(self, name: bytes) -> None:
        """Go on with a directory that was removed, and is not yet under the name that keeps it."""
        kept = b"o" + name.removeprefix(_CHANGING)
        rename(self.layer.fd, name, self.layer.fd, kept)
        self.empty(kept)

    def temp(self) -> bytes:
        """A fresh name for something half made."""
        self._count += 1
        return b"t%x" % self._count

    def at(self, name: bytes) -> tuple[int, bytes]:
        return self.layer.fd, name

    def proc(self, name: bytes) -> bytes:
        return self.layer.proc(name)

    def discard(self, name: bytes) -> None:
        """Remove a file or a whole directory; it is no error when there is none."""
        try:
            os.unlink(name, dir_fd=self.layer.fd)
        except FileNotFoundError:
            return
        except OSError as error:
            if error.errno not in (errno.EISDIR, errno.EPERM):
                raise
            try:
                os.rmdir(name, dir_fd=self.layer.fd)
            except OSError:
                self._discard_dir(self.layer.fd, name)

    def delete_kept(self, name: bytes) -> None:
        """As `discard`, of what nobody uses any more; the space of a big file comes back later."""
        with self._freeing.aside(self.layer.fd, name):
            self.discard(name)

    def unlink_kept(self, name: bytes, blocks: int) -> None:
        """As `delete_kept`, of a file that has so many blocks; OSError when it is not there."""
        if blocks * BLOCK_BYTES < BIG_BYTES:
            os.unlink(name, dir_fd=self.layer.fd)
            return
        with self._freeing.aside(self.layer.fd, name):
            os.unlink(name, dir_fd=self.layer.fd)

    def expect(self, blocks: int) -> None:
        """Note that a removed file of so many blocks is kept, and about to be deleted."""
        self._freeing.expect(blocks)

    def _discard_dir(self, fd: int, name: bytes) -> None:
        """Remove a directory, which holds whiteouts at most unless it is a predecessor's."""
        flags = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
        here = os.open(name, flags, dir_fd=fd)
        try:
            for entry in list(scan(b"/proc/self/fd/%d" % here)):
                if entry.is_dir(follow_symlinks=False):
                    self._discard_dir(here, entry.name)
                else:
                    os.unlink(entry.name, dir_fd=here)
        finally:
            os.close(here)
        os.rmdir(name, dir_fd=fd)

    def put_whiteout(self, fd: int, path: bytes) -> None:
        """Make a whiteout at a free name: a link to the shared one, or an inode of its own."""
        own = self.layer.fd
        for _ in range(2):
            try:
                os.link(_WHITEOUT, path, src_dir_fd=own, dst_dir_fd=fd, follow_symlinks=False)
                return
            except FileExistsError:
                raise
            except OSError as error:
                if error.errno == errno.ENOENT:
                    self._make_shared_whiteout()
                elif error.errno == errno.EMLINK:
                    self.retired(os.stat(_WHITEOUT, dir_fd=own, follow_symlinks=False))
                    os.unlink(_WHITEOUT, dir_fd=own)
                    self._make_shared_whiteout()
                else:
                    raise
        raise OSError(errno.EIO, "cannot make a whiteout", path)

    def _make_shared_whiteout(self) -> None:
        with contextlib.suppress(FileExistsError):
            os.mknod(_WHITEOUT, stat.S_IFCHR, 0, dir_fd=self.layer.fd)

    def shared_whiteout(self) -> os.stat_result | None:
        """Return what lstat says of the whiteout that others are links to, if there is one."""
        return stat_or_none(self.layer.fd, _WHITEOUT)

    def empty(self, name: bytes) -> None:
        """Remove what is in a directory that was removed; only whiteouts are."""
        for entry in list(scan(self.layer.proc(name))):
            os.unlink(entry.path)

    def replace_by_whiteout(self, fd: int, path: bytes) -> None:
        """Put a whiteout in the place of a file that is not a directory."""
        temp = self.temp()
        self.put_whiteout(self.layer.fd, temp)
        rename(self.layer.fd, temp, fd, path)

    def close(self) -> None:
        self.layer.close()
