"""What refers to what: labels and fields that keep other objects from the garbage collector.

An object *wants* another by its type and key in the same namespace, whether or not that exists.
Labels, with any `.suffix` or `/suffix` behind so that there can be many:

    containerd.io/gc.ref.content, .image, .snapshot.SNAPSHOTTER     I keep that
    containerd.io/gc.ref.WORD                                       also of a collectible's
    containerd.io/gc.bref.content, .image, .container, .snapshot.SNAPSHOTTER     that keeps me
    containerd.io/gc.cond.snapshot.SNAPSHOTTER = "usedat<2h|KEY"    I keep that on a condition
    containerd.io/gc.root                                           I am kept
    containerd.io/gc.expire = RFC 3339                              I am kept until then
    containerd.io/gc.flat                                           (a lease) only what I name
    containerd.io/gc.cond.value-usedat = RFC 3339                   when I was last used

Pure. Source: containerd core/metadata/gc.go; ancestors.md section 2, GC.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator
from typing import NamedTuple

from snapfs.metadata.words import parse_time_ns
from snapfs.model import Labels

GC = "containerd.io/gc."
ROOT = GC + "root"
FLAT = GC + "flat"
EXPIRE = GC + "expire"
USED_AT = GC + "cond.value-usedat"
_REF, _BREF, _COND = GC + "ref.", GC + "bref.", GC + "cond."


class Type(enum.IntEnum):
    """Types of nodes, with containerd's numbers."""

    CONTENT = 1
    SNAPSHOT = 2
    CONTAINER = 3
    IMAGE = 5
    LEASE = 6
    INGEST = 7


class Edge(enum.IntEnum):
    """Kinds of edges in the store; their numbers are of the whole store."""

    KEEPS = 30
    """The row keeps the other."""
    KEEPS_ALWAYS = 31
    """The same, also when only a flat lease holds the row: a snapshot's parent, an image's target.
    """
    KEPT_BY = 32
    """The row is kept by the other."""
    KEEPS_IF = 33
    """The row keeps the other if a condition of its labels holds."""
    LEASED = 34
    """From a lease's resource to what it holds."""
    LEASE = 35
    """From a lease's resource to the lease; strong."""
    BLOB = 36
    """From content to the bytes, which namespaces share; strong."""


class Name(NamedTuple):
    """An object by type and key, in some namespace."""

    type: Type
    key: str
    """Digest, name, id or reference; of a snapshot SNAPSHOTTER/KEY."""


class Want(NamedTuple):
    """One wish of an object for another."""

    edge: Edge
    name: Name
    condition: str = ""


def wants(labels: Labels) -> Iterator[Want]:
    """Yield what labels say, in their order; labels that say it wrongly say nothing."""
    for label, value in labels.items():
        if not label.startswith(GC):
            continue
        if label.startswith(_REF):
            yield from _want(Edge.KEEPS, label.removeprefix(_REF), value)
        elif label.startswith(_BREF):
            yield from _want(Edge.KEPT_BY, label.removeprefix(_BREF), value)
        elif label.startswith(_COND) and not label.startswith(USED_AT):
            yield from _conditional(label.removeprefix(_COND), value)


def word_of(label: str) -> str:
    """Return what kind of object a label says that its own keeps; "" for other labels."""
    if not label.startswith(_REF):
        return ""
    return label.removeprefix(_REF).partition("/")[0].partition(".")[0]


def is_root(labels: Labels) -> bool:
    return any(label.startswith(ROOT) for label in labels)


def expiry_ns(labels: Labels) -> int | None:
    """Return when a lease or an image expires; None when it never does."""
    return parse_time_ns(labels[EXPIRE]) if EXPIRE in labels else None


_REFERABLE = {
    Edge.KEEPS: {"content": Type.CONTENT, "image": Type.IMAGE},
    Edge.KEPT_BY: {
        "content": Type.CONTENT,
        "image": Type.IMAGE,
        "container": Type.CONTAINER,
    },
}


def _want(edge: Edge, rest: str, value: str) -> Iterator[Want]:
    for word, kind in _REFERABLE[edge].items():
        if rest == word or rest.startswith((word + ".", word + "/")):
            yield Want(edge, Name(kind, value))
            return
    if rest.startswith("snapshot."):
        snapshotter = rest.removeprefix("snapshot.").partition("/")[0]
        if snapshotter:
            yield Want(edge, Name(Type.SNAPSHOT, f"{snapshotter}/{value}"))


def _conditional(rest: str, value: str) -> Iterator[Want]:
    if not rest.startswith("snapshot."):
        return
    snapshotter = rest.removeprefix("snapshot.").partition("/")[0]
    condition, bar, key = value.rpartition("|")
    if snapshotter and bar and key:
        yield Want(Edge.KEEPS_IF, Name(Type.SNAPSHOT, f"{snapshotter}/{key}"), condition)


_UNITS_NS = {
    "ns": 1,
    "us": 1_000,
    "ms": 1_000_000,
    "s": 1_000_000_000,
    "m": 60_000_000_000,
    "h": 3_600_000_000_000,
}


def holds(condition: str, target: Labels, now_ns: int) -> bool:
    """Say whether a condition on the labels of its target holds.

    A list with commas holds if one of it does. Known is `usedat<AGE` and `usedat>AGE`: how long
    ago the target was last used. Conditions that are not known hold never.
    """
    used_ns = parse_time_ns(target.get(USED_AT, ""))
    return any(_holds(part, used_ns, now_ns) for part in condition.split(","))


def _holds(part: str, used_ns: int | None, now_ns: int) -> bool:
    word, operator, rest = part.strip()[:6], part.strip()[6:7], part.strip()[7:]
    age_ns = _duration_ns(rest)
    if word != "usedat" or operator not in ("<", ">") or used_ns is None or age_ns is None:
        return False
    since_ns = now_ns - used_ns
    return since_ns < age_ns if operator == "<" else since_ns > age_ns


def _duration_ns(text: str) -> int | None:
    """Return a length of time as Go writes it (1h30m, 90s), or None."""
    total, number = 0.0, ""
    rest = text
    while rest:
        number = rest[: len(rest) - len(rest.lstrip("0123456789."))]
        rest = rest[len(number) :]
        unit = rest[: len(rest) - len(rest.lstrip("nusmhµ"))]
        rest = rest[len(unit) :]
        scale = _UNITS_NS.get(unit.replace("µ", "u"))
        if scale is None or not number or number.count(".") > 1 or number == ".":
            return None
        total += float(number) * scale
    return int(total) if text else None
