"""How a directory's lower layers are found and merged.

The rules are those of the kernel's ovl_lookup(): from the direct parent down, a whiteout or
anything that is no directory ends a directory's stack, an opaque directory is its last member, and
a redirect changes the name (or, when absolute, the whole path from the roots) looked for in the
layers below.

A committed chain never changes, so the merged names of a directory are read once (`merge`) and a
name is then found without asking each layer. An entry of this index is an int (number, position in
the stack and type: see `low_of` and the next), or for a directory that occurs in several layers a
tuple of them, top first.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator, Sequence
from typing import TypeAlias

from . import xattrs
from ._names import Index
from .identity import Numbers
from .layer import Layer, Place, stat_or_none

Entry: TypeAlias = int | tuple[int, ...]

_NO_DEVICE = (1 << 64) - 1
"""Where numbers are not taken as they are, each is asked for."""


def top(entry: Entry) -> int:
    """The visible one of a name's entries."""
    return entry if type(entry) is int else entry[0]  # type: ignore[index]


def low_of(packed: int) -> int:
    return packed >> 20


def position_of(packed: int) -> int:
    return packed >> 4 & 0xFFFF


def kind_of(packed: int) -> int:
    return (packed & 0xF) << 12


def tops(index: Index) -> Iterator[tuple[bytes, int]]:
    """Yield each name with the visible one of its entries."""
    for _, name, packed in index.after(0, len(index)):
        yield name, packed


def merge(stack: Sequence[Place], numbers: Numbers) -> Index:
    """Read the names of all directories of a stack into one index; whiteouts are resolved."""
    return read_index([place.source() for place in stack], numbers)


def read_index(sources: Sequence[tuple[bytes, int, bool, bool]], numbers: Numbers) -> Index:
    """As merge, for directories of any layers (Place.source)."""
    keeps_numbers = numbers.main if not numbers.base else _NO_DEVICE
    return Index(sources, keeps_numbers, numbers.low)


def file_of(stack: Sequence[Place], packed: int, name: bytes) -> tuple[Layer, bytes]:
    """Return layer and path of what an index of a stack has under a name, as its top has it."""
    place = stack[position_of(packed)]
    return place.layer, place.prefix + name


class Search:
    """One directory looked for through the layers, as ovl_lookup_data."""

    __slots__ = ("data", "for_data", "found", "name", "roots", "stop")

    def __init__(self, roots: Sequence[Place], name: bytes, *, for_data: bool = False) -> None:
        self.roots = roots
        self.name = name
        """A name in the parent, or a path from the roots when it starts with a slash."""
        self.stop = False
        self.found: list[Place] = []
        self.for_data = for_data
        """Look for a file's data instead of for directories (metacopy)."""
        self.data: tuple[Layer, bytes] | None = None

    def run(self, stack: Sequence[Place], position: int = 0) -> tuple[Place, ...]:
        """Look through `stack` from `position`; through the roots once the name is absolute."""
        while position < len(stack) and not self.stop:
            place = stack[position]
            was_absolute = stack is self.roots
            self._look_in(place)
            position += 1
            if self.name.startswith(b"/") and not was_absolute:
                stack, position = self.roots, place.depth + 1
        return tuple(self.found)

    def _look_in(self, place: Place) -> None:
        if not self.name.startswith(b"/"):
            place_found = self._single(place, self.name, 0, b"")
            if place_found is not None:
                self.found.append(place_found)
            return
        remaining = len(self.name) - 1
        at: Place | None = place
        while at is not None:
            start = len(self.name) - remaining
            end = self.name.find(b"/", start)
            end = len(self.name) if end < 0 else end
            length, post = end - start, self.name[end:]
            at = self._single(at, self.name[start:end], start, post)
            if not post:
                break
            remaining -= length + 1
        if at is not None:
            self.found.append(at)

    def _single(self, base: Place, name: bytes, before: int, post: bytes) -> Place | None:
        """Look for one path element in one layer; `post` is the path behind it."""
        path = base.prefix + name
        try:
            real = stat_or_none(*base.layer.at(path))
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                return None
            raise
        if base.dot_hides(name):
            self.stop = True
        if real is None:
            return None
        if not stat.S_ISDIR(real.st_mode):
            self.stop = True
            if self.for_data and not post and stat.S_ISREG(real.st_mode):
                self._take_data(base, path, before)
            return None
        if self.for_data and not post:
            self.stop = True
            return None
        place = base.below(name)
        self.read_marks(place, before, post)
        return place

    def _take_data(self, base: Place, path: bytes, before: int) -> None:
        """A file was found: its data is here, or below when this is a copy of metadata only."""
        own = base.own(path)
        if xattrs.METACOPY not in own:
            self.data = base.layer, path
            return
        self.stop = False
        if xattrs.REDIRECT in own:
            self._redirect(read_redirect(base.layer.proc(path)), before, b"")

    def read_marks(self, place: Place, before: int, post: bytes) -> None:
        """Take in what a directory's own attributes say of the layers below it."""
        if place.depth == len(self.roots) - 1:
            return
        if place.is_dot_opaque():
            self.stop = True
            return
        path = place.path
        own = place.own(path)
        if xattrs.OPAQUE in own:
            value = xattrs.get(place.layer.proc(path), xattrs.OPAQUE)
            if value == b"y":
                self.stop = True
                return
            place.xwhiteouts = value == b"x" and not post
        if xattrs.REDIRECT in own:
            self._redirect(read_redirect(place.layer.proc(path)), before, post)

    def _redirect(self, target: bytes | None, before: int, post: bytes) -> None:
        """Change what is looked for in the layers below (ovl_check_redirect)."""
        if not target:
            return
        if target.startswith(b"/"):
            self.stop = False
            self.name = target + post
        else:
            self.name = self.name[:before] + target + post


def read_redirect(path: bytes) -> bytes | None:
    """Read and check a redirect: one name, or an absolute path of names.

    Layers come from strangers: `..` would lead out of them.
    """
    value = xattrs.get(path, xattrs.REDIRECT)
    if not value:
        return None
    value = value.rstrip(b"\0")
    absolute = value.startswith(b"/")
    names = value[1:].split(b"/") if absolute else [value]
    valid = not any(name in (b"", b".", b"..") or b"/" in name for name in names)
    if not valid or b"\0" in value:
        raise OSError(errno.EINVAL, f"invalid redirect {os.fsdecode(value)!r}", path)
    return value


def stack_of(
    roots: Sequence[Place], parent: Sequence[Place], name: bytes, entry: Entry
) -> tuple[Place, ...]:
    """The lower directories that an index entry of `parent` stands for.

    Only layers that have the name are asked; a redirect on the way falls back to a full search.
    """
    found: list[Place] = []
    for packed in (entry,) if isinstance(entry, int) else entry:
        search = Search(roots, name)
        place = parent[position_of(packed)].below(name)
        found.append(place)
        search.read_marks(place, 0, b"")
        if search.stop:
            break
        if search.name.startswith(b"/"):
            found.extend(search.run(roots, place.depth + 1))
            break
        if search.name != name:
            found.extend(search.run(parent, position_of(packed) + 1))
            break
    return tuple(found)


def walk(roots: Sequence[Place], path: bytes) -> tuple[Place, ...]:
    """The lower directories at an absolute path of the lower chain, as a redirect names them."""
    return Search(roots, path).run(roots)


def find_data(
    roots: Sequence[Place], parent: Sequence[Place], position: int, name: bytes
) -> tuple[Layer, bytes] | None:
    """Layer and path of the data that a metadata-only copy of `name` in `parent` stands for.

    The copy lies above `position` of the parent's stack; `name` may be an absolute redirect.
    """
    search = Search(roots, name, for_data=True)
    if name.startswith(b"/"):
        depth = parent[position].depth if position < len(parent) else len(roots)
        search.run(roots, depth)
    else:
        search.run(parent, position)
    return search.data
