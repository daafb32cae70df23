"""Importing images: bytes into content, layers into snapshots, names into images.

    content    every blob is written by its digest and refused when it has another; what is there
               already is not read again
    snapshots  each layer that no image has had yet is unpacked into an active snapshot without a
               parent, side by side with others; then, lowest first, each becomes the committed
               CHAIN ID on the one below. A layer that needs what is below it is unpacked on top of
               that, mounted as an overlay.
    images     at the end, one row a name

A lease holds all of it until the names do. An import that fails or is killed leaves nothing that
the next collection does not take; what it had finished is not done again by the next import.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from snapfs.images import manifests, sources, unpacking
from snapfs.images.docker import as_oci
from snapfs.images.leasing import leased
from snapfs.images.limits import Limits
from snapfs.images.manifests import Config, Descriptor, Index, Layer, Manifest, Platform
from snapfs.images.progress import Progress
from snapfs.images.sources import Source
from snapfs.images.unpacking import SNAPSHOTTER
from snapfs.metadata import Context, Image, Metadata, Resource, Wish, Writer
from snapfs.metadata import Descriptor as Target
from snapfs.metadata.references import GC
from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapfs.snapshots import Snapshotter

log = structlog.get_logger(__name__)

COPY_BYTES = 1 << 20
WORKERS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Wanted:
    """What to import, and how."""

    name: str = ""
    """Name for an image that has none, or for the only one."""
    platform: Platform | None = None
    """None: of an index the host's, and an image for one platform whatever that is."""
    unpack: bool = True
    limits: Limits = field(default_factory=Limits)


Report = Callable[[Progress], None]


class Importer:
    """Imports into one root."""

    def __init__(
        self, metadata: Metadata, snapshotter: Snapshotter, *, workers: int = WORKERS
    ) -> None:
        self._metadata = metadata
        self._snapshotter = snapshotter
        self._workers = workers

    def import_path(
        self, namespace: str, path: Path, wanted: Wanted, report: Report = lambda _step: None
    ) -> list[Image]:
        """Import every image at `path` for the wanted platform; return them.

        Raises NotFound and InvalidArgument for what is no image or a damaged one,
        FailedPrecondition when it has none for the platform, TooLarge for a bomb.
        """
        with (
            sources.opened(path, wanted.limits) as source,
            leased(self._metadata, namespace, "import") as lease,
        ):
            job = Job(
                self._metadata,
                self._snapshotter,
                Context(namespace, lease),
                source,
                wanted,
                report,
                self._workers,
            )
            return job.run()


@dataclass(frozen=True, slots=True)
class Found:
    """An image in a source."""

    names: tuple[str, ...]
    target: Descriptor
    """Index or manifest."""


class Job:
    """One import."""

    def __init__(
        self,
        metadata: Metadata,
        snapshotter: Snapshotter,
        context: Context,
        source: Source,
        wanted: Wanted,
        report: Report,
        workers: int,
    ) -> None:
        self._metadata = metadata
        self._context = context
        self._source = source
        self._wanted = wanted
        self._report = report
        self._reporting = threading.Lock()
        self._unpacker = unpacking.Unpacker(
            metadata, snapshotter, context, wanted.limits, self._say, workers
        )

    def run(self) -> list[Image]:
        index = sources.index(self._source)
        found = self._oci(index) if index else self._docker()
        if not found:
            raise InvalidArgument(f"{self._source.name} holds no image")
        images = []
        for each in found:
            self._read_image(each.target)
            images += [self._name(name, each.target) for name in self._names(each, len(found))]
        return images

    # What there is

    def _oci(self, index: Index) -> list[Found]:
        found: dict[str, Found] = {}
        for each in index.manifests:
            if not (manifests.is_index(each) or manifests.is_manifest(each)):
                continue
            manifests.check(each, self._source.name)
            before = found.get(each.digest)
            names = (*(before.names if before else ()), *manifests.names(each.annotations))
            found[each.digest] = Found(names, each)
        return list(found.values())

    def _docker(self) -> list[Found]:
        found = []
        for image in sources.docker_images(self._source):
            converted = as_oci(self._source, image)
            for digest, path in converted.files.items():
                self._write_file(digest, path)
            for digest, raw in converted.documents.items():
                self._write_document(digest, raw)
            found.append(Found(tuple(image.repo_tags or ()), converted.manifest))
        return found

    def _names(self, found: Found, count: int) -> tuple[str, ...]:
        if self._wanted.name and count == 1:
            return (self._wanted.name,)
        if found.names:
            return found.names
        if self._wanted.name:
            return (f"{self._wanted.name}@{found.target.digest}",)
        return (found.target.digest,)

    # Content

    def _read_image(self, target: Descriptor, depth: int = 0) -> None:
        """Have all content of an image, labelled so that it stays, and its layers unpacked."""
        if manifests.is_index(target):
            if depth == manifests.MAX_NESTED:
                raise InvalidArgument(
                    f"index {target.digest} is in {depth} others; no image is looked for there"
                )
            raw = self._document(target)
            index = manifests.parse(raw, Index, f"index {target.digest}")
            chosen = manifests.choose(
                index.manifests,
                self._wanted.platform or manifests.host(),
                f"image {target.digest}",
            )
            self._read_image(manifests.check(chosen, f"index {target.digest}"), depth + 1)
            there = {each.digest for each in index.manifests if self._has(each.digest)}
            labels = {f"{GC}ref.content.m.{n}": each for n, each in enumerate(sorted(there))}
            self._label(target.digest, labels)
            return
        self._read_manifest(target)

    def _read_manifest(self, target: Descriptor) -> None:
        what = f"image {target.digest}"
        manifest = manifests.parse(self._document(target), Manifest, f"manifest {target.digest}")
        config_raw = self._document(manifests.check(manifest.config, what))
        config = manifests.parse(config_raw, Config, f"configuration {manifest.config.digest}")
        manifests.check_platform(config.platform, self._wanted.platform, what)
        layers = manifests.layers(manifest, config, what)
        self._read_layers(layers)
        labels = {f"{GC}ref.content.config": manifest.config.digest}
        labels |= {f"{GC}ref.content.l.{n}": it.descriptor.digest for n, it in enumerate(layers)}
        self._label(target.digest, labels)
        if self._wanted.unpack and layers:
            self._unpacker.unpack(layers)
            self._label(
                manifest.config.digest, {f"{GC}ref.snapshot.{SNAPSHOTTER}": layers[-1].chain_id}
            )

    def _read_layers(self, layers: Sequence[Layer]) -> None:
        wanted = {layer.descriptor.digest: layer.descriptor for layer in layers}
        for descriptor in wanted.values():
            if not self._has(descriptor.digest):
                self._write_file(
                    descriptor.digest, sources.blob(descriptor.digest), descriptor.size
                )

    def _document(self, descriptor: Descriptor) -> bytes:
        """Return a document as content has it; a source's is written there first."""
        if descriptor.size > manifests.MAX_DOCUMENT_BYTES:
            raise InvalidArgument(f"{descriptor.digest} is too long for a document")
        if not self._has(descriptor.digest):
            path = sources.blob(descriptor.digest)
            self._write_document(descriptor.digest, sources.read(self._source, path))
        return self._metadata.content.path(self._context.namespace, descriptor.digest).read_bytes()

    def _has(self, digest: str) -> bool:
        """Say whether the namespace has content; the lease holds it from before the look on.

        What it has and was lost is to be written again.
        """
        namespace, lease = self._context.namespace, self._context.lease
        self._metadata.leases.add(namespace, lease, Resource("content", digest))
        try:
            self._metadata.content.info(namespace, digest)
        except NotFound:
            return False
        return not self._metadata.content.is_lost(digest)

    def _write_document(self, digest: str, raw: bytes) -> None:
        if not self._has(digest):
            with self._writer(digest) as writer:
                if not writer.virtual:
                    writer.truncate(0)
                    writer.write(raw)
                self._commit(writer, len(raw), digest)

    def _write_file(self, digest: str, path: str, size: int | None = None) -> None:
        if self._has(digest):
            return
        total = self._source.size(path) if size is None else size
        with self._writer(digest) as writer:
            if not writer.virtual:
                self._copy(path, writer, digest, total)
            self._commit(writer, total, digest)

    def _copy(self, path: str, writer: Writer, digest: str, total: int) -> None:
        writer.truncate(0)
        done = 0
        with self._source.open(path) as file:
            while data := file.read(COPY_BYTES):
                done += writer.write(data)
                self._say(Progress("read", digest, done, total))
                if done > total:
                    break  # the commit says what is wrong

    def _writer(self, digest: str) -> Writer:
        return self._metadata.content.writer(self._context, f"import-{digest}", expected=digest)

    def _commit(self, writer: Writer, size: int, digest: str) -> None:
        try:
            writer.commit(Wish(size, digest))
        except AlreadyExists:
            return
        except FailedPrecondition as error:
            raise InvalidArgument(f"{self._source.name} is damaged: {error}") from None

    def _label(self, digest: str, labels: dict[str, str]) -> None:
        paths = [f"labels.{key}" for key in labels]
        if labels:
            self._metadata.content.update(self._context.namespace, digest, labels, paths)

    def _name(self, name: str, target: Descriptor) -> Image:
        image = Image(
            name=name,
            target=Target(target.media_type, target.digest, target.size, target.annotations),
        )
        made = self._metadata.images.put(self._context, image)
        self._say(Progress("done", name))
        log.info("image.imported", name=name, digest=target.digest)
        return made

    def _say(self, step: Progress) -> None:
        with self._reporting:
            self._report(step)
