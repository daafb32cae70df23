"""Random file operations as plain data: drawn once, applied to any number of trees."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from hypothesis import strategies as st

from snapfs.overlay import RENAME_EXCHANGE, RENAME_NOREPLACE

from .files import Files, OnMount
from .kernel import overlay

NAMES = (b"a", b"b", b"c")
PATHS = tuple(
    b"/".join(parts)
    for parts in [
        *((x,) for x in NAMES),
        *((x, y) for x in NAMES for y in NAMES),
        *((x, y, z) for x in NAMES for y in NAMES for z in NAMES),
    ]
)
XATTRS = (b"user.one", b"trusted.two", b"trusted.overlay.opaque", b"security.three")
OLD_NS = 1_000_000_000 * 10**9


class Operation(NamedTuple):
    """A method of Files with its arguments."""

    name: str
    arguments: tuple[Any, ...]
    opens: bytes | None = None
    """Path that the operation would open or follow: left out unless it is a file or a directory."""


def _operation(name: str, *arguments: Any, opens: bool = False) -> Operation:
    return Operation(name, arguments, arguments[0] if opens else None)


def operations() -> st.SearchStrategy[Operation]:
    """One operation on a small set of paths, so that operations meet."""
    path = st.sampled_from(PATHS)
    mode = st.sampled_from((0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o2775))
    content = st.binary(max_size=12)
    xattr = st.sampled_from(XATTRS)
    flags = st.sampled_from((0, 0, 0, RENAME_NOREPLACE, RENAME_EXCHANGE, RENAME_EXCHANGE))
    owner = st.sampled_from((-1, 0, 1, 1000))
    build = st.builds
    op = st.just
    devices = st.sampled_from(
        ((stat.S_IFIFO | 0o640, 0), (stat.S_IFCHR | 0o600, 0), (stat.S_IFCHR | 0o600, 0x103))
    )
    return st.one_of(
        build(_operation, op("create"), path, mode, content),
        build(_operation, op("mkdir"), path, mode),
        build(_operation, op("mkdir"), path, mode),
        build(lambda p, d: _operation("mknod", p, *d), path, devices),
        build(_operation, op("symlink"), content.map(lambda c: c.hex().encode() or b"x"), path),
        build(_operation, op("link"), path, path),
        build(_operation, op("unlink"), path),
        build(_operation, op("rmdir"), path),
        build(_operation, op("rename"), path, path, flags),
        build(_operation, op("rename"), path, path, flags),
        build(_operation, op("rename"), path, path, flags),
        build(_operation, op("write"), path, st.integers(0, 9000), content, opens=op(True)),
        build(_operation, op("rewrite"), path, content, opens=op(True)),
        build(_operation, op("truncate"), path, st.integers(0, 9000), opens=op(True)),
        build(_operation, op("chmod"), path, mode, opens=op(True)),
        build(_operation, op("chown"), path, owner.filter(lambda x: x >= 0), owner.map(abs)),
        build(lambda p: _operation("utime", p, OLD_NS + 5, OLD_NS + 7), path),
        build(_operation, op("setxattr"), path, xattr, content, st.sampled_from((0, 1, 2))),
        build(_operation, op("removexattr"), path, xattr),
    )


def programs(max_size: int = 12) -> st.SearchStrategy[list[Operation]]:
    """Operations in a row."""
    return st.lists(operations(), max_size=max_size)


def outcome(call: Callable[[], object]) -> str:
    """What came of an operation: `ok`, or the name of its errno."""
    try:
        call()
    except OSError as error:
        return errno.errorcode.get(error.errno or 0, str(error))
    return "ok"


def may_follow(root: Path, path: bytes) -> bool:
    """Whether opening a path ends at a file, a directory or nothing, in every tree alike."""
    try:
        kind = stat.S_IFMT(os.lstat(os.path.join(os.fsencode(root), path)).st_mode)
    except OSError:
        return True
    return kind in (stat.S_IFREG, stat.S_IFDIR)


def apply(files: Files, operation: Operation) -> str:
    """Apply an operation and say what came of it."""
    return outcome(lambda: getattr(files, operation.name)(*operation.arguments))


SEED = (
    _operation("mkdir", b"a", 0o755),
    _operation("mkdir", b"a/b", 0o755),
    _operation("mkdir", b"b", 0o700),
    _operation("create", b"a/a", 0o644, b"seed a/a"),
    _operation("create", b"a/b/c", 0o600, b"seed a/b/c"),
    _operation("create", b"b/a", 0o644, b"seed b/a"),
    _operation("link", b"b/a", b"b/c"),
    _operation("link", b"b/a", b"a/b/a"),
    _operation("symlink", b"target", b"c"),
)


def build_layers(base: Path, layered: Sequence[Iterable[Operation]]) -> list[Path]:
    """Make a layer of each program with kernel overlayfs, on those before; topmost first."""
    layers: list[Path] = []
    for number, program in enumerate(layered):
        layer = base / f"layer{number}"
        layer.mkdir()
        with ExitStack() as stack:
            root = layer
            if layers:
                work = base / f"work{number}"
                root = stack.enter_context(overlay(base / "build", layers, layer, work))
            files = OnMount(root)
            for operation in program:
                if operation.opens is None or may_follow(root, operation.opens):
                    apply(files, operation)
        age(layer)
        layers.insert(0, layer)
    return layers


def age(layer: Path) -> None:
    """Give everything in a layer old times, so that a time that should not change shows it."""
    for top, dirs, names in os.walk(layer, topdown=False):
        for name in (*names, *dirs):
            os.utime(os.path.join(top, name), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(layer, ns=(OLD_NS, OLD_NS))
