"""Where images come from: a directory or an archive in the OCI layout, or a docker-archive.

A source gives files by path and the images that it holds; it verifies nothing and changes nothing.
"""

from __future__ import annotations

import gzip
import os
import stat
import tarfile
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO, Protocol, cast

import zstandard

from snapfs.closing import Closing
from snapfs.images.headers import BoundedTar, LongHeaders
from snapfs.images.limits import Limits
from snapfs.images.manifests import MAX_DOCUMENT_BYTES, DockerImage, Index, parse
from snapfs.metadata.words import shown
from snapfs.model import InvalidArgument, NotFound, TooLarge

GZIP_MAGIC = b"\x1f\x8b"
ZSTD_MAGIC = b"\x28\xb5\x2f\xfd"
MAX_MEMBERS = 100_000
MAX_NAME_CHARS = 4096
BLOBS = "blobs/"
INDEX = "index.json"
DOCKER_MANIFEST = "manifest.json"


class Source(Protocol):
    """Files by their path in the layout."""

    name: str

    def has(self, path: str) -> bool: ...

    def open(self, path: str) -> BinaryIO:
        """Open a file; NotFound when it is not there."""

    def size(self, path: str) -> int: ...


class Directory:
    """A layout in a directory; links that lead out of it are not followed."""

    def __init__(self, path: Path) -> None:
        self._root = path
        self.name = str(path)

    def has(self, path: str) -> bool:
        return os.path.lexists(self._root / path)

    def open(self, path: str) -> BinaryIO:
        place = self._root
        parts = PurePosixPath(path).parts
        for part in parts[:-1]:
            place = place / part
            if place.is_symlink():
                raise InvalidArgument(f"{self.name}: {shown(path)} leads through a symbolic link")
        try:
            fd = os.open(place / parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except FileNotFoundError:
            raise NotFound(f"{self.name} has no {shown(path)}") from None
        except OSError as error:
            raise InvalidArgument(f"{self.name}: {shown(path)}: {error.strerror}") from None
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            os.close(fd)
            raise InvalidArgument(f"{self.name}: {shown(path)} is no regular file")
        return os.fdopen(fd, "rb")

    def size(self, path: str) -> int:
        with self.open(path) as file:
            return os.fstat(file.fileno()).st_size


class Archive(Closing):
    """A layout in a tar file, compressed or not.

    A name that comes twice is refused, since others may read the other one; blobs are verified.
    """

    def __init__(self, path: Path, limits: Limits) -> None:
        self.name = str(path)
        self._stack = ExitStack()
        self._members: dict[str, tarfile.TarInfo] = {}
        with ExitStack() as stack:
            file = stack.enter_context(_plain(path, limits))
            try:
                tar = stack.enter_context(BoundedTar.open(fileobj=file, mode="r:"))
                self._read_names(tar)
            except LongHeaders as error:
                raise TooLarge(f"{path} {error}") from None
            except (tarfile.TarError, EOFError, OSError, RecursionError) as error:
                raise InvalidArgument(f"{path} is no archive of images: {error}") from None
            self._tar = tar
            self._stack = stack.pop_all()

    def has(self, path: str) -> bool:
        return path in self._members

    def open(self, path: str) -> BinaryIO:
        member = self._members.get(path)
        seen = 0
        while member is not None and (member.issym() or member.islnk()):
            # docker save links layers that are the same
            seen += 1
            target = member.linkname
            if member.issym():
                target = os.path.normpath(str(PurePosixPath(member.name).parent / target))
            member = self._members.get(target) if seen < 8 else None
        if member is None:
            raise NotFound(f"{self.name} has no {shown(path)}")
        file = self._tar.extractfile(member)
        if file is None:
            raise InvalidArgument(f"{self.name}: {shown(path)} is no regular file")
        return cast(BinaryIO, file)

    def size(self, path: str) -> int:
        with self.open(path) as file:
            return file.seek(0, os.SEEK_END)

    def close(self) -> None:
        self._stack.close()

    def _read_names(self, tar: tarfile.TarFile) -> None:
        for number, member in enumerate(tar):
            if number >= MAX_MEMBERS:
                raise InvalidArgument(
                    f"{self.name} has over {MAX_MEMBERS} files; it holds no image"
                )
            if max(len(member.name), len(member.linkname)) > MAX_NAME_CHARS:
                raise InvalidArgument(f"{self.name} has names that no image has")
            member.pax_headers = {}  # not to be kept
            name = os.path.normpath(member.name)
            if name in self._members and not member.isdir() and not name.startswith(BLOBS):
                raise InvalidArgument(f"{self.name} has {shown(name)} twice; which one counts?")
            self._members[name] = member


@contextmanager
def opened(path: Path, limits: Limits) -> Iterator[Source]:
    """Open what is at `path`: a directory or an archive."""
    if path.is_dir():
        yield Directory(path)
    elif path.exists():
        with Archive(path, limits) as archive:
            yield archive
    else:
        raise NotFound(f"{path} does not exist")


def read(source: Source, path: str) -> bytes:
    """Return a document of a source, or raise InvalidArgument when it is too long."""
    with source.open(path) as file:
        raw = file.read(MAX_DOCUMENT_BYTES + 1)
    if len(raw) > MAX_DOCUMENT_BYTES:
        raise InvalidArgument(f"{source.name}: {path} is over {MAX_DOCUMENT_BYTES} bytes long")
    return raw


def blob(digest: str) -> str:
    """Return the path of a blob in the OCI layout."""
    algorithm, _, encoded = digest.partition(":")
    return f"{BLOBS}{algorithm}/{encoded}"


def index(source: Source) -> Index | None:
    """Return the index of an OCI layout, or None when it is not one."""
    if not source.has(INDEX):
        return None
    return parse(read(source, INDEX), Index, f"{source.name}: {INDEX}")


def docker_images(source: Source) -> list[DockerImage]:
    """Return the images of a docker-archive, or raise InvalidArgument when it is not one."""
    if not source.has(DOCKER_MANIFEST):
        raise InvalidArgument(
            f"{source.name} holds no image: it has neither {INDEX} (OCI layout) nor "
            f"{DOCKER_MANIFEST} (docker save)"
        )
    what = f"{source.name}: {DOCKER_MANIFEST}"
    return parse(read(source, DOCKER_MANIFEST), list[DockerImage], what)


@contextmanager
def _plain(path: Path, limits: Limits) -> Iterator[BinaryIO]:
    """Open an archive to read at any place; a compressed one goes into a nameless file first."""
    with path.open("rb") as file:
        head = file.read(4)
        file.seek(0)
        if not head.startswith((GZIP_MAGIC, ZSTD_MAGIC)):
            yield file
            return
        with tempfile.TemporaryFile(dir=path.parent) as plain:
            stream = decompressed(file, head)
            try:
                while data := stream.read(1 << 20):
                    plain.write(data)
                    limits.check(file.tell(), plain.tell(), 0, str(path))
            except (EOFError, zlib.error, gzip.BadGzipFile, zstandard.ZstdError) as error:
                raise InvalidArgument(f"{path} is damaged: {error}") from None
            plain.seek(0)
            yield cast(BinaryIO, plain)


def decompressed(file: BinaryIO, head: bytes) -> BinaryIO:
    """Return a stream of what `file` holds, by the first bytes of it."""
    if head.startswith(GZIP_MAGIC):
        return cast(BinaryIO, gzip.GzipFile(fileobj=file))
    if head.startswith(ZSTD_MAGIC):
        reader = zstandard.ZstdDecompressor().stream_reader(file, read_across_frames=True)
        return cast(BinaryIO, reader)
    return file
