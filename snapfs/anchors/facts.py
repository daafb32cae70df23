"""What anchors are made of: typed references, facts, their order, and whole histories. Pure.

A fact says that from a time on a name stood for a reference, or for nothing (a tombstone). Facts
never change. A fact's key is the order of facts and, being made of all that the fact says, its
identity: two stores that hold the same fact know it by the same key without asking each other.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import NamedTuple

import msgspec

from snapfs.model import MAX_NAME_BYTES, InvalidArgument, check_name

MAX_TIME_NS = (1 << 64) - 1
MAX_SEQ = (1 << 32) - 1
DIGEST_BYTES = 16
MAX_REFERENCE_BYTES = 4096
MAX_AUTHOR_BYTES = 256
MAX_REASON_BYTES = 4096

_TYPE = re.compile(r"[a-z][a-z0-9]*(?:[._-][a-z0-9]+)*")
_MAX_TYPE_BYTES = 64
_SECOND_NS = 1_000_000_000


class Ref(msgspec.Struct, frozen=True, array_like=True):
    """What a name stands for: a type, such as "snapshot" or "digest", and a value of that type."""

    type: str
    value: str

    def __str__(self) -> str:
        return f"{self.type}:{self.value}"


class Key(NamedTuple):
    """Order and identity of a fact among those of its name; the greatest that applies counts."""

    at_ns: int
    seq: int
    digest: bytes


class Fact(msgspec.Struct, frozen=True, array_like=True):
    """One statement about a name; the order of fields is the order on disk and in the digest."""

    at_ns: int
    """From when it holds, nanoseconds since 1970."""
    seq: int
    """Which of the statements about one time it is; the store that it was made in counts."""
    ref: Ref | None
    """None for a tombstone: the name stands for nothing."""
    author: str = ""
    reason: str = ""

    @property
    def key(self) -> Key:
        digest = hashlib.sha256(msgspec.msgpack.encode(self)).digest()
        return Key(self.at_ns, self.seq, digest[:DIGEST_BYTES])


class History(msgspec.Struct, frozen=True, array_like=True):
    """What one store knows of one name: what travels between stores."""

    name: str
    facts: tuple[Fact, ...]
    """In the order of their keys."""
    horizon: Key | None = None
    """Key of the oldest fact that an expiry left; facts before it are no part of the history."""


def parse_ref(text: str) -> Ref:
    """Return the reference written as TYPE:VALUE, or raise InvalidArgument."""
    kind, colon, value = text.partition(":")
    if not colon:
        raise InvalidArgument(
            f"reference {text[:64]!r} has no type; write TYPE:VALUE, as in snapshot:base"
        )
    return check_ref(Ref(kind, value))


def check_ref(ref: Ref) -> Ref:
    """Return `ref`, or raise InvalidArgument saying what is wrong with it."""
    if len(ref.type) > _MAX_TYPE_BYTES or not _TYPE.fullmatch(ref.type):
        raise InvalidArgument(
            f"reference type {ref.type[:64]!r} is not a word of lower-case letters, digits, "
            "'.', '_' and '-'; use one such as snapshot or digest"
        )
    if not ref.value:
        raise InvalidArgument(f"reference {ref.type}: has no value; say what the name stands for")
    _check_text(ref.value, MAX_REFERENCE_BYTES, "reference")
    return ref


def check_anchor(name: str) -> str:
    """Return `name`, or raise InvalidArgument when an anchor cannot be called so."""
    _check_text(name, MAX_NAME_BYTES, "anchor name")
    return check_name(name, "anchor name")


def check_words(author: str, reason: str) -> None:
    """Raise InvalidArgument when author or reason is too long or no text."""
    _check_text(author, MAX_AUTHOR_BYTES, "author")
    _check_text(reason, MAX_REASON_BYTES, "reason")


def check_time(at_ns: int) -> int:
    """Return `at_ns`, or raise InvalidArgument when it is no time that a fact can have."""
    if not 0 <= at_ns <= MAX_TIME_NS:
        raise InvalidArgument(
            f"time {at_ns} is not in 0..2^64-1; give nanoseconds since 1970 (UTC)"
        )
    return at_ns


def check_fact(fact: Fact) -> Fact:
    """Return a fact that came from elsewhere, or raise InvalidArgument when it cannot be one."""
    check_time(fact.at_ns)
    if not 0 <= fact.seq <= MAX_SEQ:
        raise InvalidArgument(f"number {fact.seq} of a fact is not in 0..2^32-1")
    if fact.ref is not None:
        check_ref(fact.ref)
    check_words(fact.author, fact.reason)
    return fact


def in_order(facts: Iterable[Fact]) -> tuple[Fact, ...]:
    """Return the facts, each once, in the order of their keys."""
    by_key = {fact.key: fact for fact in facts}
    return tuple(by_key[key] for key in sorted(by_key))


def shown_time(at_ns: int) -> str:
    """Return a time as messages show it: UTC, to the nanosecond; the bare number when far off."""
    seconds, rest = divmod(at_ns, _SECOND_NS)
    try:
        moment = datetime.fromtimestamp(seconds, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{at_ns} ns"
    fraction = f".{rest:09d}".rstrip("0") if rest else ""
    return f"{moment:%Y-%m-%d %H:%M:%S}{fraction} UTC"


def _check_text(text: str, limit_bytes: int, what: str) -> None:
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {text[:64]!r} is not valid utf-8; write it anew") from None
    if size > limit_bytes:
        raise InvalidArgument(f"{what} is {size} bytes long; at most {limit_bytes} are allowed")
