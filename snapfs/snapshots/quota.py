"""The quota of a snapshot: what its labels say, over what the configuration says. Pure.

A label that is not there leaves its limit to the configuration; `none` is no limit, whatever the
configuration says. A quota is a snapshot's own: what is prepared from it has none of it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from snapfs.model import InvalidArgument, Labels, Quota

SIZE_LABEL = "containerd.io/snapshot/max-size"
INODES_LABEL = "containerd.io/snapshot/snapfs.quota-inodes"
LABELS = (SIZE_LABEL, INODES_LABEL)
NO_LIMIT = "none"
MAX = 1 << 62
"""What fits everywhere it has to go: gRPC, JSON, statfs."""

_SIZE = re.compile(r"([0-9]+(?:\.[0-9]*)?) ?([kmgtp]?)(?:i?b)?", re.IGNORECASE | re.ASCII)
_UNITS = {"": 0, "k": 10, "m": 20, "g": 30, "t": 40, "p": 50}


def parse_size(text: str) -> int:
    """Return the bytes in `10G`, `10GiB`, `1.5gb` or `1048576`.

    As containerd's devmapper and blockfile read their sizes (go-units, RAMInBytes): all units are
    powers of 1024, in either case.
    """
    found = _SIZE.fullmatch(text.strip())
    if found is None:
        raise InvalidArgument(f"size {text!r} is not understood; write it as 10GiB or 512M")
    number, unit = found.groups()
    size = float(number) if "." in number else int(number)
    return _checked(int(size * (1 << _UNITS[unit.lower()])), "size", text)


def parse_inodes(text: str) -> int:
    """Return a number of inodes."""
    if not (text.isascii() and text.isdigit()):
        raise InvalidArgument(f"number of inodes {text!r} is not understood; write it as 100000")
    return _checked(int(text), "number of inodes", text)


def _checked(value: int, what: str, text: str) -> int:
    if value < 1:
        raise InvalidArgument(f"{what} {text!r} is too small; write {NO_LIMIT} for no limit")
    if value > MAX:
        raise InvalidArgument(f"{what} {text!r} is too large; write {NO_LIMIT} for no limit")
    return value


def of_labels(labels: Labels, default: Quota) -> Quota:
    """Return the quota in force; InvalidArgument names the label that cannot be read."""
    size_bytes, inodes = default.size_bytes, default.inodes
    if text := labels.get(SIZE_LABEL):
        size_bytes = None if text == NO_LIMIT else _named(SIZE_LABEL, parse_size, text)
    if text := labels.get(INODES_LABEL):
        inodes = None if text == NO_LIMIT else _named(INODES_LABEL, parse_inodes, text)
    return Quota(size_bytes, inodes)


def _named(label: str, parse: Callable[[str], int], text: str) -> int:
    try:
        return parse(text)
    except InvalidArgument as error:
        raise InvalidArgument(f"label {label}: {error}") from None


def may_change(fieldpaths: Sequence[str] | None) -> bool:
    """Whether an update of these fields, all labels when there are none, may change a quota."""
    return not fieldpaths or any(
        path == "labels" or path.removeprefix("labels.") in LABELS for path in fieldpaths
    )


def to_label(limit: int | None) -> str | None:
    """Return the value of a label that says a limit, 0 being none; None stays None."""
    if limit is None:
        return None
    return str(_checked(limit, "limit", str(limit))) if limit else NO_LIMIT
