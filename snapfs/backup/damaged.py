"""What was damaged in the root before it was backed up, and what needs it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from snapfs.backup.contents import Contents
from snapfs.backup.layout import Record
from snapfs.snapshots.records import shown

MOST_NAMED = 10


@dataclass(frozen=True, slots=True)
class Damaged:
    """A damaged snapshot of a backup."""

    name: str
    layer: int
    what: str
    """What was found, for people."""
    is_copied: bool
    """Whether the backup has its layer, as it is."""
    above: tuple[str, ...]
    """Snapshots that stand on it."""

    def __str__(self) -> str:
        above = f"; on it stands {listed(map(shown, self.above))}" if self.above else ""
        return f"snapshot {shown(self.name)} is damaged ({self.what}){above}"


@dataclass(frozen=True, slots=True)
class DamagedContent:
    """Content that a backup has no bytes of, as they were damaged or gone."""

    digest: str
    what: str
    """What was found, for people."""
    images: tuple[tuple[str, str], ...]
    """Namespaces and names of the images that need it."""

    def __str__(self) -> str:
        names = listed(f"{shown(name)} of namespace {shown(scope)}" for scope, name in self.images)
        needed = f"; needed by image {names}" if names else ""
        return f"content {self.digest} is damaged ({self.what}){needed}"


def damaged(contents: Contents, record: Record) -> tuple[Damaged, ...]:
    """Return the damaged snapshots of a backup, in order of their layers."""
    names = {layer.id: layer.name for layer in contents.layers}
    copied = {layer.id for layer in record.layers}
    return tuple(
        Damaged(
            name=names[it.id],
            layer=it.id,
            what=it.what,
            is_copied=it.id in copied,
            above=tuple(name for name, chain in contents.chains.items() if it.id in chain),
        )
        for it in record.damaged
        if it.id in names
    )


def damaged_content(contents: Contents, record: Record) -> tuple[DamagedContent, ...]:
    """Return the damaged content of a backup."""
    if not record.damaged_blobs:
        return ()
    needed = {(it.namespace, it.name): contents.needed(it) for it in contents.images}
    there = {blob.digest for blob in contents.blobs}
    return tuple(
        DamagedContent(
            digest=it.digest,
            what=it.what,
            images=tuple(image for image, digests in needed.items() if it.digest in digests),
        )
        for it in record.damaged_blobs
        if it.digest in there
    )


def listed(words: Iterable[object], between: str = ", ") -> str:
    """Return the first words of a list, and how many more there are."""
    told = [str(it) for it in words]
    more = [f"{len(told) - MOST_NAMED} more"] if len(told) > MOST_NAMED else []
    return between.join((*told[:MOST_NAMED], *more))
