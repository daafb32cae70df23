"""A changed snapshot as an image: one more layer on the image that it stands on.

    the active snapshot is committed, under a name that says which it was
    ->  its layer is written to content as an archive, hashed  ->  configuration, manifest, labels
    ->  in one transaction: the snapshot gets the name of its chain, and the image is there

One that was interrupted goes on when it is asked for again: the name is found. When there is a new
snapshot of that key by then, it is the one that is meant, and what the old one left is removed.

The same tree on the same image gives the same digests when SOURCE_DATE_EPOCH is set: nothing of the
host or of now goes into them then.
"""

from __future__ import annotations

import json
import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, BinaryIO, cast

import structlog

from snapfs.images import manifests, packing
from snapfs.images.catalog import Catalog, Described
from snapfs.images.docker import digest
from snapfs.images.leasing import leased
from snapfs.images.manifests import Descriptor
from snapfs.images.progress import Progress
from snapfs.images.unpacking import SNAPSHOTTER, link
from snapfs.metadata import Context, Image, Metadata, Resource, Wish
from snapfs.metadata import Descriptor as Target
from snapfs.metadata.references import GC
from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    FailedPrecondition,
    NotFound,
    Unavailable,
)
from snapfs.snapshots import Snapshotter, records

log = structlog.get_logger(__name__)

COPY_BYTES = 1 << 20
COMMITTING = "image-commit/"
"""Before the key of a snapshot that is being made an image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Statement:
    """What an image says of how it was made."""

    created_by: str = "snapfs image commit"
    author: str = ""
    comment: str = ""
    epoch_s: int | None = None
    """SOURCE_DATE_EPOCH: when it was made, and the latest time of its files."""
    config: dict[str, Any] = field(default_factory=dict)
    """Fields of the configuration's `config` to set (Cmd, Env, ...)."""


class Committer:
    """Makes images of snapshots."""

    def __init__(self, metadata: Metadata, snapshotter: Snapshotter) -> None:
        self._metadata = metadata
        self._snapshotter = snapshotter
        self._catalog = Catalog(metadata)
        self._lock = threading.Lock()
        self._running: set[str] = set()
        """Keys of what is being committed; guarded by the lock."""

    def commit(
        self,
        namespace: str,
        key: str,
        name: str,
        *,
        statement: Statement,
        base: str = "",
        report: Callable[[Progress], None] = lambda _step: None,
    ) -> Described:
        """Make the image `name` of the active snapshot `key`, which is a committed one then.

        `base` is the image that it stands on; found by its snapshot when it is not given. Raises
        NotFound, FailedPrecondition when the snapshot does not stand on an image, Unavailable while
        it is committed by another call.
        """
        with self._alone(key):
            return self._commit(namespace, key, name, statement, base, report)

    @contextmanager
    def _alone(self, key: str) -> Iterator[None]:
        """Refuse a second commit of a snapshot while one runs: they share a name."""
        with self._lock:
            if key in self._running:
                raise Unavailable(f"snapshot {key!r} is being made an image; try again later")
            self._running.add(key)
        try:
            yield
        finally:
            with self._lock:
                self._running.remove(key)

    def _commit(
        self,
        namespace: str,
        key: str,
        name: str,
        statement: Statement,
        base: str,
        report: Callable[[Progress], None],
    ) -> Described:
        temporary = f"{COMMITTING}{key}"
        found = self._begun(key, temporary)
        below = self._base(namespace, base, found.parent)
        with leased(self._metadata, namespace, "commit") as lease:
            context = Context(namespace, lease)
            if isinstance(found, Active):
                self._make_room(key, temporary)
                self._snapshotter.commit(key, temporary)
            layer, diff_id = self._write_layer(context, temporary, statement, report)
            chain = manifests.chain_id(found.parent, diff_id)
            link(self._snapshotter.store, context, chain, found.parent)
            target = self._write_documents(context, below, layer, diff_id, chain, statement)
            self._name(context, Image(name=name, target=target), temporary, chain)
        report(Progress("done", name))
        return self._catalog.get(namespace, name)

    def _begun(self, key: str, temporary: str) -> Active | Committed:
        """Return the snapshot: active, or committed by an earlier commit that was interrupted."""
        try:
            found = self._snapshotter.stat(key)
        except NotFound:
            try:
                begun = self._snapshotter.stat(temporary)
            except NotFound:
                begun = None
            if isinstance(begun, Committed):
                return begun
            raise
        if not isinstance(found, Active):
            raise FailedPrecondition(
                f"snapshot {key!r} is {found.kind.word}; only an active one can become an image"
            )
        return found

    def _make_room(self, key: str, temporary: str) -> None:
        """Remove what an interrupted commit of an earlier snapshot of this key left."""
        try:
            left = self._snapshotter.stat(temporary)
        except NotFound:
            return
        if not isinstance(left, Committed):
            raise FailedPrecondition(
                f"snapshot {temporary!r} is {left.kind.word}, and {key!r} is to have its name "
                "while it is made an image; remove it or commit it"
            )
        self._snapshotter.remove(temporary)
        log.info("image.commit_replaced", key=key)

    def _base(self, namespace: str, base: str, parent: str) -> Described | None:
        if base:
            found = self._catalog.get(namespace, base)
            if found.snapshot != parent:
                raise FailedPrecondition(f"the snapshot does not stand on image {base!r}")
            return found
        if not parent:
            return None
        for each in self._catalog.walk(namespace):
            if each.snapshot == parent:
                return each
        raise FailedPrecondition(
            f"no image has the snapshot {parent!r}, on which this one stands; "
            "only changes of an image, or of nothing, can become one"
        )

    def _write_layer(
        self,
        context: Context,
        name: str,
        statement: Statement,
        report: Callable[[Progress], None],
    ) -> tuple[Descriptor, str]:
        """Write the layer of a committed snapshot to content; return it and its diff id."""
        upper, lowers = self._snapshotter.layers(name)
        with tempfile.TemporaryFile(dir=self._snapshotter.root) as file:
            packed = packing.pack(upper, lowers, file, latest_s=statement.epoch_s)
            file.seek(0)
            layer = Descriptor(packed.media_type, packed.digest, packed.size_bytes)
            self._put(context, layer.digest, layer.size, cast(BinaryIO, file), report)
        return layer, packed.diff_id

    def _put(
        self,
        context: Context,
        digest_: str,
        size: int,
        file: BinaryIO,
        report: Callable[[Progress], None],
    ) -> None:
        resource = Resource("content", digest_)
        self._metadata.leases.add(context.namespace, context.lease, resource)
        try:
            with self._metadata.content.writer(
                context, f"commit-{digest_}", expected=digest_
            ) as writer:
                if not writer.virtual:
                    writer.truncate(0)
                    done = 0
                    while data := file.read(COPY_BYTES):
                        done += writer.write(data)
                        report(Progress("write", digest_, done, size))
                writer.commit(Wish(size, digest_))
        except AlreadyExists:
            return

    def _write_documents(
        self,
        context: Context,
        base: Described | None,
        layer: Descriptor,
        diff_id: str,
        chain: str,
        statement: Statement,
    ) -> Target:
        config = self._config(context.namespace, base, diff_id, statement)
        layers = [it.descriptor for it in base.layers] if base else []
        manifest = {
            "schemaVersion": 2,
            "mediaType": manifests.MANIFESTS[0],
            "config": {
                "mediaType": manifests.OCI_CONFIG,
                "digest": digest(config),
                "size": len(config),
            },
            "layers": [
                {"mediaType": it.media_type, "digest": it.digest, "size": it.size}
                for it in (*layers, layer)
            ],
        }
        raw = json.dumps(manifest, separators=(",", ":"), sort_keys=True).encode()
        for document in (config, raw):
            with tempfile.TemporaryFile() as file:
                file.write(document)
                file.seek(0)
                self._put(context, digest(document), len(document), cast(BinaryIO, file), _nothing)
        self._label(context, digest(config), {f"{GC}ref.snapshot.{SNAPSHOTTER}": chain})
        labels = {f"{GC}ref.content.config": digest(config)}
        for number, it in enumerate((*layers, layer)):
            labels[f"{GC}ref.content.l.{number}"] = it.digest
        self._label(context, digest(raw), labels)
        return Target(manifests.MANIFESTS[0], digest(raw), len(raw))

    def _config(
        self, namespace: str, base: Described | None, diff_id: str, statement: Statement
    ) -> bytes:
        """Return the base's configuration with one more layer; fields that we do not know stay."""
        host = manifests.host()
        document: dict[str, Any] = {
            "architecture": host.architecture,
            "os": host.os,
            "rootfs": {"type": "layers", "diff_ids": []},
            "history": [],
        }
        if base is not None and base.config_digest:
            path = self._metadata.content.path(namespace, base.config_digest)
            document |= json.loads(path.read_bytes())
        created = _created(statement.epoch_s)
        document["created"] = created
        below = document["rootfs"]["diff_ids"]
        document["rootfs"]["diff_ids"] = [*below, diff_id]
        step = {"created": created, "created_by": statement.created_by}
        if statement.comment:
            step["comment"] = statement.comment
        if statement.author:
            step["author"] = document["author"] = statement.author
        document["history"] = [*_history(document, len(below)), step]
        if statement.config:
            document["config"] = {**(document.get("config") or {}), **statement.config}
        return json.dumps(document, separators=(",", ":"), sort_keys=True).encode()

    def _label(self, context: Context, digest_: str, labels: dict[str, str]) -> None:
        paths = [f"labels.{key}" for key in labels]
        self._metadata.content.update(context.namespace, digest_, labels, paths)

    def _name(self, context: Context, image: Image, temporary: str, chain: str) -> None:
        """Give snapshot and image their names; a chain that is there already has the layer."""
        try:
            self._metadata.images.put(
                context, image, lambda tx: records.rename(tx, temporary, chain)
            )
        except AlreadyExists:
            self._metadata.images.put(context, image)
            self._snapshotter.remove(temporary)


def _history(document: dict[str, Any], layers: int) -> list[dict[str, Any]]:
    """Return a configuration's history with a step for each layer, as readers expect of one.

    An image may have none; of one that has too few steps nobody knows whose they are.
    """
    given = document.get("history") or []
    filled = sum(not it.get("empty_layer") for it in given)
    return [{} for _ in range(layers - filled)] + given


def epoch() -> int | None:
    """Return SOURCE_DATE_EPOCH of the environment, or None."""
    text = os.environ.get("SOURCE_DATE_EPOCH", "")
    return int(text) if text.isdigit() else None


def _created(epoch_s: int | None) -> str:
    moment = datetime.now(UTC) if epoch_s is None else datetime.fromtimestamp(epoch_s, UTC)
    return moment.strftime("%Y-%m-%dT%H:%M:%SZ")


def _nothing(_step: Progress) -> None:
    """Documents are too small to tell of."""
