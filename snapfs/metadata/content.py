"""Content: bytes by digest, which namespaces have, and share where the policy lets them.

`shared` (the default): content that any namespace has needs not be sent again by another that
knows its digest. `isolated`: only what a namespace labelled containerd.io/namespace.shareable=true
has. A blob's file is there exactly as long as a namespace has the content, or as somebody who
copies the root holds it (snapshots.holding); the lock of a digest is held while its file or its
blob's row comes or goes.

Lock order: the lock of a reference, the lock of a digest, the store's writer.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Literal

import msgspec
import structlog

from snapfs import filters
from snapfs.filters import Adaptor
from snapfs.metadata import linking, masks, resources
from snapfs.metadata.blobs import Blobs
from snapfs.metadata.graph import paced
from snapfs.metadata.ingests import Place, Writer
from snapfs.metadata.manager import DEADLINE_S, Changed, Manager, adaptor, found, take
from snapfs.metadata.objects import Content, Context, Ingest, Resource, ResourceType
from snapfs.metadata.references import Edge, Name, Type
from snapfs.metadata.schema import (
    BLOBS,
    CONTENT,
    INGESTS,
    NAMESPACES,
    SHARED,
    BlobBody,
    ContentBody,
    IngestBody,
)
from snapfs.metadata.words import check_digest, check_namespace, shown
from snapfs.model import (
    AlreadyExists,
    Labels,
    NotFound,
    SnapfsError,
    Unavailable,
    check_labels,
    check_name,
)
from snapfs.snapshots.faults import refusal
from snapfs.snapshots.holding import Holds
from snapfs.store import ReadTx, Row, Store, WriteTx

log = structlog.get_logger(__name__)

SHAREABLE = "containerd.io/namespace.shareable"
INGEST_LIFE_NS = 24 * 3600 * 1_000_000_000
"""How long an ingest without a lease stays."""

KEPT_NS = 60 * 1_000_000_000
"""How long until a collection looks again at content that it kept for who copies the root."""

SEQUENCE = "ingests"
Policy = Literal["shared", "isolated"]


class ContentStore(Manager):
    """The content of a store and its files."""

    def __init__(
        self,
        store: Store,
        directory: Path,
        *,
        policy: Policy = "shared",
        deadline_s: float = DEADLINE_S,
        changed: Changed | None = None,
        clock_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        super().__init__(store, deadline_s=deadline_s, changed=changed)
        self._clock_ns = clock_ns
        self._blobs = Blobs(directory)
        self._policy = policy
        self._lock = threading.Lock()
        self._writing: set[tuple[str, str]] = set()
        """References with a writer; guarded by `_lock`."""
        self._digests: dict[str, tuple[threading.Lock, int]] = {}
        """Locks of digests, with the number of threads that hold or want each."""
        self._is_tidy = False
        """No blob may be there that a crash, or a removal that failed, has left."""
        self._holds = Holds(directory.parent)
        self.kept_until_ns: int | None = None
        """When to look again at what was kept for who copies the root; None when nothing was."""

    # What is there

    def info(self, namespace: str, digest: str) -> Content:
        """Return what is known of content, or raise NotFound."""
        check_digest(digest)
        return _show(self._get(CONTENT, namespace, digest))

    def walk(self, namespace: str, wanted: Sequence[str] = ()) -> Iterator[Content]:
        """Yield content; filters know digest and labels."""
        return self._walk(CONTENT, namespace, wanted, _show, _adapt)

    def open(self, namespace: str, digest: str) -> int:
        """Return a descriptor to read content by; NotFound when the namespace has it not."""
        self.info(namespace, digest)
        return self._blobs.open(digest)

    def path(self, namespace: str, digest: str) -> Path:
        """Return the file of content, for readers that want a path; DataLoss when it is gone."""
        self.info(namespace, digest)
        if self._blobs.size(digest) is None:
            raise self._blobs.gone(digest)
        return self._blobs.path(digest)

    def update(
        self, namespace: str, digest: str, labels: Labels, paths: Sequence[str] = ()
    ) -> Content:
        """Update labels by field mask. Raises NotFound, InvalidArgument."""
        check_namespace(namespace)
        chosen = masks.check(paths, fields=(), maps=("labels",), what="content")

        def change(tx: WriteTx) -> Row[ContentBody]:
            row = found(CONTENT, tx.get(CONTENT, namespace, digest), namespace, digest)
            merged = check_labels(masks.merge(row.body.labels, labels, chosen, "labels"))
            return linking.update(tx, row, msgspec.structs.replace(row.body, labels=merged))

        return _show(self._update(change))

    def delete(self, namespace: str, digest: str) -> None:
        """Take content from a namespace; its bytes go when no other has it. Raises NotFound."""
        check_namespace(namespace)
        check_digest(digest)

        def drop(tx: WriteTx) -> None:
            tx.delete(found(CONTENT, tx.get(CONTENT, namespace, digest), namespace, digest))

        self._update(drop, deletion=True)
        self.collect(digest)

    def is_lost(self, digest: str) -> bool:
        """Say whether a blob has a row and no file, or one of another size: it can be sent again.

        What is of the right size is not read.
        """
        with self._store.view() as tx:
            row = tx.get(BLOBS, SHARED, digest)
        if row is None or row.body.going:
            return False
        return self._blobs.size(digest) != row.body.size_bytes

    # What is being written

    def writer(
        self, context: Context, ref: str, *, expected: str = "", total_bytes: int = 0
    ) -> Writer:
        """Open a reference for writing; it goes on where the last writer of it stopped.

        Raises AlreadyExists when the namespace has what is expected (the lease then holds it),
        Unavailable when somebody writes this reference now. What is lost is written again.
        """
        check_namespace(context.namespace)
        check_name(ref, "ingest reference")
        if expected:
            check_digest(expected, "expected digest")
        release = self._claim(context.namespace, ref)
        try:
            place = self._begin(context, ref, expected, total_bytes)
            return Writer(
                place,
                self._blobs,
                publish=partial(self._publish, context),
                materialise=partial(self._materialise, context.namespace),
                release=release,
                clock_ns=self._clock_ns,
            )
        except Exception:
            release()
            raise

    def status(self, namespace: str, ref: str) -> Ingest:
        """Return how far an ingest is, or raise NotFound."""
        return self._status(self._get(INGESTS, namespace, ref))

    def statuses(self, namespace: str, wanted: Sequence[str] = ()) -> Iterator[Ingest]:
        """Yield ingests; filters know ref."""
        selects = filters.parse(wanted)
        check_namespace(namespace)
        for row in self._rows(INGESTS, namespace):
            if selects.matches(adaptor({"ref": row.name}, {})):
                yield self._status(row)

    def abort(self, namespace: str, ref: str) -> None:
        """Drop an ingest and what it wrote. Raises NotFound, Unavailable while it is written."""
        release = self._claim(check_namespace(namespace), ref)
        try:
            row = self._get(INGESTS, namespace, ref)
            self._update(lambda tx: tx.delete(row), deletion=True)
            if row.body.directory:
                self._blobs.discard(row.body.directory)
        finally:
            release()

    # Files without rows

    def collect(self, digest: str) -> bool:
        """Remove the file of a blob that no namespace has; say whether there was one.

        The row says that it goes before the file does, so a blob that is half removed is never
        taken for one that is there. While somebody copies the root it goes no further, and the
        next collection does.
        """
        with self._digest_lock(digest):
            row = self._update(partial(_condemn, digest=digest))
            if row is None or self._keeps():
                return False
            self._blobs.remove(digest)
            self._update(partial(_forget_blob, digest=digest))
        return True

    def _keeps(self) -> bool:
        """Say whether files must stay for now; asked after the rows say that they go."""
        if not self._holds.any():
            return False
        self._is_tidy = False
        self.kept_until_ns = self._clock_ns() + KEPT_NS
        return True

    def tidy(self, released: Iterable[int]) -> None:
        """Remove what is not needed any more, of the blobs (oids) that were `released`.

        The first time, and after a failure at any blob, all are looked at.
        """
        self.kept_until_ns = None
        if not self._is_tidy:
            self._is_tidy = True  # unless something fails from here on
            try:
                self.cleanup()
            except Exception:
                self._is_tidy = False
                raise
            return
        for oid in paced(released):
            self._collect_idle(oid)
        self._discard_ingests()

    def _collect_idle(self, oid: int) -> str:
        """Remove a blob if no namespace has it; return its digest then."""
        with self._store.view() as tx:
            row = None if tx.has_referrers(oid, Edge.BLOB) else tx.by_oid(BLOBS, oid)
        return row.name if row is not None and self.collect(row.name) else ""

    def cleanup(self) -> list[str]:
        """Remove what a crash left: blobs and ingests without rows; return their names."""
        if self._keeps():
            return self._discard_ingests()
        rows = paced(self._rows(BLOBS, SHARED))
        removed = [digest for row in rows if (digest := self._collect_idle(row.oid))]
        for digest in paced(self._blobs.digests()):
            with self._digest_lock(digest), self._store.view() as tx:
                if tx.get(BLOBS, SHARED, digest) is None and not self._keeps():
                    self._blobs.remove(digest)
                    removed.append(digest)
        return removed + self._discard_ingests()

    def _discard_ingests(self) -> list[str]:
        with self._lock:
            there = list(self._blobs.ingests())
            with self._store.view() as tx:
                used = {
                    row.body.directory for scope in tx.scopes() for row in tx.rows(INGESTS, scope)
                }
            unused = [name for name in there if name not in used and not self._writing]
        for name in unused:
            self._blobs.discard(name)
        return [f"ingest/{name}" for name in unused]

    # Transactions of a writer

    def _begin(self, context: Context, ref: str, expected: str, total_bytes: int) -> Place:
        is_lost = bool(expected) and self.is_lost(expected)

        def begin(tx: WriteTx) -> Row[IngestBody] | None:
            known = tx.get(CONTENT, context.namespace, expected) if expected else None
            if known is not None and not is_lost:
                take(tx, context, ResourceType.CONTENT.value, Name(Type.CONTENT, expected))
                return None
            row = tx.get(INGESTS, context.namespace, ref)
            if row is None:
                shared = None if is_lost else self._shared_size(tx, expected)
                virtual = shared is not None and total_bytes in (0, shared)
                directory = "" if virtual else str(tx.sequence(SEQUENCE))
                body = IngestBody(directory=directory, expected=expected, total_bytes=total_bytes)
                row = linking.create(tx, INGESTS, context.namespace, ref, body)
            elif is_lost and not row.body.directory:  # there is nothing to share any more
                body = msgspec.structs.replace(row.body, directory=str(tx.sequence(SEQUENCE)))
                row = linking.update(tx, row, body)
            take(tx, context, ResourceType.INGEST.value, Name(Type.INGEST, ref))
            tx.expire_at(row.oid, None if context.lease else tx.now_ns + INGEST_LIFE_NS)
            return row

        row = self._update(begin)
        if row is None:
            raise AlreadyExists(f"content {expected} exists in namespace {context.namespace!r}")
        body = row.body
        virtual = not body.directory
        directory = body.directory or str(self._update(lambda tx: tx.sequence(SEQUENCE)))
        return Place(
            ref, directory, body.expected or expected, body.total_bytes, row.created_ns, virtual
        )

    def _shared_size(self, tx: ReadTx, digest: str) -> int | None:
        """Return the size of a blob that a namespace may have without sending it, or None."""
        blob = tx.get(BLOBS, SHARED, digest) if digest else None
        if blob is None or blob.body.going:
            return None
        if self._policy == "isolated":
            for oid in tx.referrers(blob.oid, Edge.BLOB):
                row = tx.by_oid(CONTENT, oid)
                owner = None if row is None else tx.get(NAMESPACES, SHARED, row.scope)
                if owner is not None and owner.body.labels.get(SHAREABLE) == "true":
                    return blob.body.size_bytes
            return None
        return blob.body.size_bytes

    def _materialise(self, namespace: str, writer: Writer) -> None:
        def change(tx: WriteTx) -> None:
            row = tx.get(INGESTS, namespace, writer.place.ref)
            row = found(INGESTS, row, namespace, writer.place.ref)
            body = msgspec.structs.replace(row.body, directory=writer.place.directory)
            linking.update(tx, row, body)

        self._update(change)

    def _publish(
        self, context: Context, writer: Writer, digest: str, size_bytes: int, labels: Labels
    ) -> Content:
        checked = check_labels(labels)
        ref = writer.place.ref
        with self._digest_lock(digest):
            is_lost = self.is_lost(digest)
            if not is_lost and self._drop_if_known(context, ref, digest):
                if not writer.virtual:
                    self._blobs.discard(writer.place.directory)
                raise AlreadyExists(f"content {digest} exists in namespace {context.namespace!r}")
            if not writer.virtual:
                self._publish_file(context, writer, digest)
            elif is_lost or self._blobs.size(digest) is None:
                raise Unavailable(f"content {digest} has just been removed; write it")
            return _show(self._update(partial(_enter, context, ref, digest, size_bytes, checked)))

    def _publish_file(self, context: Context, writer: Writer, digest: str) -> None:
        """Make what an ingest wrote the file of a blob; what cannot be made so is dropped.

        The kernel tells of an error of the disk once: a second fsync would say that all is well.
        """
        try:
            self._blobs.publish(writer.place.directory, writer.fd, digest)
        except OSError as error:
            self._drop(context, writer)
            doing = f"make ingest {shown(writer.place.ref)} durable, so it must be written again"
            raise refusal(error, doing) from error

    def _drop(self, context: Context, writer: Writer) -> None:
        """End an ingest whose bytes may be lost, and its writer; on a disk that may be failing."""
        try:
            self._blobs.discard(writer.place.directory)
            self._update(lambda tx: _end_ingest(tx, context, writer.place.ref))
        except (OSError, SnapfsError) as error:
            log.error("content.ingest_not_dropped", ref=writer.place.ref, error=str(error))
        finally:
            writer.close()

    def _drop_if_known(self, context: Context, ref: str, digest: str) -> bool:
        def drop(tx: WriteTx) -> bool:
            if tx.get(CONTENT, context.namespace, digest) is None:
                return False
            take(tx, context, ResourceType.CONTENT.value, Name(Type.CONTENT, digest))
            _end_ingest(tx, context, ref)
            return True

        return self._update(drop)

    def _status(self, row: Row[IngestBody]) -> Ingest:
        body = row.body
        updated_ns = row.updated_ns
        if body.directory:
            try:
                there = os.stat(self._blobs.ingest(body.directory))
                offset, updated_ns = there.st_size, there.st_mtime_ns
            except FileNotFoundError:
                offset = 0
        else:
            offset = self._blobs.size(body.expected) or 0
        total = body.total_bytes or (0 if body.directory else offset)
        return Ingest(
            ref=row.name,
            offset_bytes=offset,
            total_bytes=total,
            expected=body.expected,
            started_ns=row.created_ns,
            updated_ns=updated_ns,
        )

    # Locks

    def _claim(self, namespace: str, ref: str) -> Release:
        key = (namespace, ref)
        with self._lock:
            if key in self._writing:
                raise Unavailable(f"ingest {shown(ref)} is being written; try again later")
            self._writing.add(key)
        return Release(self._lock, self._writing, key)

    @contextmanager
    def _digest_lock(self, digest: str) -> Iterator[None]:
        with self._lock:
            lock, users = self._digests.get(digest, (threading.Lock(), 0))
            self._digests[digest] = (lock, users + 1)
        try:
            with lock:
                yield
        except (AlreadyExists, NotFound):
            raise
        except Exception:
            self._is_tidy = False  # a file may be there without its row, or the row without it
            raise
        finally:
            with self._lock:
                lock, users = self._digests[digest]
                if users == 1:
                    del self._digests[digest]
                else:
                    self._digests[digest] = (lock, users - 1)


class Release:
    """Gives a reference free, once."""

    def __init__(
        self, lock: threading.Lock, held: set[tuple[str, str]], key: tuple[str, str]
    ) -> None:
        self._lock, self._held, self._key = lock, held, key

    def __call__(self) -> None:
        with self._lock:
            self._held.discard(self._key)


def _enter(
    context: Context, ref: str, digest: str, size_bytes: int, labels: dict[str, str], tx: WriteTx
) -> Row[ContentBody]:
    """Let a namespace have content whose file is there, and end its ingest.

    What it has already, and was lost, keeps its labels.
    """
    blob = tx.get(BLOBS, SHARED, digest)
    if blob is None:
        blob = tx.create(BLOBS, SHARED, digest, BlobBody(size_bytes))
    elif blob.body.going:
        blob = tx.update(blob, BlobBody(size_bytes))
    _end_ingest(tx, context, ref)
    row = tx.get(CONTENT, context.namespace, digest)
    if row is None:
        body = ContentBody(size_bytes=size_bytes, blob=blob.oid, labels=labels)
        row = linking.create(tx, CONTENT, context.namespace, digest, body)
    take(tx, context, ResourceType.CONTENT.value, Name(Type.CONTENT, digest))
    return row


def _end_ingest(tx: WriteTx, context: Context, ref: str) -> None:
    row = tx.get(INGESTS, context.namespace, ref)
    if row is None:
        raise NotFound(f"ingest {shown(ref)} was aborted; write it again")
    tx.delete(row)
    if context.lease:
        held = Resource(ResourceType.INGEST.value, ref)
        resources.remove(tx, context.namespace, context.lease, held)


def _condemn(tx: WriteTx, *, digest: str) -> Row[BlobBody] | None:
    """Mark a blob that nobody has as going; None when there is none or somebody has it."""
    blob = tx.get(BLOBS, SHARED, digest)
    if blob is None or tx.has_referrers(blob.oid, Edge.BLOB):
        return None
    if blob.body.going:
        return blob
    return tx.update(blob, msgspec.structs.replace(blob.body, going=True))


def _forget_blob(tx: WriteTx, *, digest: str) -> None:
    blob = tx.get(BLOBS, SHARED, digest)
    if blob is not None:
        tx.delete(blob)


def _show(row: Row[ContentBody]) -> Content:
    return Content(
        digest=row.name,
        size_bytes=row.body.size_bytes,
        labels=row.body.labels,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )


def _adapt(content: Content) -> Adaptor:
    return adaptor({"digest": content.digest}, {"labels": content.labels})
