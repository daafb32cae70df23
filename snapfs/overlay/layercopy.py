"""A copy of an upper layer as it stands, while the layer goes on as the upper of its tree.

The copy is a layer of its own. A *whole* one has everything that the upper has and goes over the
same layers. One *against* an earlier copy has only what changed since, and goes over that: files
that changed, whiteouts for what is gone, and directories on the way. How an entry was at the last
copy is known by its stamp (stamps.py), so nothing is read of what did not change.

    copy = LayerCopy(upper, below, target, spare, before)
    copy.warm()                 # the upper may change: copies what has changed so far, aside
    copy.make()                 # the upper must hold still: as short as can be
    again = copy.known()        # what the next copy must know, that goes over this one

What changed places, or came in place of something else, cannot always be said over the earlier
copy as it is over the layers below: a directory that was moved refers to layers by their paths
there. Such a directory is copied with all that the tree shows in it, and made opaque.

The upper must be settled (Tree.settle) and nobody else may write to it. Raises OSError.
"""

from __future__ import annotations

import contextlib
import errno
import os
import stat
import time
from collections.abc import Iterator, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO

from . import rawcopy, stamps, xattrs
from .core import MergedTree, directory
from .node import Dir, Inodes
from .sealing import open_sealed
from .stamps import Stamp, Stamps, is_fresh, is_same, is_whiteout, settled, stamp
from .types import TreeSpec

_CHANGING = frozenset({errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENXIO, errno.ESTALE})
"""What is found in a tree that changes while one goes through it."""
_HIDING = frozenset({xattrs.OPAQUE, xattrs.REDIRECT})


class LayerCopy:
    """One copy in the making."""

    def __init__(
        self,
        upper: Path,
        below: Sequence[Path],
        target: Path,
        spare: Path,
        before: bytes | None,
    ) -> None:
        """`before` is what `known` of the copy returned that this one goes over; None for a whole
        copy. `below` are the layers under `upper`; `target` is an empty directory on its file
        system, and `spare` another, for copies that are made ahead."""
        self._upper = os.fsencode(upper)
        self._below = below
        self._seen = open_sealed(self._upper)
        self._target = os.fsencode(target)
        self._spare = os.fsencode(spare)
        self._before = None if before is None else stamps.decode(before)
        self._known = _by_directory(self._before or {})
        self._warm: dict[int, Stamp] = {}
        self._after: Stamps = {}
        self._looked_ns = 0
        self._made: dict[bytes, tuple[bytes, os.stat_result]] = {}
        """Directories of the copy, with the real directory that each is to be like."""
        self._opaque: set[bytes] = set()
        """Directories of the copy that hide all below."""
        self._again: set[bytes] = set()
        """Those that hide nothing, whatever the real one says."""
        self._linked: dict[int, bytes] = {}
        """Of files with several names: where the copy has one."""
        self._same: dict[int, list[bytes]] = {}
        """Names of such files that have not changed, which the copy may be without."""
        self._left: list[tuple[bytes, bool]] = []
        """Directories to go through, and whether all of each is to be copied."""
        self._raised: dict[int, bytes] = {}
        """Lower files with several names that a moved directory shows, by number in its tree."""
        self._trees = contextlib.ExitStack()
        """Trees whose real paths are in `_made`: they hold as long as the tree is open."""
        self.copied_bytes = 0
        """Length of the files that the copy has."""
        self.copied_files = 0

    def warm(self) -> None:
        """Copy what has changed so far, so that `make` finds it done unless it changes again."""
        looked_ns = time.time_ns()
        for path, real in _files(self._source(b"")):
            found = stamp(real)
            is_wanted = stat.S_ISREG(real.st_mode) and self._is_changed(path, found)
            if is_wanted and not is_fresh(found, looked_ns) and real.st_ino not in self._warm:
                self._warm_up(path, real, found)

    def _warm_up(self, path: bytes, real: os.stat_result, found: Stamp) -> None:
        aside = self._aside(real.st_ino)
        try:
            rawcopy.copy_entry(self._source(path), aside, real)
        except OSError:  # it is being changed, or cannot be copied: `make` tells
            with contextlib.suppress(FileNotFoundError):
                os.unlink(aside)
        else:
            self._warm[real.st_ino] = found

    def make(self) -> None:
        """Make the copy."""
        self._looked_ns = time.time_ns()
        root = os.stat(self._source(b""))
        self._after[b""] = stamp(root)
        self._made[b""] = self._source(b""), root
        with self._trees:
            self._left.append((b"", self._before is None))
            while self._left:
                path, fresh = self._left.pop()
                self._directory(path, fresh=fresh)
            self._link_same()
            if self._raised:
                self._link_lower(self._tree())
            self._dress()

    def known(self) -> bytes:
        """Return what a later copy must know of this one, which is made, to go over it."""
        looked_ns = self._looked_ns
        return stamps.encode({path: settled(it, looked_ns) for path, it in self._after.items()})

    def clear(self) -> None:
        """Remove what was made ahead and not needed; nothing can be copied any more."""
        if self._seen >= 0:
            os.close(self._seen)
            self._seen = -1
        for ino in self._warm:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(self._aside(ino))

    def _directory(self, path: bytes, *, fresh: bool) -> None:
        """Copy what is in a directory: all of it when `fresh`, else what changed."""
        names = set()
        before = self._before or {}
        for name, real in _entries(self._source(path)):
            names.add(name)
            here = _join(path, name)
            if stat.S_ISDIR(real.st_mode):
                self._subdirectory(here, real, fresh=fresh)
            else:
                was = None if fresh else before.get(here)
                if was is not None and is_same(was, real):
                    self._after[here] = was
                    if real.st_nlink > 1:
                        self._same.setdefault(real.st_ino, []).append(here)
                else:
                    found = self._after[here] = stamp(real)
                    if found != was:
                        self._place(here, real, found)
        if not fresh:
            for name in self._known.get(path, frozenset()) - names:
                self._reach(path)
                rawcopy.whiteout(self._at(_join(path, name)))

    def _link_same(self) -> None:
        """Let files that were copied for a new place of theirs have the names that stayed too."""
        for ino in self._same.keys() & self._linked.keys():
            for path in self._same[ino]:
                self._reach(path.rpartition(b"/")[0])
                os.link(self._linked[ino], self._at(path), follow_symlinks=False)

    def _link_lower(self, tree: MergedTree) -> None:
        """The same for lower files, all of whose names the tree has to be searched for."""
        left = [b""]
        while left:
            path = left.pop()
            for entry in tree.readdir(_walk_to(tree, path)):
                here = _join(path, entry.name)
                if entry.type == stat.S_IFDIR:
                    left.append(here)
                elif entry.ino in self._raised and not os.path.lexists(self._at(here)):
                    self._reach_shown(tree, path)
                    os.link(self._raised[entry.ino], self._at(here), follow_symlinks=False)

    def _reach_shown(self, tree: MergedTree, path: bytes) -> None:
        """As `_reach`, for a directory that only the layers below may have."""
        for here in self._missing(path):
            if os.path.lexists(self._source(here)):
                self._show_again(here, self._source(here))
            else:
                self._show_again(here, tree.real_path(_walk_to(tree, here)))

    def _tree(self) -> MergedTree:
        """A tree of the layers, open until the copy is made."""
        tree = MergedTree(TreeSpec(1, (self._upper, *self._below)), Inodes())
        self._trees.callback(tree.close)
        return tree

    def _subdirectory(self, path: bytes, real: os.stat_result, *, fresh: bool) -> None:
        source = self._source(path)
        found = self._after[path] = stamp(real, _marks(source))
        was = None if fresh else (self._before or {}).get(path)
        if was is not None and _is_same_directory(was, found):
            if was != found:
                self._reach(path)
            self._left.append((path, False))
        elif self._before is None or (was is None and xattrs.REDIRECT not in xattrs.own(source)):
            self._new_directory(path, source, real)
            self._left.append((path, True))
        elif not self._below or xattrs.get(source, xattrs.OPAQUE) == b"y":
            self._new_directory(path, source, real)
            self._opaque.add(path)
            self._left.append((path, True))
        else:
            self._flatten(path, source, real)

    def _new_directory(self, path: bytes, source: bytes, real: os.stat_result) -> None:
        self._reach(path.rpartition(b"/")[0])
        os.mkdir(self._at(path), 0o700)
        self._made[path] = source, real

    def _reach(self, path: bytes) -> None:
        """Have a directory that was there at the last copy too, and those above it."""
        for here in self._missing(path):
            self._show_again(here, self._source(here))

    def _missing(self, path: bytes) -> list[bytes]:
        """Return the directories on the way that the copy does not have yet, the topmost first."""
        found = []
        while path not in self._made:
            found.append(path)
            path = path.rpartition(b"/")[0]
        return found[::-1]

    def _show_again(self, path: bytes, source: bytes) -> None:
        """Make a directory that is to be like `source` and hides nothing of itself below."""
        os.mkdir(self._at(path), 0o700)
        self._made[path] = source, os.stat(source)
        self._again.add(path)

    def _place(self, path: bytes, real: os.stat_result, found: Stamp) -> None:
        self._reach(path.rpartition(b"/")[0])
        if is_whiteout(real):
            rawcopy.whiteout(self._at(path))
        elif self._warm.get(real.st_ino) == found and real.st_ino not in self._linked:
            os.rename(self._aside(real.st_ino), self._at(path))
            self._note(path, real)
        else:
            self._copy(self._source(path), path, real)

    def _copy(self, source: bytes, path: bytes, real: os.stat_result) -> None:
        """Copy a file that is no directory, or link it to the copy that has another name."""
        first = self._linked.get(real.st_ino) if real.st_nlink > 1 else None
        if first is not None:
            os.link(first, self._at(path), follow_symlinks=False)
            return
        rawcopy.copy_entry(source, self._at(path), real)
        self._note(path, real)

    def _note(self, path: bytes, real: os.stat_result) -> None:
        if real.st_nlink > 1:
            self._linked[real.st_ino] = self._at(path)
        self.copied_files += 1
        self.copied_bytes += real.st_size if stat.S_ISREG(real.st_mode) else 0

    def _flatten(self, path: bytes, source: bytes, real: os.stat_result) -> None:
        """Copy all that the tree shows in a directory, and let nothing below show through."""
        self._new_directory(path, source, real)
        self._opaque.add(path)
        for here, entry in _everything(self._source(path), path):
            self._after[here] = stamp(entry, _marks(self._source(here)))
        tree = self._tree()
        self._flatten_into(tree, _walk_to(tree, path), path)

    def _flatten_into(self, tree: MergedTree, node: Dir, path: bytes) -> None:
        left = [(node, path)]
        while left:
            node, path = left.pop()
            for entry in tree.readdir(node):
                here = _join(path, entry.name)
                child = tree.lookup(node, entry.name)
                source = tree.real_path(child)
                real = os.lstat(source)
                if isinstance(child, Dir):
                    self._new_directory(here, source, real)
                    self._again.add(here)
                    left.append((child, here))
                else:
                    self._copy(source, here, real)
                    if real.st_nlink > 1 and child.layer is not tree.roots[0].layer:
                        self._raised.setdefault(child.ino, self._at(here))

    def _dress(self) -> None:
        """Give the directories their attributes, now that nothing is made in them any more."""
        for path, (source, real) in self._made.items():
            hiding = _HIDING if path in self._opaque or path in self._again else ()
            rawcopy.dress_directory(source, self._at(path), real, hiding)
            if path in self._opaque:
                xattrs.put(self._at(path), xattrs.OPAQUE, b"y")

    def _is_changed(self, path: bytes, found: Stamp) -> bool:
        return self._before is None or self._before.get(path) != found

    def _source(self, path: bytes) -> bytes:
        """Return a path of the layer, from which nothing leads out of it (sealing.py)."""
        return b"/proc/self/fd/%d/%s" % (self._seen, path or b".")

    def _at(self, path: bytes) -> bytes:
        return self._target + b"/" + path if path else self._target

    def _aside(self, ino: int) -> bytes:
        return b"%s/%d" % (self._spare, ino)


def has_changed(
    upper: Path, last: tuple[Sequence[Path], bytes] | None, *, doubted: bool = False
) -> bool:
    """Whether a layer differs from its last copy: the layers of that, and what `known` returned.

    Without a copy, whether it has anything in it. The layer may go on to change meanwhile. Stamps
    that are `doubted` say nothing of the data of files, which is compared. Raises OSError.
    """
    if last is None:
        return bool(os.listdir(upper))
    with contextlib.ExitStack() as opened:
        source, *layers = (_sealed(it, opened) for it in (upper, *last[0]))
        try:
            return _differs(source, layers, stamps.decode(last[1]), doubted=doubted)
        except OSError as error:
            if error.errno in _CHANGING:
                return True
            raise


def _sealed(layer: Path, opened: contextlib.ExitStack) -> bytes:
    """Return a path of a layer from which nothing leads out of it."""
    fd = open_sealed(os.fsencode(layer))
    opened.callback(os.close, fd)
    return b"/proc/self/fd/%d/." % fd


def _differs(source: bytes, layers: Sequence[bytes], known: Stamps, *, doubted: bool) -> bool:
    known.pop(b"", None)
    if _has_other_attributes(source, os.stat(source), layers[0]):
        return True
    for path, real in _everything(source, b""):
        was = known.pop(path, None)
        if was is None or _has_other_stamp(source, path, real, was):
            return True
        if is_whiteout(real):
            continue
        is_unsure = was.fresh or (doubted and stat.S_ISREG(real.st_mode))
        if (is_unsure or was.ctime_ns != real.st_ctime_ns) and _is_other(
            source, layers, path, real
        ):
            return True
    return bool(known)


def _has_other_stamp(source: bytes, path: bytes, real: os.stat_result, was: Stamp) -> bool:
    if stat.S_ISDIR(real.st_mode):
        return not _is_same_directory(was, stamp(real, _marks(source + b"/" + path)))
    return stamp(real) != was._replace(fresh=False)


def _is_other(source: bytes, layers: Sequence[bytes], path: bytes, real: os.stat_result) -> bool:
    """Compare an entry with what the topmost of a copy's layers that has it has."""
    ours, layer = _join(source, path), next((it for it in layers if _has(it, path)), None)
    if layer is None:
        return True
    copied = _join(layer, path)
    if _has_other_attributes(ours, real, copied):
        return True
    if stat.S_ISREG(real.st_mode):
        with _open(ours) as one, _open(copied) as other:
            return any(it != its for it, its in zip_longest(_blocks(one), _blocks(other)))
    return stat.S_ISLNK(real.st_mode) and os.readlink(ours) != os.readlink(copied)


def _has(layer: bytes, path: bytes) -> bool:
    return os.path.lexists(_join(layer, path))


def _has_other_attributes(ours: bytes, real: os.stat_result, copied: bytes) -> bool:
    """Compare all that a user sees of an entry, but the times of directories, which move when a
    file comes and goes."""
    its = os.lstat(copied)
    if (real.st_mode, real.st_uid, real.st_gid) != (its.st_mode, its.st_uid, its.st_gid):
        return True
    if not stat.S_ISDIR(real.st_mode) and real.st_mtime_ns != its.st_mtime_ns:
        return True
    return _users(ours) != _users(copied)


def _users(path: bytes) -> dict[bytes, bytes | None]:
    """Extended attributes without the overlay's own."""
    names = map(os.fsencode, os.listxattr(path, follow_symlinks=False))
    return {name: xattrs.get(path, name) for name in names if not xattrs.is_own(name)}


def _open(path: bytes) -> BinaryIO:
    """Open a regular file, not what may have taken its place meanwhile."""
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    file = os.fdopen(fd, "rb")
    if not stat.S_ISREG(os.fstat(fd).st_mode):
        file.close()
        raise OSError(errno.ESTALE, "the file became another while it was compared", path)
    return file


def _blocks(file: BinaryIO) -> Iterator[bytes]:
    return iter(lambda: file.read(1 << 20), b"")


def _join(path: bytes, name: bytes) -> bytes:
    return path + b"/" + name if path else name


def _by_directory(stamps: Mapping[bytes, Stamp]) -> dict[bytes, set[bytes]]:
    found: dict[bytes, set[bytes]] = {}
    for path in stamps:
        if path:
            above, _, name = path.rpartition(b"/")
            found.setdefault(above, set()).add(name)
    return found


def _entries(path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    with os.scandir(path) as entries:
        for entry in entries:
            yield entry.name, entry.stat(follow_symlinks=False)


def _files(upper: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield what is no directory in a layer that may change meanwhile."""
    left = [b""]
    while left:
        path = left.pop()
        for entry in _entries_of_changing(_join(upper, path) if path else upper):
            here = _join(path, entry.name)
            if entry.is_dir(follow_symlinks=False):
                left.append(here)
                continue
            try:
                yield here, entry.stat(follow_symlinks=False)
            except OSError as error:
                if error.errno not in _CHANGING:
                    raise


def _entries_of_changing(path: bytes) -> list[os.DirEntry[bytes]]:
    try:
        with os.scandir(path) as entries:
            return list(entries)
    except OSError as error:
        if error.errno in _CHANGING:
            return []
        raise


def _everything(source: bytes, path: bytes) -> Iterator[tuple[bytes, os.stat_result]]:
    """Yield all that is below `source`, which is at `path` in its layer."""
    left = [(source, path)]
    while left:
        source, path = left.pop()
        for name, real in _entries(source):
            here = _join(path, name)
            yield here, real
            if stat.S_ISDIR(real.st_mode):
                left.append((source + b"/" + name, here))


def _marks(path: bytes) -> bytes:
    """Return what a directory says of the layers below it; empty for most."""
    if not xattrs.own(path) & _HIDING:
        return b""
    opaque, redirect = xattrs.get(path, xattrs.OPAQUE), xattrs.get(path, xattrs.REDIRECT)
    return b"%s\0%s" % (opaque or b"", redirect or b"")


def _is_same_directory(was: Stamp, now: Stamp) -> bool:
    return was.is_dir and was.ino == now.ino and was.marks == now.marks


def _walk_to(tree: MergedTree, path: bytes) -> Dir:
    here: Dir = tree.root
    for name in filter(None, path.split(b"/")):
        here = directory(tree.lookup(here, name))
    return here
