"""Field masks: which parts of an object an update takes over.

    labels          the whole map: keys that the new one lacks are gone
    labels.KEY      one label; without it in the new one, it goes
    target, ...     a field as a unit

An update without a mask takes over everything that may change. Pure. Source: containerd
core/metadata/{images,containers}.go; a replaced map really is, which theirs is not for extensions.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeVar

from snapfs.model import InvalidArgument

V = TypeVar("V")


def merge(
    old: Mapping[str, V], new: Mapping[str, V], paths: Sequence[str], field: str
) -> dict[str, V]:
    """Return a map field after an update of `paths`."""
    if field in paths:
        return dict(new)
    result = dict(old)
    for path in paths:
        if path.startswith(field + "."):
            key = path[len(field) + 1 :]
            if key in new:
                result[key] = new[key]
            else:
                result.pop(key, None)
    return result


def check(
    paths: Sequence[str], *, fields: Sequence[str], maps: Sequence[str], what: str
) -> tuple[str, ...]:
    """Return the paths to apply, all of them when none are given; InvalidArgument for others."""
    for path in paths:
        field, dot, key = path.partition(".")
        if path in fields or path in maps or (field in maps and dot and key):
            continue
        known = ", ".join([*fields, *maps, *(f"{each}.KEY" for each in maps)])
        raise InvalidArgument(f"{what} has no field {path!r} that can change; it has: {known}")
    return tuple(paths) or (*fields, *maps)
