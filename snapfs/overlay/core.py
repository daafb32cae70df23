"""A merged tree as it can be read: lookup, attributes, listings, opening.

The order of authority for a name: the upper layer, then the merged index of the lower layers, which
is read once per directory. Nothing else may write to the layers while the tree is open.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence

from . import devices, identity, lower, metacopy, xattrs
from ._names import Handed, Index
from .filecalls import statx
from .layer import Layer, Place, is_whiteout, not_found, refuse, stat_or_none
from .links import Links
from .listing import Listings
from .node import GONE, Dir, Inodes, Node
from .ordering import Order, keeps_sizes, order_of
from .owners import shown_value
from .quota import Allowance
from .sealing import open_together
from .types import Attributes, DirEntry, Listed, TreeSpec
from .usage import UsageCount
from .work import Work, own_directory

NAME_MAX = 255
_OPEN_KEPT = os.O_ACCMODE | os.O_TRUNC | os.O_SYNC | os.O_DSYNC | os.O_NOATIME


class MergedTree:
    """State of one tree and everything that reads it. Not thread-safe."""

    lists_without_nodes = False

    def __init__(self, spec: TreeSpec, inodes: Inodes | None = None) -> None:
        """Open the layers; with an upper, clean its work directory first.

        `inodes` is the lane's table; without one the tree has its own.
        """
        self.spec = spec
        self.inodes = Inodes() if inodes is None else inodes
        self.epoch = 0
        """Counts moves of upper directories: cached paths of an older epoch are stale."""
        self._shared = [
            self.inodes.layers.get(path, dot_whiteouts=spec.dot_whiteouts) for path in spec.lowers
        ]
        self.readonly = spec.upper is None
        self.prefix = 0 if spec.single else identity.prefix(spec.number)
        self.counted = 0
        """Lookups by the kernel that its nodes count."""
        self.handed = Handed(self.prefix, self.inodes.places)
        """Files that the kernel knows and that have no node."""
        self.handed.protects_below = any(layer.is_protected for layer in self._shared)
        self.listings = Listings()
        self.upper: Layer | None = None
        self._work: Work | None = None
        self._links: Links | None = None
        if spec.upper is not None:
            if spec.work is None:
                raise ValueError("a tree with an upper layer needs a work directory")
            own = own_directory(spec.work)
            upper_fd, work_fd = open_together(os.fsencode(spec.upper), own, atime=spec.atime)
            self.upper = Layer(spec.upper, upper_fd)
            self.handed.protects = self.upper.is_protected
            order = order_of(own) if spec.sync else Order.NOTHING
            self._work = Work(Layer(own, work_fd), self.inodes.freeing, order)
            records = self._work.clean(keep_removed=spec.resumed)
            self._links = Links(self._work, records, self.handed)
        if self.upper is None and not self._shared:
            raise ValueError("a tree needs at least one layer")
        main = self.upper or self._shared[0]
        self.numbers = identity.Numbers(main.device, os.fstat(main.fd).st_ino)
        self.roots = _root_places(self._shared)
        self.makes_metacopies = (
            spec.metacopy and self.upper is not None and keeps_sizes(self.upper.fd)
        )
        self.has_metacopies = False
        """Files in the upper layer may be copies of metadata only (metacopying.py)."""
        self.left_in: set[Dir] | None = set()
        """The directories that may have such; None: any may."""
        self.completing: set[Node] = set()
        """Such copies whose data is being copied: nothing else may change them meanwhile."""
        self.root = self._make_root()
        self.linkable: set[int] = set()
        """Numbers of files that were made without a name and may get one (tmpfiles.py)."""
        self.usage = UsageCount(self)
        if self._work is not None:
            self._work.retired = self.usage.whiteout_made
        self.allowance = Allowance(self.usage)

    def _make_root(self) -> Dir:
        ino = identity.LANE_ROOT if self.spec.single else self.prefix
        root = Dir(self, ino, None, b"")
        root.stack = self.roots
        if self.upper is not None:
            root.up = True
            own = xattrs.own(self.upper.proc(b"."))
            root.impure = xattrs.IMPURE in own
            self.has_metacopies = xattrs.METACOPIES in own
            self.left_in = None if self.has_metacopies else set()
        return root

    @property
    def work(self) -> Work:
        if self._work is None:
            raise refuse(errno.EROFS, b"")
        return self._work

    @property
    def links(self) -> Links:
        if self._links is None:
            raise refuse(errno.EROFS, b"")
        return self._links

    # Where a node is

    def where(self, node: Node) -> tuple[int, bytes]:
        """Return (directory descriptor, path) of the real file behind a node; of a metadata-only
        copy, of that."""
        if not node.is_above:
            layer = node.layer
            if layer is None:
                place = node.stack[0]  # type: ignore[attr-defined]
                return place.layer.at(place.path)  # type: ignore[no-any-return]
            return layer.at(node.lower_path)
        if node.stash is not None:
            return self.work.layer.fd, node.stash
        return self.upper_layer.at(self.upper_path(node))

    @property
    def upper_layer(self) -> Layer:
        if self.upper is None:
            raise refuse(errno.EROFS, b"")
        return self.upper

    def upper_path(self, node: Node) -> bytes:
        """Path of a node's name in the upper layer."""
        if node.parent is None:
            if node is self.root:
                return b"."
            raise not_found(node.name)
        return node.parent.prefix() + node.name

    def place_of(self, node: Node) -> tuple[int, bytes] | None:
        """Return (descriptor, path) of a node, good for as long as the tree is open and the file
        stays where it is; None when there is none such, or rules go with it."""
        if node.link is not None or node.stash is not None or node in self.completing:
            return None
        if node.parent is None and node is not self.root:
            return None
        layer = self.upper if node.is_above else node.layer
        if layer is None or self.spec.owners is not None:
            return None
        path = self.upper_path(node) if node.is_above else node.lower_path
        return None if len(path) > _LONG_BYTES else (layer.fd, path)

    def data_place_of(self, node: Node) -> tuple[int, bytes] | None:
        """As `place_of`, of the data of a metadata-only copy; None for any other file."""
        if not node.metacopy or node.layer is None or len(node.lower_path) > _LONG_BYTES:
            return None
        return node.layer.fd, node.lower_path

    def real_path(self, node: Node) -> bytes:
        """Absolute path of what `where` says, for calls that know no directory descriptors."""
        if not node.is_above:
            if node.layer is None:
                place = node.stack[0]  # type: ignore[attr-defined]
                return place.layer.proc(place.path)  # type: ignore[no-any-return]
            return node.layer.proc(node.lower_path)
        if node.stash is not None:
            return self.work.proc(node.stash)
        return self.upper_layer.proc(self.upper_path(node))

    # What the kernel knows

    @property
    def lookups(self) -> int:
        """How often the kernel looked up anything here and has not forgotten it."""
        return self.counted + self.handed.total

    @property
    def main_numbers(self) -> tuple[int, int]:
        """Device and upper bits of the inode numbers that are low parts as they are."""
        return self.numbers.main, self.numbers.base

    def admit(self, node: Node) -> bool:
        """Let files of a directory be handed to the kernel without nodes; False when they need one.

        Only where nothing can differ from the lower layers. It ends (`handed.close`) before the
        directory changes, and when it is forgotten.
        """
        here = directory(node)
        if self.handed.has_room(here.ino):
            return True
        if here.up or here.dead or self.spec.owners is not None:
            return False
        if any(len(place.prefix) > _LONG_BYTES for place in here.stack):
            return False
        places = tuple((place.layer.fd, place.prefix) for place in here.stack)
        above = here.ino if here.parent is None else here.parent.ino
        self.handed.open(here.ino, above, here, self.index(here), places)
        return True

    def recall(self, ino: int) -> Node | None:
        """Make the node of a file that was handed to the kernel without one."""
        found = self.handed.peek(ino)
        if found is None:
            return None
        parent, name, is_hidden = found
        node = self._hidden(parent, name) if is_hidden else self.lookup(parent, name)
        if node.ino != ino:
            raise refuse(errno.ESTALE, name)
        return node

    def _hidden(self, parent: Dir, name: bytes) -> Node:
        """Make the node of a lower file that has lost its only name without one."""
        entry = self.lower_entry(parent, name)
        if entry is None:
            raise not_found(name)
        packed = lower.top(entry)
        node = self.inodes.find(self.prefix | lower.low_of(packed))
        if node is None:
            node = self.nameless_lower(parent, name, packed)
        else:
            node.drop_name(parent, name)
        self.inodes.enter(node)
        return node

    def nameless_lower(self, parent: Dir, name: bytes, packed: int) -> Node:
        """Make the node of what a directory's lower layers have under a name that is gone."""
        ino = self.prefix | lower.low_of(packed)
        node = Node(self, ino, lower.kind_of(packed), None, b"")
        node.layer, node.lower_path = lower.file_of(parent.stack, packed, name)
        return node

    # Lookup

    def lookup(self, parent: Node, name: bytes) -> Node:
        """Return the node called `name`; FileNotFoundError when there is none."""
        children = parent.children  # type: ignore[attr-defined]
        node = children.get(name)
        if node is not None:
            return node  # type: ignore[no-any-return]
        return self._lookup(directory(parent), name)

    def find(self, parent: Dir, name: bytes) -> Node | None:
        """As lookup, with None for a name that is not there."""
        try:
            return self.lookup(parent, name)
        except FileNotFoundError:
            return None

    def _lookup(self, parent: Dir, name: bytes) -> Node:
        if parent.dead:
            raise not_found(name)
        if len(name) > NAME_MAX:
            raise refuse(errno.ENAMETOOLONG, name)
        if parent.up:
            path = parent.prefix() + name
            real = stat_or_none(*self.upper_layer.at(path))
            if real is not None:
                if is_whiteout(real):
                    raise not_found(name)
                return self._from_upper(parent, name, path, real)
        if parent.stack:
            entry = self.index(parent).get(name)
            if entry is not None:
                return self._from_lower(parent, name, entry)
        raise not_found(name)

    def index(self, parent: Dir) -> Index:
        """Merged names of a directory's lower layers."""
        index = parent.index
        if index is None:
            index = parent.index = self._read_index(parent)
        return index

    def _read_index(self, parent: Dir) -> Index:
        """Merge a stack's names, or take what another tree of the lane with the same layers has."""
        if any(place.layer.device != self.numbers.main for place in parent.stack):
            return lower.merge(parent.stack, self.numbers)
        shared = self.inodes.layers.indexes
        key = (*self.main_numbers, *((place.layer, place.prefix) for place in parent.stack))
        index = shared.get(key)
        if index is None:
            index = shared[key] = lower.merge(parent.stack, self.numbers)
        return index

    def lower_entry(self, parent: Dir, name: bytes) -> lower.Entry | None:
        """What the lower layers have under a name, whatever the upper layer says."""
        return self.index(parent).get(name) if parent.stack else None

    def _from_upper(self, parent: Dir, name: bytes, path: bytes, real: os.stat_result) -> Node:
        if stat.S_ISDIR(real.st_mode):
            return self._upper_dir(parent, name, path, real)
        low = self._copied_low(path) if parent.impure else None
        ino = self.prefix | (self.numbers.low(real.st_dev, real.st_ino) if low is None else low)
        node = self.inodes.meet(ino)
        if node is None:
            node = Node(self, ino, stat.S_IFMT(real.st_mode), parent, name)
            node.up = True
            if low is not None:
                node.copied = True
                self._join_link(node, low)
                if self.has_metacopies and stat.S_ISREG(real.st_mode) and real.st_size:
                    self._find_data(node, path)
            if real.st_nlink > 1 and node.stash is None:
                self._join_kept(node, real)
            self.inodes.enter(node)
        else:
            node.add_name(parent, name)
        return node

    def _find_data(self, node: Node, path: bytes) -> None:
        """Note of a metadata-only copy that its data is in the lower file of its name."""
        parent = node.parent
        if parent is None or xattrs.get(self.upper_layer.proc(path), xattrs.METACOPY) is None:
            return
        entry = self.lower_entry(parent, node.name)
        if entry is not None and lower.kind_of(packed := lower.top(entry)) == stat.S_IFREG:
            node.leave_data(*lower.file_of(parent.stack, packed, node.name))

    def _copied_low(self, path: bytes) -> int | None:
        return _lasting(xattrs.get(self.upper_layer.proc(path), xattrs.INO))

    def _join_link(self, node: Node, low: int) -> bool:
        """Attach the record of a copied-up hard link; False when there is none."""
        links = self._links
        link = links.get(low) if links else None
        if link is None or not link.upper:
            return False
        node.link, node.stash = link, link.stash
        node.rise()
        return True

    def _join_kept(self, node: Node, real: os.stat_result) -> None:
        """Attach what an earlier opening kept of a file when it lost another of its names."""
        if self.spec.resumed:
            name = b"o%x" % (node.ino & identity.LOW_MASK)
            kept = stat_or_none(*self.work.at(name))
            if kept is not None and (kept.st_dev, kept.st_ino) == (real.st_dev, real.st_ino):
                node.stash = name

    def _upper_dir(self, parent: Dir, name: bytes, path: bytes, real: os.stat_result) -> Dir:
        absolute = self.upper_layer.proc(path)
        own = xattrs.own(absolute)
        low = None
        if parent.impure and xattrs.INO in own:
            low = self._copied_low(path)
        ino = self.prefix | (self.numbers.low(real.st_dev, real.st_ino) if low is None else low)
        known = self.inodes.find(ino)
        if isinstance(known, Dir):
            return known
        node = Dir(self, ino, parent, name)
        node.up = True
        node.copied = low is not None
        node.impure = xattrs.IMPURE in own
        node.opaque = xattrs.OPAQUE in own and xattrs.get(absolute, xattrs.OPAQUE) == b"y"
        if not node.opaque:
            self._find_stack(node, absolute if xattrs.REDIRECT in own else None)
        self.inodes.enter(node)
        return node

    def _find_stack(self, node: Dir, redirected: bytes | None) -> None:
        """Find what an upper directory is merged with, following its redirect."""
        parent, name = node.parent, node.name
        if parent is None:
            return
        target = lower.read_redirect(redirected) if redirected else None
        if target is not None and target.startswith(b"/"):
            node.stack = lower.walk(self.roots, target)
            node.origin = target
            return
        if target is not None:
            name = target
            node.origin = b"%s/%s" % (parent.origin_path(), target)
        entry = self.lower_entry(parent, name)
        if entry is not None and lower.kind_of(lower.top(entry)) == stat.S_IFDIR:
            node.stack = lower.stack_of(self.roots, parent.stack, name, entry)

    def _from_lower(self, parent: Dir, name: bytes, entry: lower.Entry) -> Node:
        packed = lower.top(entry)
        low = lower.low_of(packed)
        ino = self.prefix | low
        node = self.inodes.meet(ino)
        if node is not None:
            node.add_name(parent, name)
            return node
        kind = lower.kind_of(packed)
        if kind == stat.S_IFDIR:
            node = Dir(self, ino, parent, name)
            node.stack = lower.stack_of(self.roots, parent.stack, name, entry)
        else:
            node = Node(self, ino, kind, parent, name)
            node.layer, node.lower_path = lower.file_of(parent.stack, packed, name)
            if self._links:
                self._join_link(node, low)
        self.inodes.enter(node)
        return node

    # Reading a node

    def getattr(self, node: Node) -> Attributes:
        """Attributes of a node, as stat(2) on an overlay mount says them."""
        fd, path = self.where(node)
        real = os.stat(path, dir_fd=fd, follow_symlinks=False)
        rdev = real.st_rdev
        if rdev == devices.STAND_IN:
            rdev = devices.shown(rdev, self.real_path(node))
        blocks = metacopy.blocks(node) if node.metacopy else real.st_blocks
        uid, gid, owners = real.st_uid, real.st_gid, self.spec.owners
        if owners is not None:
            uid, gid = owners.shown_uid(uid), owners.shown_gid(gid)
        return Attributes(
            node.ino,
            real.st_mode,
            self._nlink(node, real.st_nlink),
            uid,
            gid,
            rdev,
            real.st_size,
            blocks,
            real.st_blksize,
            real.st_atime_ns,
            real.st_mtime_ns,
            real.st_ctime_ns,
        )

    def _nlink(self, node: Node, count: int) -> int:
        """Names of a node: 1 for a merged directory, as overlayfs has it (find wants that)."""
        if isinstance(node, Dir):
            if node.dead:
                return 0
            return 1 if len(node.stack) + node.up > 1 else count
        if node.stash is not None:
            return count - 1 + (node.link.pending if node.link else 0)
        if count > 1 and not node.up and self._links:
            link = self._links.get(node.ino & identity.LOW_MASK)
            if link is not None:
                return count - link.removed
        if node.parent is None and not node.up:
            return count - 1
        return count

    def readlink(self, node: Node) -> bytes:
        """Target of a symbolic link."""
        fd, path = self.where(node)
        return os.readlink(path, dir_fd=fd)

    def readdir(self, node: Node) -> list[DirEntry]:
        """List a merged directory, in the order of `listing`; without `.` and `..`."""
        here = directory(node)
        index = self.listing(here, fresh=True)
        return [
            DirEntry(name, self.entry_ino(here, name, packed), lower.kind_of(packed))
            for name, packed in lower.tops(index)
        ]

    def listing(self, here: Dir, *, fresh: bool) -> Index:
        """The names of a directory in an order that never changes; `fresh`: read from the start.

        Entries are those of lower.Entry, but positions are of no use.
        """
        if here.dead:
            return _NO_NAMES
        return self.listings.get(here, fresh=fresh) if here.up else self.index(here)

    def plain_listing(self, node: Node, *, fresh: bool) -> Index | None:
        """The listing of an upper directory, if its numbers are those of the nodes and it is as it
        is now."""
        here = directory(node)
        if not here.up or here.dead or here.impure:
            return None
        index = self.listing(here, fresh=fresh)
        return index if self.listings.is_current(here) else None

    def page(self, node: Node, after: int, limit: int) -> list[Listed]:
        """Up to `limit` names behind a place, in the order of places; 0 begins.

        What is there all the time is listed once, whatever changes between two pages.
        """
        here = directory(node)
        index = self.listing(here, fresh=after == 0)
        is_current = not here.up or self.listings.is_current(here)
        found: list[Listed] = []
        while len(found) < limit and (chunk := index.after(after, limit)):
            for place, name, packed in chunk:
                if is_current:
                    ino, kind = self.entry_ino(here, name, packed), lower.kind_of(packed)
                    found.append(Listed(place, name, ino, kind))
                elif (now := self.find(here, name)) is not None:
                    found.append(Listed(place, name, now.ino, now.type))
            after = chunk[-1][0]
        return found

    def entry_ino(self, here: Dir, name: bytes, packed: int) -> int:
        """The number of a listed entry, without making a node."""
        if here.up and lower.position_of(packed) == 0:
            known = here.children.get(name)
            if known is not None:
                return known.ino
            low = self._copied_low(here.prefix() + name) if here.impure else None
            if low is not None:
                return self.prefix | low
        return self.prefix | lower.low_of(packed)

    def statfs(self) -> os.statvfs_result:
        """State of the file system that takes the changes, or else of the direct parent's."""
        return os.fstatvfs((self.upper or self._shared[0]).fd)

    def getxattr(self, node: Node, name: bytes) -> bytes:
        """Value of a user-visible attribute; OSError(ENODATA) when it is not there."""
        path = self.real_path(node)
        value = os.getxattr(path, xattrs.stored(name), follow_symlinks=False)
        return shown_value(self.spec.owners, name, value)

    def listxattr(self, node: Node) -> list[bytes]:
        """Names of the user-visible attributes."""
        return xattrs.visible(os.listxattr(self.real_path(node), follow_symlinks=False))

    def open_real(self, node: Node, flags: int) -> int:
        """Open the real file of a regular node; to write, the caller has copied it up."""
        if node.type != stat.S_IFREG:
            number = errno.EISDIR if node.is_dir else errno.ENXIO
            raise refuse(number, node.name)
        kept = flags & _OPEN_KEPT | os.O_NOFOLLOW | os.O_CLOEXEC
        if node.metacopy:
            return metacopy.open_data(node, kept)
        fd, path = self.where(node)
        handle = os.open(path, kept if node.up else kept | os.O_NOATIME, dir_fd=fd)
        if metacopy.holds_data(handle):
            return handle
        return metacopy.data_handle(self, node, handle, kept)

    def open_lower(self, node: Node) -> int:
        """Open the lower file of a node, also when it was copied up since; for reading."""
        if node.layer is None:
            raise refuse(errno.ESTALE, node.name)
        fd, path = node.layer.at(node.lower_path)
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NOATIME | os.O_CLOEXEC, dir_fd=fd)

    def birth_ns(self, node: Node) -> int | None:
        """When the real file was made, which for a copy is the copy-up; None if nobody knows."""
        return statx(*self.where(node)).birth_ns

    def fsync_dir(self, node: Node) -> None:
        """Make a directory's entries durable; what lies in lower layers is so already."""
        if not node.up:
            return
        fd, path = self.where(node)
        handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC, dir_fd=fd)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)

    def may_be_known(self, node: Node) -> bool:
        """Whether the kernel may hold on to a node, so that its number must stay taken."""
        return node.nlookup > 0 or self.spec.resumed

    def forgotten(self, ino: int) -> None:
        """Let go of what an earlier opening, or a node never known here, kept for a number."""
        if self.spec.resumed and self._work is not None:
            name = b"o%x" % (ino & identity.LOW_MASK)
            node = self.inodes.find(ino)
            if node is not None and node.stash == name:
                self._discard_kept(node, name)
            else:
                self._work.delete_kept(name)

    def released(self, node: Node) -> None:
        """Called by Inodes when the kernel forgot a node: let go of what was kept for it."""
        if isinstance(node, Dir):
            self.handed.close(node.ino)
            self.listings.drop(node)
        if node.stash is not None and node.link is None and self._work is not None:
            self._discard_kept(node, node.stash)

    def _discard_kept(self, node: Node, stash: bytes) -> None:
        """Let go of what was kept for a node: it lives by its names, or not at all."""
        with self.usage.losing(node):
            self.work.delete_kept(stash)
        self.linkable.discard(node.ino)
        if node.parent is not None:
            node.stash = None
            return
        node.stash = GONE
        self.inodes.leave(node)

    def close(self) -> None:
        """Close all descriptors. Nodes of the tree must not be used afterwards. Idempotent."""
        self.usage.close()
        self.inodes.drop(self)
        self.listings.clear()
        shared, self._shared = self._shared, []
        for layer in shared:
            self.inodes.layers.put(layer)
        if self.upper is not None:
            self.upper.close()
        if self._work is not None:
            if self.spec.resumed and self._work.layer.fd >= 0:
                self._work.clean()
            self._work.close()


_LONG_BYTES = 3500
"""Directories with longer paths are reached in steps (layer.py)."""
_NO_NAMES = Index((), 0, identity.Numbers(0).low)


def _lasting(value: bytes | None) -> int | None:
    """The number that a copy keeps; None when it was one for the earlier opening only."""
    low = None if value is None else int(value)
    return low if low is not None and identity.lasts(low) else None


def directory(node: Node) -> Dir:
    """The node as a directory; NotADirectoryError when it is none."""
    if isinstance(node, Dir):
        return node
    raise refuse(errno.ENOTDIR, node.name)


def _root_places(layers: Sequence[Layer]) -> tuple[Place, ...]:
    places = []
    for depth, layer in enumerate(layers):
        value = xattrs.get(layer.proc(b"."), xattrs.OPAQUE)
        places.append(Place(layer, depth, b"", xwhiteouts=value == b"x"))
        if places[-1].is_dot_opaque():
            break
    return tuple(places)
