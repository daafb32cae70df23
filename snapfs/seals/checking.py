"""Comparing a layer with its seal, and naming what differs."""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from snapfs.model import DataLoss
from snapfs.seals.entries import Digest, Entry, unpack, with_paths
from snapfs.seals.entries import Path as Components
from snapfs.seals.sealing import UNREADABLE, digest_of, entries

_Met: TypeAlias = tuple[Components, Entry] | None


@dataclass(frozen=True, slots=True)
class Damage:
    """One path of a layer that is not what it was."""

    path: bytes
    """Below the layer's root; empty for the layer as a whole."""
    what: str


def verify(layer: Path, file: Path, digest: bytes) -> list[Damage]:
    """Read all of `layer` from the disk and return how it differs from what it was.

    `digest` is what was recorded at the commit, `file` the list that names paths. When the list
    itself is damaged, the layer is judged by the digest alone.
    """
    try:
        is_sound = digest_of(file) == digest
    except (DataLoss, OSError):
        is_sound = False
    if is_sound:
        return compare(layer, file)
    return _judge(layer, digest)


def compare(layer: Path, file: Path) -> list[Damage]:
    """Return how `layer`, read from the disk, differs from a list that is sound."""
    with file.open("rb") as source:
        return list(_differences(unpack(source.read), layer))


def _judge(layer: Path, digest: bytes) -> list[Damage]:
    actual = Digest()
    try:
        for entry in entries(layer, doubtful=True):
            actual.add(entry)
    except OSError as error:
        return [_unreadable(error)]
    if actual.result() == digest:
        return []
    return [
        Damage(b"", "differs from what was committed, and the list that names files is damaged")
    ]


def _differences(listed: Iterable[Entry], layer: Path) -> Iterator[Damage]:
    lost: dict[Components, OSError] = {}
    olds, news = with_paths(listed), with_paths(entries(layer, doubtful=True, lost=lost))
    try:
        old, new = next(olds, None), next(news, None)
        while old is not None or new is not None:
            if old is not None and (new is None or old[0] < new[0]):
                if not _is_below(old[0], lost):
                    yield from _one(old, None)
                old = next(olds, None)
            elif new is not None and (old is None or new[0] < old[0]):
                yield from _one(None, new)
                new = next(news, None)
            elif old is not None and new is not None:
                if new[0] not in lost:
                    yield from _one(old, new)
                old, new = next(olds, None), next(news, None)
    except OSError as error:
        yield _unreadable(error)
    for path, reason in lost.items():
        yield Damage(b"/".join(path), f"cannot be read ({reason.strerror})")


def _is_below(path: Components, lost: Container[Components]) -> bool:
    """Say whether a path, or a directory above it, cannot be read."""
    return any(path[:length] in lost for length in range(1, len(path) + 1))


def _one(old: _Met, new: _Met) -> Iterator[Damage]:
    if old is None and new is not None:
        yield Damage(b"/".join(new[0]), "is there and was not committed")
    elif old is not None and new is None:
        yield Damage(b"/".join(old[0]), "is gone")
    elif old is not None and new is not None:
        words = list(_words(old[1], new[1]))
        if words:
            yield Damage(b"/".join(old[0]), f"differs in {', '.join(words)}")


def _words(old: Entry, new: Entry) -> Iterator[str]:
    if stat.S_IFMT(old.mode) != stat.S_IFMT(new.mode) or old.rdev != new.rdev:
        yield "type"
        return
    if stat.S_ISREG(new.mode) and new.content.startswith(UNREADABLE):
        yield f"content, which {new.content.decode()}"
    elif (old.content, old.size_bytes) != (new.content, new.size_bytes):
        yield "content"
    if old.mode != new.mode:
        yield "mode"
    if (old.uid, old.gid) != (new.uid, new.gid):
        yield "owner"
    if old.mtime_ns != new.mtime_ns:
        yield "time"
    if old.xattrs != new.xattrs:
        yield "attributes"
    if old.link != new.link:
        yield "links"


def _unreadable(error: OSError) -> Damage:
    path = os.fsencode(error.filename) if isinstance(error.filename, str | bytes) else b""
    return Damage(path, f"cannot be read ({error.strerror})")
