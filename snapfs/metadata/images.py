"""Images: names for content, with labels."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import msgspec

from snapfs.filters import Adaptor
from snapfs.metadata import linking, masks, naming, references
from snapfs.metadata.manager import Manager, adaptor, check_revision, found, take
from snapfs.metadata.objects import Context, Descriptor, Image, ResourceType
from snapfs.metadata.references import EXPIRE, Name, Type
from snapfs.metadata.schema import IMAGES, ImageBody
from snapfs.metadata.words import check_digest, check_namespace, shown
from snapfs.model import InvalidArgument, NotFound, check_labels, check_name
from snapfs.store import Row, WriteTx


class Images(Manager):
    """The images of a store, by namespace and name."""

    def create(self, context: Context, image: Image, *, created_ns: int | None = None) -> Image:
        """Create an image; `created_ns` stands for its times (SOURCE_DATE_EPOCH).

        Raises AlreadyExists, InvalidArgument for a bad name, target or label.
        """
        check_namespace(context.namespace)
        body = _body(image)

        def make(tx: WriteTx) -> Row[ImageBody]:
            row = linking.create(
                tx, IMAGES, context.namespace, image.name, body, created_ns=created_ns
            )
            return _settle(tx, context, row)

        return _show(self._update(make))

    def put(
        self, context: Context, image: Image, also: Callable[[WriteTx], object] = lambda _tx: None
    ) -> Image:
        """Create an image, or let one that is there stand for another target; its labels stay.

        `also` is done in the same transaction; when it raises, nothing is.
        """
        check_namespace(context.namespace)
        body = _body(image)

        def change(tx: WriteTx) -> Row[ImageBody]:
            also(tx)
            row = tx.get(IMAGES, context.namespace, image.name)
            if row is None:
                row = linking.create(tx, IMAGES, context.namespace, image.name, body)
            else:
                row = linking.update(tx, row, _merge(row.body, image, ("target",)))
            return _settle(tx, context, row)

        return _show(self._update(change))

    def get(self, namespace: str, name: str) -> Image:
        """Return an image, or raise NotFound."""
        return _show(self._get(IMAGES, namespace, name))

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Image]:
        """Yield images; filters know name, target.digest, target.mediatype, labels, annotations."""
        return self._walk(IMAGES, namespace, filters, _show, _adapt)

    def update(
        self,
        context: Context,
        image: Image,
        paths: Sequence[str] = (),
        *,
        expect_revision: int | None = None,
    ) -> Image:
        """Update by field mask: target, labels[.KEY], annotations[.KEY]; all without a mask.

        Raises NotFound, Conflict, InvalidArgument.
        """
        check_namespace(context.namespace)
        chosen = masks.check(
            paths, fields=("target",), maps=("labels", "annotations"), what="an image"
        )

        def change(tx: WriteTx) -> Row[ImageBody]:
            row = found(
                IMAGES, tx.get(IMAGES, context.namespace, image.name), context.namespace, image.name
            )
            check_revision(row, expect_revision, "image")
            body = _merge(row.body, image, chosen)
            return _settle(tx, context, linking.update(tx, row, body))

        return _show(self._update(change))

    def delete(self, namespace: str, name: str, *, target: str = "") -> None:
        """Delete an image. Raises NotFound, also when `target` is not the digest it points at."""
        check_namespace(namespace)

        def drop(tx: WriteTx) -> None:
            row = found(IMAGES, tx.get(IMAGES, namespace, name), namespace, name)
            if target and row.body.target.digest != target:
                raise NotFound(f"image {shown(name)} points at {row.body.target.digest} by now")
            tx.delete(row)
            naming.end(tx, namespace, name)

        self._update(drop, deletion=True)

    def digest_at(self, namespace: str, name: str, at_ns: int) -> str:
        """Return the digest that a name stood for at a time; or raise NotFound."""
        check_namespace(namespace)
        with self._store.view() as tx:
            return naming.digest_at(tx, namespace, name, at_ns)


def _body(image: Image) -> ImageBody:
    check_name(image.name, "image name")
    target = image.target
    check_digest(target.digest, "target digest")
    if target.size_bytes <= 0:
        raise InvalidArgument(f"image {shown(image.name)}: the target's size must be above zero")
    if not target.media_type:
        raise InvalidArgument(f"image {shown(image.name)}: the target needs a media type")
    check_labels(target.annotations)
    return ImageBody(target=target, labels=check_labels(image.labels))


def _merge(old: ImageBody, new: Image, paths: Sequence[str]) -> ImageBody:
    base = new.target if "target" in paths else old.target
    annotations = base.annotations
    if any(path.partition(".")[0] == "annotations" for path in paths):
        annotations = masks.merge(base.annotations, new.target.annotations, paths, "annotations")
    target = Descriptor(base.media_type, base.digest, base.size_bytes, dict(annotations))
    labels = masks.merge(old.labels, new.labels, paths, "labels")
    return _body(Image(name=new.name, target=target, labels=labels))


def _settle(tx: WriteTx, context: Context, row: Row[ImageBody]) -> Row[ImageBody]:
    """Note what the name stands for and when it expires; then the context's lease holds it."""
    naming.note(tx, row.scope, row.name, row.body.target.digest)
    expires_ns = references.expiry_ns(row.body.labels)
    if row.expires_ns != expires_ns:
        tx.expire_at(row.oid, expires_ns)
    if EXPIRE in row.body.labels:
        take(tx, context, ResourceType.IMAGE.value, Name(Type.IMAGE, row.name))
    return msgspec.structs.replace(row, expires_ns=expires_ns)


def _show(row: Row[ImageBody]) -> Image:
    return Image(
        name=row.name,
        target=row.body.target,
        labels=row.body.labels,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )


def _adapt(image: Image) -> Adaptor:
    fields = {
        "name": image.name,
        "target.digest": image.target.digest,
        "target.mediatype": image.target.media_type,
    }
    return adaptor(fields, {"labels": image.labels, "annotations": image.target.annotations})
