"""Layers written down: a dictionary of paths makes a directory."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from .operations import OLD_NS


@dataclass(frozen=True)
class Dir:
    """A directory, with on-disk attributes."""

    mode: int = 0o755
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class File:
    """A regular file."""

    content: bytes = b""
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    xattrs: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class Link:
    """A symbolic link."""

    target: str


@dataclass(frozen=True)
class Same:
    """Another name of the file at an earlier path."""

    path: str


WHITEOUT = object()
OPAQUE = Dir(xattrs={"trusted.overlay.opaque": b"y"})


def redirect(target: bytes) -> Dir:
    """A directory whose lower part is elsewhere."""
    return Dir(xattrs={"trusted.overlay.redirect": target})


def make_layer(root: Path, content: Mapping[str, object]) -> Path:
    """Make what `content` says below `root`, with old times and directories on the way."""
    root.mkdir(parents=True, exist_ok=True)
    for name, what in content.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        _make(root, path, what)
    for top, dirs, names in os.walk(root, topdown=False):
        for entry in (*names, *dirs):
            os.utime(os.path.join(top, entry), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(root, ns=(OLD_NS, OLD_NS))
    return root


def _make(root: Path, path: Path, what: object) -> None:
    match what:
        case bytes():
            path.write_bytes(what)
        case Dir():
            path.mkdir(exist_ok=True)
            _dress(path, what)
        case File():
            path.write_bytes(what.content)
            _dress(path, what)
        case Link():
            path.symlink_to(what.target)
        case Same():
            os.link(root / what.path, path)
        case _ if what is WHITEOUT:
            os.mknod(path, stat.S_IFCHR, 0)
        case _:
            raise ValueError(f"cannot make {what!r}")


def _dress(path: Path, what: Dir | File) -> None:
    os.chown(path, what.uid, what.gid)
    path.chmod(what.mode)
    for name, value in what.xattrs.items():
        os.setxattr(path, name, value)
