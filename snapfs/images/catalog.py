"""What is known of imported images: their layers, sizes, snapshots; tags and removal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from snapfs.images import manifests
from snapfs.images.manifests import Config, Descriptor, Index, Layer, Manifest
from snapfs.images.unpacking import SNAPSHOTTER
from snapfs.metadata import Context, Image, Metadata
from snapfs.metadata.references import GC
from snapfs.model import AlreadyExists, FailedPrecondition, NotFound


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


class Catalog:
    """The images of a root, by namespace and name."""

    def __init__(self, metadata: Metadata) -> None:
        self._metadata = metadata

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Described]:
        """Yield images in order of name."""
        for image in self._metadata.images.walk(namespace, filters):
            yield self._describe(namespace, image)

    def get(self, namespace: str, name: str) -> Described:
        """Return an image, or raise NotFound."""
        return self._describe(namespace, self._metadata.images.get(namespace, name))

    def tag(self, namespace: str, name: str, new_name: str) -> Described:
        """Give an image another name; one that has it already stands for this image from now on."""
        old = self._metadata.images.get(namespace, name)
        new = Image(name=new_name, target=old.target, labels=old.labels)
        context = Context(namespace)
        try:
            made = self._metadata.images.create(context, new)
        except AlreadyExists:
            made = self._metadata.images.update(context, new, ["target"])
        return self._describe(namespace, made)

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

    def _describe(self, namespace: str, image: Image) -> Described:
        target = image.target
        top = Descriptor(target.media_type, target.digest, target.size_bytes)
        try:
            manifest = self._manifest(namespace, top)
            config = self._read(namespace, manifest.config.digest, Config)
            layers = manifests.layers(manifest, config, f"image {image.name}")
            labels = self._metadata.content.info(namespace, manifest.config.digest).labels
        except NotFound:
            return Described(image)  # its content is elsewhere, or on its way out
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
        )

    def _manifest(self, namespace: str, descriptor: Descriptor) -> Manifest:
        """Return the manifest that is here of an image: of an index, the one whose content is."""
        if not manifests.is_index(descriptor):
            return self._read(namespace, descriptor.digest, Manifest)
        index = self._read(namespace, descriptor.digest, Index)
        for each in index.manifests:
            try:
                return self._manifest(namespace, each)
            except NotFound:
                continue
        raise NotFound(f"no manifest of {descriptor.digest} is here")

    def _read(
        self, namespace: str, digest: str, kind: type[manifests.Document]
    ) -> manifests.Document:
        raw = self._metadata.content.path(namespace, digest).read_bytes()
        return manifests.parse(raw, kind, digest)
