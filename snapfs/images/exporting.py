"""Images out: an OCI layout in a tar file that `docker load` and `ctr images import` read too."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import BinaryIO, cast

import msgspec

from snapfs import wholefile
from snapfs.images import manifests, sources
from snapfs.images.catalog import Catalog, Described
from snapfs.images.progress import REPORT_EVERY_BYTES, Progress
from snapfs.metadata import Metadata
from snapfs.model import FailedPrecondition, InvalidArgument

DOCKER_MANIFEST = "manifest.json"


class Exporter:
    """Writes images of a root to files."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata
        self._catalog = Catalog(metadata)

    def export(
        self,
        namespace: str,
        names: Sequence[str],
        path: Path,
        report: Callable[[Progress], None] = lambda _step: None,
    ) -> None:
        """Write images to a new file, which is whole and durable when this returns.

        The file has the same bytes whenever the same images are written. Raises NotFound,
        FailedPrecondition when the content of an image is not all here or the file exists.
        """
        if not names:
            raise InvalidArgument("no image is named; name one")
        if os.path.lexists(path):
            raise FailedPrecondition(f"{path} exists; remove it, or write to another file")
        images = [self._catalog.get(namespace, name) for name in names]
        for image in images:
            if not image.layers and not image.config_digest:
                raise FailedPrecondition(
                    f"the content of image {image.image.name!r} is not all here"
                )
        with (
            wholefile.whole(path) as file,
            tarfile.open(fileobj=file, mode="w", format=tarfile.PAX_FORMAT) as archive,
        ):
            self._write(archive, namespace, images, report)

    def _write(
        self,
        archive: tarfile.TarFile,
        namespace: str,
        images: Sequence[Described],
        report: Callable[[Progress], None],
    ) -> None:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        index = []
        docker = []
        written: set[str] = set()
        for image in images:
            for digest in image.content:
                if digest not in written:
                    written.add(digest)
                    self._add_blob(archive, namespace, digest, report)
            target = image.image.target
            annotations = {
                **target.annotations,
                manifests.IMAGE_NAME: image.image.name,
                manifests.REF_NAME: image.image.name.rpartition(":")[2],
            }
            index.append(
                {
                    "mediaType": target.media_type,
                    "digest": target.digest,
                    "size": target.size_bytes,
                    "annotations": annotations,
                }
            )
            docker.append(
                {
                    "Config": sources.blob(image.config_digest),
                    "RepoTags": [image.image.name],
                    "Layers": [sources.blob(it.descriptor.digest) for it in image.layers],
                }
            )
        document = {"schemaVersion": 2, "manifests": index}
        _add(archive, sources.INDEX, msgspec.json.encode(document))
        _add(archive, DOCKER_MANIFEST, msgspec.json.encode(docker))

    def _add_blob(
        self,
        archive: tarfile.TarFile,
        namespace: str,
        digest: str,
        report: Callable[[Progress], None],
    ) -> None:
        path = self._metadata.content.path(namespace, digest)
        size = path.stat().st_size
        member = tarfile.TarInfo(sources.blob(digest))
        member.size, member.mode = size, 0o444
        with path.open("rb") as file:
            shown = _Reported(file, partial(_say, report, digest, size))
            archive.addfile(member, cast(BinaryIO, shown))
        report(Progress("write", digest, size, size))


def _say(report: Callable[[Progress], None], digest: str, size: int, done: int) -> None:
    report(Progress("write", digest, done, size))


class _Reported:
    """A file that tells, now and then, how far it has been read."""

    def __init__(self, inner: BinaryIO, say: Callable[[int], None]) -> None:
        self._inner, self._say = inner, say
        self._done, self._next = 0, 0

    def read(self, size: int = -1) -> bytes:
        data = self._inner.read(size)
        self._done += len(data)
        if self._done >= self._next:
            self._next = self._done + REPORT_EVERY_BYTES
            self._say(self._done)
        return data


def _add(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), 0o444
    archive.addfile(member, io.BytesIO(data))
