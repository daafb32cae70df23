"""What is known of imported images: their layers, sizes, snapshots; tags and removal."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapfs.images import manifests
from snapfs.images.manifests import Config, Descriptor, Index, Layer, Manifest
from snapfs.images.unpacking import SNAPSHOTTER
from snapfs.metadata import Context, Image, Metadata
from snapfs.metadata import objects as metadata_objects
from snapfs.metadata.blobs import feed, hasher
from snapfs.metadata.references import GC
from snapfs.model import DataLoss, FailedPrecondition, InvalidArgument, NotFound, SnapfsError

_UNREADABLE = (NotFound, DataLoss, InvalidArgument)
"""What reading a document raises that is elsewhere, whose file is gone, or that is damaged."""


@dataclass(frozen=True, slots=True)
class Described:
    """An image with what its documents say."""

    image: Image
    platform: str = ""
    layers: tuple[Layer, ...] = ()
    created_by: tuple[str, ...] = ()
    """What made each layer, as far as the history says."""
    snapshot: str = ""
    """Name of the committed snapshot of the whole image; empty when it is not unpacked."""
    size_bytes: int = 0
    """All content that the image needs here, packed."""
    config_digest: str = ""
    content: tuple[str, ...] = ()
    """Digests of all content of it that is here: documents, then layers."""


class Catalog:
    """The images of a root, by namespace and name."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Described]:
        """Yield images in order of name."""
        for image in self._metadata.images.walk(namespace, filters):
            yield self._describe(namespace, image)

    def get(self, namespace: str, name: str) -> Described:
        """Return an image, or raise NotFound, which names those that may have been meant."""
        try:
            found = self._metadata.images.get(namespace, name)
        except NotFound as error:
            longer = (it.name for it in self._metadata.images.walk(namespace))
            meant = [each for each in longer if each.endswith(f"/{name}")]
            hint = f"; did you mean {' or '.join(meant)}?" if meant else ""
            raise NotFound(f"{error}{hint}") from None
        return self._describe(namespace, found)

    def get_at(self, namespace: str, name: str, at_ns: int) -> Described:
        """Return the image that a name stood for at a time, as far as its content is still here.

        Raises NotFound. Labels and times are not of that time, so it has none.
        """
        digest = self._metadata.images.digest_at(namespace, name, at_ns)
        try:
            size_bytes = self._metadata.content.info(namespace, digest).size_bytes
            media_type = self._read(namespace, digest, manifests.Typed).kind
        except _UNREADABLE:
            size_bytes, media_type = 0, ""
        target = metadata_objects.Descriptor(media_type, digest, size_bytes)
        return self._describe(namespace, Image(name=name, target=target))

    def tag(self, namespace: str, name: str, new_name: str) -> Described:
        """Give an image another name; one that has it already stands for this image from now on."""
        old = self._metadata.images.get(namespace, name)
        new = Image(name=new_name, target=old.target, labels=old.labels)
        return self._describe(namespace, self._metadata.images.put(Context(namespace), new))

    def remove(self, namespace: str, name: str, *, wait_s: float | None = None) -> None:
        """Remove a name; with `wait_s` a collection has run when this returns. Raises NotFound."""
        self._metadata.images.delete(namespace, name)
        if wait_s is not None:
            self._metadata.gc.trigger().result(timeout=wait_s)

    def snapshot(self, namespace: str, name: str) -> str:
        """Return the committed snapshot of an image, to mount.

        Raises NotFound, FailedPrecondition when the image is here but not unpacked.
        """
        found = self.get(namespace, name)
        if not found.snapshot:
            raise FailedPrecondition(
                f"image {name!r} is not unpacked here; import it again without --no-unpack"
            )
        return found.snapshot

    def verify(self, namespace: str, name: str) -> list[str]:
        """Read all content of an image again; return what is wrong with it, nothing if all is well.

        Raises NotFound when there is no such image.
        """
        found = self.get(namespace, name)
        content = found.content or self._reached(namespace, found.image)
        wrong = [text for digest in content for text in self._verify(namespace, digest)]
        if not found.content:
            return wrong or [f"image {name}: its content is not here"]
        if found.snapshot and not self._metadata.has_snapshot(namespace, found.snapshot):
            wrong.append(f"snapshot {found.snapshot} is gone")
        return wrong

    def _verify(self, namespace: str, digest: str) -> Iterator[str]:
        try:
            info = self._metadata.content.info(namespace, digest)
            fd = self._metadata.content.open(namespace, digest)
        except SnapfsError as error:
            yield str(error)
            return
        hash_ = hasher(digest)
        with os.fdopen(fd, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            feed(hash_, file.fileno(), size)
        if f"{hash_.name}:{hash_.hexdigest()}" != digest:
            path = self._metadata.content.path(namespace, digest)
            yield (
                f"content {digest} has other bytes by now; move its file {path} away and import "
                "the image again"
            )
        elif size != info.size_bytes:
            yield f"content {digest} is {size} bytes long, not {info.size_bytes}"

    def _reached(self, namespace: str, image: Image) -> tuple[str, ...]:
        """Return the digests of what an image leads to, as far as its documents can be read."""
        try:
            documents, manifest = self._manifest(namespace, _top(image))
        except _UNREADABLE:
            return (image.target.digest,)
        return (*documents, manifest.config.digest, *(it.digest for it in manifest.layers))

    def _describe(self, namespace: str, image: Image) -> Described:
        target = image.target
        try:
            documents, manifest = self._manifest(namespace, _top(image))
            config = self._read(namespace, manifest.config.digest, Config)
            layers = manifests.layers(manifest, config, f"image {image.name}")
            labels = self._metadata.content.info(namespace, manifest.config.digest).labels
        except _UNREADABLE:
            return Described(image)  # its content is elsewhere, on its way out, lost or damaged
        sizes = {it.descriptor.digest: it.descriptor.size for it in layers}
        total = sum(sizes.values()) + manifest.config.size + target.size_bytes
        made = tuple(step.created_by for step in config.history if not step.empty_layer)
        return Described(
            image,
            str(config.platform),
            layers,
            made if len(made) == len(layers) else ("",) * len(layers),
            labels.get(f"{GC}ref.snapshot.{SNAPSHOTTER}", ""),
            total,
            manifest.config.digest,
            tuple(dict.fromkeys((*documents, manifest.config.digest, *sizes))),
        )

    def _manifest(
        self, namespace: str, descriptor: Descriptor, depth: int = 0
    ) -> tuple[tuple[str, ...], Manifest]:
        """Return the manifest that is here of an image, and the digests of the way to it.

        Of an index that is the first whose content is here.
        """
        if not manifests.is_index(descriptor):
            return (descriptor.digest,), self._read(namespace, descriptor.digest, Manifest)
        index = self._read(namespace, descriptor.digest, Index)
        for each in index.manifests if depth < manifests.MAX_NESTED else ():
            try:
                way, manifest = self._manifest(namespace, each, depth + 1)
            except _UNREADABLE:
                continue
            return (descriptor.digest, *way), manifest
        raise NotFound(f"no manifest of {descriptor.digest} is here")

    def _read(
        self, namespace: str, digest: str, kind: type[manifests.Document]
    ) -> manifests.Document:
        raw = self._metadata.content.path(namespace, digest).read_bytes()
        return manifests.parse(raw, kind, digest)


def _top(image: Image) -> Descriptor:
    target = image.target
    return Descriptor(target.media_type, target.digest, target.size_bytes)
