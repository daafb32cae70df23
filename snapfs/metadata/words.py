"""Rules for the words that people and clients give: identifiers, digests, times in labels.

Pure. Source: containerd `identifiers` (validate.go), `labels`, `namespaces`; OCI image-spec,
descriptor.md, for digests.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime

from snapfs.model import InvalidArgument

MAX_IDENTIFIER_CHARS = 76
_IDENTIFIER = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_RESERVED_NAMESPACE = "version"
_DIGEST_CHARS = {"sha256": 64, "sha384": 96, "sha512": 128}
_HEX = re.compile(r"[0-9a-f]+")
_RFC3339 = re.compile(
    r"(\d{4}-\d{2}-\d{2})[Tt](\d{2}:\d{2}:\d{2})(?:\.(\d{1,9}))?([Zz]|[+-]\d{2}:\d{2})"
)


def check_identifier(text: str, what: str) -> str:
    """Return `text`, or raise InvalidArgument when it is not an identifier.

    An identifier has 1 to 76 letters and digits, in groups joined by one of `.`, `_`, `-`.
    """
    if not text:
        raise InvalidArgument(f"{what} is empty; give one")
    if len(text) > MAX_IDENTIFIER_CHARS:
        raise InvalidArgument(
            f"{what} {text[:64]!r} is {len(text)} characters long; "
            f"at most {MAX_IDENTIFIER_CHARS} are allowed"
        )
    if not _IDENTIFIER.fullmatch(text):
        raise InvalidArgument(
            f"{what} {text!r} must be letters and digits, in groups joined by one of . _ -"
        )
    return text


def check_namespace(text: str) -> str:
    """Return `text`, or raise InvalidArgument when it cannot name a namespace."""
    if check_identifier(text, "namespace") == _RESERVED_NAMESPACE:
        raise InvalidArgument(f"namespace {text!r} is reserved; choose another name")
    return text


def is_digest(text: str) -> bool:
    """Say whether `text` is a digest of an algorithm that content may have."""
    algorithm, _, encoded = text.partition(":")
    return len(encoded) == _DIGEST_CHARS.get(algorithm, -1) and bool(_HEX.fullmatch(encoded))


def check_digest(text: str, what: str = "digest") -> str:
    """Return `text`, or raise InvalidArgument when it is no digest of ours."""
    if not is_digest(text):
        known = ", ".join(_DIGEST_CHARS)
        raise InvalidArgument(
            f"{what} {text[:140]!r} is not ALGORITHM:HEX with one of {known} in lower case"
        )
    return text


def parse_time_ns(text: str) -> int | None:
    """Return nanoseconds since 1970 of a time in RFC 3339, or None when it is none.

    Labels with times are written by others: what does not parse is ignored, not refused.
    """
    found = _RFC3339.fullmatch(text)
    if found is None:
        return None
    date, clock, fraction, zone = found.groups()
    try:
        moment = datetime.fromisoformat(f"{date}T{clock}{'+00:00' if zone in 'Zz' else zone}")
    except ValueError:
        return None
    seconds = int((moment - datetime(1970, 1, 1, tzinfo=UTC)).total_seconds())
    return max(0, seconds * 1_000_000_000 + int((fraction or "0").ljust(9, "0")))


def shown(text: str) -> str:
    """Return `text` quoted for a message, not longer than a line."""
    return repr(text if len(text) <= 140 else text[:137] + "...")
