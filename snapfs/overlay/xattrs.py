"""Names of extended attributes: which are the overlay's own, and how a user's are stored.

The overlay's own `trusted.overlay.*` are never seen through a tree. A user's attribute of such a
name is stored escaped as `trusted.overlay.overlay.*` (overlayfs.rst, nesting overlayfs mounts).
"""

from __future__ import annotations

import errno
import os

OPAQUE = b"trusted.overlay.opaque"
REDIRECT = b"trusted.overlay.redirect"
WHITEOUT = b"trusted.overlay.whiteout"
METACOPY = b"trusted.overlay.metacopy"
"""On a file: it is a copy of metadata only, and its data is below (empty, as overlayfs has it)."""
METACOPIES = b"trusted.overlay.snapfs.metacopies"
"""On an upper layer's root: something in it may carry METACOPY."""
IMPURE = b"trusted.overlay.snapfs.impure"
"""On an upper directory: a child may carry INO or be a redirected directory."""
INO = b"trusted.overlay.snapfs.ino"
"""On a copied-up file: low part of its inode number (identity.py), decimal."""
PENDING = b"trusted.overlay.snapfs.pending"
"""On a copied-up hard link: how many names are still found in the lower layers, decimal."""

DEVICE = b"trusted.overlay.snapfs.device"
"""On a character device: it stands for a user's of this number (devices.py)."""

PROTATTR = b"trusted.overlay.protattr"
"""On a file: `i` and `a` for what chattr(1) calls so (protection.py)."""
PROTECTED = b"trusted.overlay.snapfs.protected"
"""On a layer's root: something in it carries PROTATTR."""

_OWN = b"trusted.overlay."
_ESCAPED = b"trusted.overlay.overlay."
_ABSENT = (errno.ENODATA, errno.EOPNOTSUPP)


def stored(name: bytes) -> bytes:
    """The name under which a user's attribute is kept on disk."""
    return _ESCAPED + name[len(_OWN) :] if name.startswith(_OWN) else name


def is_own(name: bytes) -> bool:
    """Whether an on-disk name is the overlay's and no user's."""
    return name.startswith(_OWN) and not name.startswith(_ESCAPED)


def visible(names: list[str]) -> list[bytes]:
    """The users' names among on-disk names."""
    result = []
    for text in names:
        name = os.fsencode(text)
        if not name.startswith(_OWN):
            result.append(name)
        elif name.startswith(_ESCAPED):
            result.append(_OWN + name[len(_ESCAPED) :])
    return result


def get(path: bytes, name: bytes) -> bytes | None:
    """Read an attribute of `path` itself; None when it has none."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return None
        raise


def own(path: bytes) -> frozenset[bytes]:
    """Names of the overlay's own attributes on `path`; one system call, mostly an empty answer."""
    try:
        names = os.listxattr(path, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return _NOTHING
        raise
    if not names:
        return _NOTHING
    return frozenset(name for name in map(os.fsencode, names) if is_own(name))


_NOTHING: frozenset[bytes] = frozenset()


def put(path: bytes, name: bytes, value: bytes) -> None:
    """Set one of the overlay's own attributes."""
    os.setxattr(path, name, value, follow_symlinks=False)


def drop(path: bytes, name: bytes) -> None:
    """Remove an attribute; it is no error when there is none."""
    try:
        os.removexattr(path, name, follow_symlinks=False)
    except OSError as error:
        if error.errno not in _ABSENT:
            raise


def copy(source: bytes, target: bytes) -> None:
    """Copy all of a user's attributes between two real files.

    What the target's file system cannot hold is left out unless access rights hang on it
    (security.*, ACLs), as overlayfs does.
    """
    try:
        names = os.listxattr(source, follow_symlinks=False)
    except OSError as error:
        if error.errno in _ABSENT:
            return
        raise
    for name in map(os.fsencode, names):
        if not is_own(name):
            _copy_one(source, target, name)


def _copy_one(source: bytes, target: bytes, name: bytes) -> None:
    value = get(source, name)
    if value is None:
        return
    try:
        os.setxattr(target, name, value, follow_symlinks=False)
    except OSError as error:
        needed = name.startswith((b"security.", b"system.posix_acl_"))
        if needed or error.errno != errno.EOPNOTSUPP:
            raise
