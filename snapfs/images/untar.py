"""Putting a layer's archive into a directory, as a kernel-overlayfs layer.

Whiteouts of the archive (`.wh.NAME`, `.wh..wh..opq`) become those of overlayfs. Two ways:

    into an upper directory alone   needs no parent, so layers can be unpacked side by side; refused
                                    (NeedsParent) when the archive leaves out a directory on the way
                                    to a file, or links to a file of a layer below
    into a merged tree              the same on a mounted overlay; whiteouts remove

INVARIANT nothing is made, changed or removed outside the directory: each name is reached through
descriptors of directories that are no symbolic links, component by component.
Source: OCI image-spec, layer.md; containerd archive/tar.go.
"""

from __future__ import annotations

import errno
import os
import stat
import tarfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from typing import BinaryIO

from snapfs.images.headers import BoundedTar, LongHeaders
from snapfs.images.limits import Limits
from snapfs.metadata.words import shown
from snapfs.model import InvalidArgument, TooLarge
from snapfs.overlay import devices

WHITEOUT = ".wh."
OPAQUE = ".wh..wh..opq"
_AUFS = ".wh..wh."
_OPAQUE_XATTR = "trusted.overlay.opaque"
_HOST_XATTRS = "trusted."
_XATTR = "SCHILY.xattr."
_COPY_BYTES = 1 << 20
_OPEN_DIRECTORIES = 64
_DIRECTORY = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC

_DAMAGE = (
    tarfile.TarError,
    EOFError,
    zlib.error,
    ValueError,
    OverflowError,  # a time, owner or device that no file can have
    RecursionError,
)


class NeedsParent(Exception):
    """The archive can only be put on top of what is below it."""


class Counter:
    """Bytes that were read of a layer, by who reads it."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self.bytes_read = 0

    def read(self, size: int = -1) -> bytes:
        data = self._file.read(size)
        self.bytes_read += len(data)
        return data


def unpack(
    stream: BinaryIO, packed: Counter, target: int, *, merged: bool, limits: Limits, what: str
) -> None:
    """Unpack a plain tar stream into the directory `target` (a descriptor).

    `merged` says that the directory shows the layers below. Raises InvalidArgument for an archive
    that is damaged or leads out of the directory, TooLarge, NeedsParent, OSError for the disk; the
    directory is then to be thrown away.
    """
    job = _Unpacking(target, merged=merged, what=what)
    try:
        with BoundedTar.open(fileobj=stream, mode="r|") as tar:
            unpacked = 0
            for entries, member in enumerate(tar, start=1):
                unpacked += member.size if member.isreg() else 0
                limits.check(packed.bytes_read, unpacked, entries, what)
                job.put(tar, member)
                tar.members.clear()  # tarfile keeps them all
        job.finish()
    except LongHeaders as error:
        raise TooLarge(f"{what} {error}") from None
    except _DAMAGE as error:
        raise InvalidArgument(f"{what} is damaged: {error}") from None
    finally:
        job.close()


class _Unpacking:
    def __init__(self, target: int, *, merged: bool, what: str) -> None:
        self._target = target
        self._merged = merged
        self._what = what
        self._open: dict[tuple[str, ...], int] = {}
        self._times: dict[tuple[str, ...], int] = {}
        """Modification times of directories, set at the end."""
        self._made: set[tuple[str, ...]] = {()}
        """Everything that this archive put there."""
        self._whiteouts: dict[tuple[str, ...], None] = {}
        self._opaque: list[tuple[str, ...]] = []

    def put(self, tar: tarfile.TarFile, member: tarfile.TarInfo) -> None:
        path = self._path(member.name)
        name = path[-1] if path else ""
        if name == OPAQUE:
            self._opaque.append(path[:-1])
        elif name.startswith(_AUFS):
            return
        elif name.startswith(WHITEOUT):
            hidden = name.removeprefix(WHITEOUT)
            if hidden in ("", ".", ".."):
                raise InvalidArgument(f"{self._what}: {shown(member.name)} hides nothing")
            self._whiteouts[*path[:-1], hidden] = None
            self._hide(path[:-1], hidden)
        else:
            self._make(tar, member, path)

    def finish(self) -> None:
        """Mark opaque directories and set the times of all, children first."""
        for path in self._opaque:
            self._make_opaque(path)
        if not self._merged:
            for path in self._whiteouts:
                if path in self._made and path in self._times:
                    self._make_opaque(path)  # hidden below, and a directory here
        for path in sorted(self._times, key=len, reverse=True):
            with self._directory(path) as fd:
                os.utime(fd, ns=(self._times[path], self._times[path]))
        self.close()

    def close(self) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def _path(self, name: str) -> tuple[str, ...]:
        if name.startswith("/") or "\0" in name:
            raise InvalidArgument(f"{self._what}: {shown(name)} is no path inside a layer")
        parts = tuple(part for part in name.split("/") if part not in ("", "."))
        if ".." in parts:
            raise InvalidArgument(f"{self._what}: {shown(name)} leads out of the layer")
        return parts

    # Directories on the way

    @contextmanager
    def _directory(self, path: tuple[str, ...]) -> Iterator[int]:
        """Give a descriptor of a directory below the target; no component may be a link."""
        kept = self._open.get(path)
        if kept is None:
            kept = self._walk(path)
            if len(self._open) >= _OPEN_DIRECTORIES:
                self.close()
            self._open[path] = kept
        fd = os.dup(kept)  # what is kept may be closed meanwhile
        try:
            yield fd
        finally:
            os.close(fd)

    def _walk(self, path: tuple[str, ...]) -> int:
        fd = os.open(".", _DIRECTORY, dir_fd=self._target)
        for depth, part in enumerate(path, start=1):
            try:
                inner = self._enter(fd, part, path[:depth])
            finally:
                os.close(fd)
            fd = inner
        return fd

    def _enter(self, fd: int, part: str, path: tuple[str, ...]) -> int:
        try:
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except FileNotFoundError:
            if not self._merged:
                raise NeedsParent(f"{self._what} has no entry for {'/'.join(path)}") from None
            os.mkdir(part, 0o755, dir_fd=fd)
            return os.open(part, _DIRECTORY, dir_fd=fd)
        except OSError as error:
            if error.errno not in (errno.ELOOP, errno.ENOTDIR):
                raise
            if path not in self._made and not self._merged:
                raise NeedsParent(f"{self._what} goes through {'/'.join(path)}") from None
            raise InvalidArgument(
                f"{self._what}: a path goes through {shown('/'.join(path))}, which is no directory"
            ) from None

    # Entries

    def _make(self, tar: tarfile.TarFile, member: tarfile.TarInfo, path: tuple[str, ...]) -> None:
        if not path:
            if not member.isdir():
                raise InvalidArgument(f"{self._what}: its root is no directory")
            self._describe(self._target, ".", member, ())
            return
        with self._directory(path[:-1]) as parent:
            name = path[-1]
            there = _lstat(parent, name)
            if there is not None and not (member.isdir() and stat.S_ISDIR(there.st_mode)):
                self._remove(parent, name, path, there)
                there = None
            self._create(tar, member, parent, path, exists=there is not None)
        self._made.add(path)

    def _create(
        self,
        tar: tarfile.TarFile,
        member: tarfile.TarInfo,
        parent: int,
        path: tuple[str, ...],
        *,
        exists: bool,
    ) -> None:
        name = path[-1]
        if member.isdir():
            if not exists:
                os.mkdir(name, 0o700, dir_fd=parent)
        elif member.isreg():
            self._write(tar, member, parent, name)
        elif member.issym():
            os.symlink(member.linkname, name, dir_fd=parent)
        elif member.islnk():
            self._link(member, parent, name)
            return
        elif member.ischr() or member.isblk() or member.isfifo():
            self._node(member, parent, name)
        else:
            raise InvalidArgument(
                f"{self._what}: {shown(member.name)} is of a type that layers do not have"
            )
        self._describe(parent, name, member, path)

    def _write(self, tar: tarfile.TarFile, member: tarfile.TarInfo, parent: int, name: str) -> None:
        source = tar.extractfile(member)
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        fd = os.open(name, flags, 0o600, dir_fd=parent)
        with os.fdopen(fd, "wb") as file:
            left = member.size
            while source is not None and left:
                data = source.read(min(_COPY_BYTES, left))
                if not data:
                    raise InvalidArgument(f"{self._what} ends inside {shown(member.name)}")
                left -= len(data)
                if member.issparse() and not data.strip(b"\0"):
                    file.seek(len(data), os.SEEK_CUR)
                else:
                    file.write(data)
            if member.issparse():
                file.truncate(member.size)

    def _node(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        kind = stat.S_IFIFO
        if member.ischr():
            kind = stat.S_IFCHR
        elif member.isblk():
            kind = stat.S_IFBLK
        device = 0 if member.isfifo() else os.makedev(member.devmajor, member.devminor)
        if devices.is_whiteout_like(kind, device):
            devices.make(parent, os.fsencode(name), 0o600)
            return
        os.mknod(name, kind | 0o600, device, dir_fd=parent)

    def _link(self, member: tarfile.TarInfo, parent: int, name: str) -> None:
        target = self._path(member.linkname)
        if not target:
            raise InvalidArgument(f"{self._what}: {shown(member.name)} is a link to nothing")
        if target in self._whiteouts and target not in self._made:
            raise InvalidArgument(
                f"{self._what}: {shown(member.name)} is a link to {shown(member.linkname)}, which "
                "the layer hides"
            )
        with self._directory(target[:-1]) as directory:
            there = _lstat(directory, target[-1])
            if there is None:
                if self._merged:
                    raise InvalidArgument(
                        f"{self._what}: {shown(member.name)} is a link to "
                        f"{shown(member.linkname)}, which is not there"
                    )
                raise NeedsParent(f"{self._what} links to {member.linkname}")
            if stat.S_ISDIR(there.st_mode):
                raise InvalidArgument(f"{self._what}: {shown(member.name)} links to a directory")
            os.link(
                target[-1], name, src_dir_fd=directory, dst_dir_fd=parent, follow_symlinks=False
            )

    def _describe(
        self, parent: int, name: str, member: tarfile.TarInfo, path: tuple[str, ...]
    ) -> None:
        """Set owner, mode, attributes and time, in an order in which none undoes another."""
        os.chown(name, member.uid, member.gid, dir_fd=parent, follow_symlinks=False)
        if not member.issym():
            os.chmod(name, member.mode & 0o7777, dir_fd=parent)
        place = f"/proc/self/fd/{parent}/{name}"
        for key, value in member.pax_headers.items():
            if key.startswith(_XATTR):
                self._set_xattr(place, key.removeprefix(_XATTR), value)
        mtime_ns = int(float(member.pax_headers.get("mtime", member.mtime)) * 1_000_000_000)
        if "mtime" in member.pax_headers:
            mtime_ns = _nanoseconds(member.pax_headers["mtime"], mtime_ns)
        if member.isdir():
            self._times[path] = mtime_ns
        else:
            os.utime(name, ns=(mtime_ns, mtime_ns), dir_fd=parent, follow_symlinks=False)

    def _set_xattr(self, place: str, name: str, value: str) -> None:
        """Set an attribute; an image has none of the host's own, as with containerd."""
        if not name.startswith(_HOST_XATTRS):
            raw = value.encode("utf-8", "surrogateescape")
            os.setxattr(place, name, raw, follow_symlinks=False)

    # What is hidden

    def _hide(self, parent: tuple[str, ...], name: str) -> None:
        with self._directory(parent) as fd:
            there = _lstat(fd, name)
            if self._merged:
                if there is not None and (*parent, name) not in self._made:
                    self._remove(fd, name, (*parent, name), there)
            elif there is None:
                os.mknod(name, stat.S_IFCHR, 0, dir_fd=fd)

    def _make_opaque(self, path: tuple[str, ...]) -> None:
        with self._directory(path) as fd:
            if not self._merged:
                os.setxattr(f"/proc/self/fd/{fd}", _OPAQUE_XATTR, b"y")
                return
            for name in os.listdir(fd):
                there = _lstat(fd, name)
                if (*path, name) not in self._made and there is not None:
                    self._remove(fd, name, (*path, name), there)

    def _remove(self, parent: int, name: str, path: tuple[str, ...], there: os.stat_result) -> None:
        if not stat.S_ISDIR(there.st_mode):
            os.unlink(name, dir_fd=parent)
            return
        self.close()
        fd = os.open(name, _DIRECTORY, dir_fd=parent)
        try:
            for inner in os.listdir(fd):
                found = _lstat(fd, inner)
                if found is not None:
                    self._remove(fd, inner, (*path, inner), found)
        finally:
            os.close(fd)
        os.rmdir(name, dir_fd=parent)
        self._made.discard(path)
        self._times.pop(path, None)


def _lstat(parent: int, name: str) -> os.stat_result | None:
    try:
        return os.stat(name, dir_fd=parent, follow_symlinks=False)
    except FileNotFoundError:
        return None


def _nanoseconds(text: str, fallback: int) -> int:
    """Return a pax time exactly, as a float would not."""
    whole, _, fraction = text.partition(".")
    try:
        seconds = int(whole)
        part = int(fraction[:9].ljust(9, "0")) if fraction else 0
    except ValueError:
        return fallback
    return seconds * 1_000_000_000 + (-part if text.startswith("-") else part)
