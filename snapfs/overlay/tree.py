"""Tree: the overlay's front. Rules live in the modules it calls."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Generator, Iterator, Sequence

from . import (
    copyup,
    create,
    fileflags,
    found,
    metacopying,
    modify,
    remove,
    renames,
    settle,
    tmpfiles,
)
from .copyup import CopyUp
from .core import MergedTree, directory
from .filecalls import ExtendedFlags
from .layer import refuse
from .node import Dir, Node
from .owners import stored_change, stored_value
from .syscalls import RENAME_WHITEOUT
from .types import SetAttr
from .usage import Before


class Tree(MergedTree):
    """A merged tree that can be read and, with an upper layer, changed.

    Not thread-safe: all methods belong to one thread; only CopyUp.run() may run elsewhere. Every
    change first copies up what it needs. On a view, or once `readonly` is set, each change raises
    EROFS.
    """

    def _writable(self, name: bytes = b"") -> None:
        if self.readonly or self.upper is None:
            raise refuse(errno.EROFS, name)

    def _takes_names(self, parent: Node, name: bytes) -> None:
        self._writable(name)
        fileflags.check_create(self, parent)

    def _changeable(self, node: Node) -> None:
        self._writable(node.name)
        fileflags.check_change(self, node)

    def _owner(self, uid: int, gid: int, umask: int = 0) -> create.Owner:
        """Who makes an entry, as stored."""
        owners = self.spec.owners
        if owners is not None:
            uid, gid = owners.stored_uid(uid), owners.stored_gid(gid)
        return create.Owner(uid, gid, umask)

    def _names_of(self, parent: Node) -> Dir:
        """A directory whose names are about to change: the one place where listings go stale."""
        here = directory(parent)
        here.changes += 1
        return here

    # Entries

    def create(
        self, parent: Node, name: bytes, mode: int, flags: int, *, uid: int, gid: int, umask: int
    ) -> tuple[Node, int]:
        """Make a regular file; returns its node and a descriptor with `flags`' access mode."""
        self._takes_names(parent, name)
        owner = self._owner(uid, gid, umask)
        return create.create(self, self._names_of(parent), name, mode, flags, owner)

    def note_change(self, node: Node, before: Before) -> None:
        """Say that attributes or names of an upper file were changed past the tree; it was
        `before` that."""
        self.usage.note(node, before)
        if isinstance(node, Dir):
            node.inherits = None
            self._names_of(node)

    def take_in(self, parent: Node, name: bytes, ino: int, kind: int, real_ino: int) -> Node:
        """Return the node of what was made past the tree, as `create` makes it in a directory of
        the upper layer that has no rules for it: node's number, type, and its real inode number.

        It need not be there any more, if it was removed past the tree too (`take_out`).
        """
        return create.take_in(self, self._names_of(parent), name, ino, kind, real_ino)

    def take_up(
        self, parent: Node, name: bytes, ino: int, kind: int, real_ino: int, *, has_data: bool
    ) -> Node:
        """Return the node of a file that was handed out without one, or of a directory, of which a
        copy was made past the tree, of a file with its data or without: its number, type, and the
        copy's real inode number.

        What became of names in a directory since need not be told.
        """
        here = directory(parent)
        if not has_data:
            metacopying.note_left(self, here)
        node = copyup.take_up(self, here, name, ino, kind, real_ino, has_data=has_data)
        if isinstance(node, Dir):
            self._names_of(node)
        return node

    @property
    def leaves_data(self) -> bool:
        """Whether files may be copied up past the tree as `leave_data` does: it is on, and was done
        before."""
        return self.makes_metacopies and self.has_metacopies

    def take_out(self, parent: Node, name: bytes, node: Node, before: Before) -> None:
        """Book what `unlink` does with a file of the upper layer that has one name, or another one
        that is known, or `rmdir` with an empty directory of that alone, for one that was removed
        past the tree; it was `before` that."""
        self.usage.note(node, before)
        further = not node.is_dir and before.st_nlink > 1
        remove.take_out(self, node, self._names_of(parent), name, further=further)
        if not further and not node.is_dir:
            self.work.expect(before.st_blocks)

    def take_away(self, parent: Node, name: bytes, node: Node) -> None:
        """Book what `unlink` does with a lower file of one name, for a name that got a whiteout
        past the tree. Of a file without a node there is nothing to book but a changed directory.
        """
        node.drop_name(self._names_of(parent), name)

    def end(self, parent: Node, name: bytes, node: Node, before: Before) -> bool:
        """As `take_out`, for a file that the kernel has forgotten since; False when nothing was
        done: there is more to it."""
        return remove.end(self, node, self._names_of(parent), name, before)

    def take_over(self, parent: Node, name: bytes, node: Node) -> None:
        """Book what `rename` does with a file of the upper layer that has one name, for one that
        was moved to a free name past the tree."""
        renames.take_over(node, self._names_of(parent), name)

    def take_further(self, parent: Node, name: bytes, node: Node) -> None:
        """Book what `link` does with a file of the upper layer that is not the copy of a lower one,
        for a name that was made past the tree."""
        node.add_name(self._names_of(parent), name)

    def tmpfile(
        self, parent: Node, mode: int, flags: int, *, uid: int, gid: int, umask: int
    ) -> tuple[Node, int]:
        """Make a regular file without a name, which `link` may give one; as create otherwise.

        It goes when it is forgotten: the caller remembers it at once.
        """
        self._writable()
        fileflags.check_create(self, parent)
        owner = self._owner(uid, gid, umask)
        return tmpfiles.tmpfile(self, directory(parent), mode, flags, owner)

    def mknod(
        self, parent: Node, name: bytes, mode: int, rdev: int, *, uid: int, gid: int, umask: int
    ) -> Node:
        """Make a device, fifo, socket or empty file of type and permissions `mode`."""
        self._takes_names(parent, name)
        owner = self._owner(uid, gid, umask)
        return create.mknod(self, self._names_of(parent), name, mode, rdev, owner)

    def mkdir(
        self, parent: Node, name: bytes, mode: int, *, uid: int, gid: int, umask: int
    ) -> Node:
        """Make a directory."""
        self._takes_names(parent, name)
        return create.mkdir(self, self._names_of(parent), name, mode, self._owner(uid, gid, umask))

    def symlink(self, parent: Node, name: bytes, target: bytes, *, uid: int, gid: int) -> Node:
        """Make a symbolic link to `target`."""
        self._takes_names(parent, name)
        owner = self._owner(uid, gid)
        return create.symlink(self, self._names_of(parent), name, target, owner)

    def link(self, node: Node, parent: Node, name: bytes) -> None:
        """Give a file that is no directory another name."""
        self._takes_names(parent, name)
        fileflags.check_change(self, node)
        if node.metacopy:
            copyup.copy_up(self, node)
        if node.ino in self.linkable:
            tmpfiles.link_first(self, node, self._names_of(parent), name)
        else:
            create.link(self, node, self._names_of(parent), name)

    def unlink(self, parent: Node, name: bytes) -> None:
        """Remove a name that is no directory's; a node still known stays usable until forgotten."""
        self._writable(name)
        fileflags.check_remove(self, parent, name)
        remove.unlink(self, self._names_of(parent), name)

    def rmdir(self, parent: Node, name: bytes) -> None:
        """Remove a directory that shows no entries."""
        self._writable(name)
        fileflags.check_remove(self, parent, name)
        remove.rmdir(self, self._names_of(parent), name)

    def rename(
        self,
        parent: Node,
        name: bytes,
        new_parent: Node,
        new_name: bytes,
        flags: int = 0,
        *,
        uid: int = 0,
        gid: int = 0,
    ) -> None:
        """Move a name; flags are those of renameat2(2).

        RENAME_WHITEOUT leaves a 0:0 device of owner `uid`, `gid` at the old name, which is what an
        overlayfs mounted inside the tree wants: it hides nothing here.
        """
        self._writable(name)
        fileflags.check_rename(self, (parent, name), (new_parent, new_name))
        old, new = (
            renames.Spot(self._names_of(parent), name),
            renames.Spot(self._names_of(new_parent), new_name),
        )
        owner = self._owner(uid, gid) if flags & RENAME_WHITEOUT else create.Owner(0, 0, 0)
        renames.rename(self, old, new, flags, owner)

    # Nodes

    def setattr(self, node: Node, change: SetAttr, fd: int | None = None) -> None:
        """Change attributes; `fd`, open for writing, spares an open when the size changes."""
        self._writable(node.name)
        fileflags.check_setattr(self, node, change)
        modify.setattr(self, node, stored_change(self.spec.owners, change), fd)

    def setxattr(self, node: Node, name: bytes, value: bytes, flags: int = 0) -> None:
        """Set an extended attribute (flags: os.XATTR_CREATE, os.XATTR_REPLACE)."""
        self._changeable(node)
        value = stored_value(self.spec.owners, name, value)
        modify.setxattr(self, node, name, value, flags)

    def removexattr(self, node: Node, name: bytes) -> None:
        """Remove an extended attribute."""
        self._changeable(node)
        modify.removexattr(self, node, name)

    def check_open(self, node: Node, flags: int) -> None:
        """Refuse with EPERM to open a protected file for writing; O_APPEND is a part of `flags`."""
        fileflags.check_open(self, node, flags)

    def only_grows(self, node: Node) -> bool:
        """Whether a file is append-only, which has to be seen to after its open too."""
        return fileflags.only_grows(self, node)

    def open(self, node: Node, flags: int) -> int:
        """Open a regular file; for writing it is copied up first, without its data for O_TRUNC.

        Of `flags`, only access mode, O_TRUNC, O_SYNC, O_DSYNC and O_NOATIME reach the real file.
        """
        if _writes(flags):
            self._writable(node.name)
            fileflags.check_open(self, node, flags)
            if node.type == stat.S_IFREG:
                copyup.copy_up(self, node, data=not flags & os.O_TRUNC)
                self.usage.note(node)
        return self.open_real(node, flags)

    def prepare_fallocate(self, node: Node, mode: int) -> None:
        """To be called before fallocate(2) on a descriptor of a node, with its `mode`."""
        self._writable(node.name)
        fileflags.check_fallocate(self, node, mode)
        self.usage.note(node)

    # Inode flags; the caller knows that whoever asks may set them

    def getflags(self, node: Node) -> int:
        """Return a file's or directory's FS_*_FL, or raise OSError(ENOTTY)."""
        return fileflags.get(self, node)

    def setflags(self, node: Node, flags: int) -> None:
        """Set FS_*_FL; OSError(EOPNOTSUPP) for those that would change what names mean."""
        self._writable(node.name)
        fileflags.put(self, node, flags)

    def getfields(self, node: Node) -> ExtendedFlags:
        """Return what FS_IOC_FSGETXATTR says of a file or directory."""
        return fileflags.get_fields(self, node)

    def setfields(self, node: Node, wanted: ExtendedFlags) -> None:
        """Do FS_IOC_FSSETXATTR; OSError(EOPNOTSUPP) for a change of the project."""
        self._writable(node.name)
        fileflags.put_fields(self, node, wanted)

    # What an earlier process knew

    def names_by_number(self, parent: Node) -> dict[int, bytes]:
        """Return each number that is in a directory, with a name of it."""
        return found.names_by_number(self, directory(parent))

    def nameless(self, ino: int, parent: Node | None, *, moved: bool = False) -> Node | None:
        """Make the node of what was removed while it was in use; None when nothing is left of it.

        `parent` is the directory where it had its name, if that is known; with `moved` it may have
        one elsewhere.
        """
        return found.nameless(self, ino, parent if isinstance(parent, Dir) else None, moved=moved)

    def kept_numbers(self) -> list[int]:
        """Return the numbers of removed files that are kept because somebody may use them."""
        return found.kept_numbers(self)

    def needs_freed(self) -> bool:
        """Whether the upper layer's file system may lack what it is about to get back of removed
        files of the lane's trees."""
        return self.upper is not None and self.inodes.freeing.may_be_needed(self.upper.fd)

    def hides(self, parent: Node, name: bytes) -> bool:
        """Whether the lower layers have something under a name, to be hidden when the name goes."""
        return isinstance(parent, Dir) and self.lower_entry(parent, name) is not None

    # Copy-up in steps

    def needs_copy_up(self, node: Node, flags: int = os.O_RDWR) -> bool:
        """Whether an open with `flags` (or a change of the node) copies a lower file up, or the
        data of a metadata-only copy."""
        return not node.up and not node.is_dir and _writes(flags)

    def start_copy_up(self, node: Node, *, data: bool = True) -> CopyUp:
        """Begin a copy-up; `run` the job in any thread, then finish or abort it here."""
        self._writable(node.name)
        return CopyUp(self, node, data=data)

    def finish_copy_up(self, job: CopyUp) -> None:
        """Publish a job that ran. When this fails nothing has changed; the job is cleaned up."""
        copyup.finish_or_discard(self, job)

    def abort_copy_up(self, job: CopyUp) -> None:
        """Clean up a job that failed or is not wanted, and that does not run any more."""
        copyup.abort(self, job)

    def leave_data(self, node: Node) -> bool:
        """Copy a lower file up without its data, for a change of attributes; False when it has to
        be copied whole."""
        self._writable(node.name)
        return metacopying.leave_data(self, node)

    def note_left(self, parent: Node) -> None:
        """Have `metacopies` look into a directory again."""
        metacopying.note_left(self, directory(parent))

    def metacopies(self) -> Generator[Sequence[Node]]:
        """Go through the files that have been copied up without their data, for the caller to
        complete them, a few or none at each step; free when there never were any. To be closed.

        When nothing else is changed meanwhile there are no more at the end, which `all_complete`
        notes once their names are durable. Reading may go on.
        """
        return metacopying.metacopies(self)

    def all_complete(self) -> None:
        """Note that no file without its data is left in the upper layer."""
        metacopying.all_complete(self)

    def start_completion(self, nodes: Sequence[Node]) -> metacopying.Completion:
        """Begin to complete such files: `run` it in any thread, then finish its jobs here as those
        of copy-ups, and `end` it in any case."""
        return metacopying.Completion(self, nodes)

    # Whole tree

    def settle(self) -> None:
        """Make the upper layer self-contained before it is committed; works on a read-only tree
        too.

        Names of copied-up hard links that only the lower layers have are put into the upper layer,
        and data that was left below. Free when there are none; otherwise it walks the directories
        of the tree.
        """
        for _ in self.settling():
            pass
        metacopying.complete(self)

    def settling(self) -> Iterator[None]:
        """As settle, for the names, a directory at each step; `metacopies` is left to do. Nothing
        may be changed meanwhile; reading may go on.

        What was not walked to its end has changed nothing that is visible.
        """
        return iter(()) if self.upper is None else settle.steps(self)


def _writes(flags: int) -> bool:
    return bool(flags & os.O_ACCMODE != os.O_RDONLY or flags & os.O_TRUNC)
