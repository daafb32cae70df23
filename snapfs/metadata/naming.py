"""The history of image names: each change of what a name stands for is an entry of an anchor.

The anchor is `image/NAMESPACE/NAME`, the reference `digest:DIGEST`. The image itself keeps what its
name stands for; once the name stands for something else, the entry keeps the content that it names
for the garbage collector, and so all that this keeps, until it expires. Removing a name is a wish
to have the space back: its entries expire there and then, and the anchor is deleted.
"""

from __future__ import annotations

import msgspec

from snapfs.anchors import Ref, Statement, reading, writing
from snapfs.anchors.reading import FactRow
from snapfs.metadata.schema import CONTENT
from snapfs.model import MAX_NAME_BYTES, NotFound
from snapfs.store import ReadTx, WriteTx

REF_TYPE = "digest"

SWEEP = 1000
"""Entries that the removal of a name deletes at once; more go with the next expiry."""


def anchor(namespace: str, name: str) -> str:
    """Return the name of the anchor of an image's name."""
    return f"image/{namespace}/{name}"


def note(tx: WriteTx, namespace: str, name: str, digest: str, *, reason: str = "") -> None:
    """Say what a name stands for from now on; the same again is no entry.

    A name that is too long for an anchor has no history.
    """
    own = anchor(namespace, name)
    if not _fits(own):
        return
    last = reading.newest(tx, reading.anchor(tx, own))
    ref = Ref(REF_TYPE, digest)
    if last is not None and last.body.ref == ref:
        return
    if last is not None and last.body.ref is not None:
        _keep(tx, namespace, last, last.body.ref)
    writing.put(tx, own, ref, Statement(reason=reason))


def _keep(tx: WriteTx, namespace: str, entry: FactRow, ref: Ref) -> None:
    """Let an entry that is about to be of the past keep the content that it names."""
    content = tx.get(CONTENT, namespace, ref.value)
    if content is not None:
        body = msgspec.structs.replace(entry.body, target=content.oid)
        tx.update(entry, body, spec=False)


def end(tx: WriteTx, namespace: str, name: str) -> None:
    """Say that a name stands for nothing from now on, and let go of what it stood for."""
    own = anchor(namespace, name)
    row = reading.anchor(tx, own) if _fits(own) else None
    last = reading.newest(tx, row)
    if row is None or last is None or last.body.ref is None:
        return
    writing.delete(tx, own, Statement(reason="removed"))
    tombstone = reading.newest(tx, row)
    if tombstone is not None:
        writing.set_horizon(tx, own, tombstone.body.fact.key)
        writing.sweep(tx, own, SWEEP)


def digest_at(tx: ReadTx, namespace: str, name: str, at_ns: int) -> str:
    """Return what a name stood for at a time, or raise NotFound."""
    own = anchor(namespace, name)
    if not _fits(own):
        raise NotFound(f"image name {name[:64]!r}… is too long to have a history")
    return reading.get(tx, own, at_ns=at_ns).ref.value


def _fits(name: str) -> bool:
    return len(name.encode("utf-8", "surrogatepass")) <= MAX_NAME_BYTES
