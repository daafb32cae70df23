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

from snapfs.overlay import RENAME_EXCHANGE, RENAME_NOREPLACE, acl

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
ACLS = (
    bytes.fromhex("02000000 01000700ffffffff 04000500ffffffff 20000100ffffffff"),
    bytes.fromhex(
        "02000000 01000700ffffffff 02000600e8030000 04000500ffffffff"
        "10000500ffffffff 20000000ffffffff"
    ),
)
"""Default ACLs, without and with a named user."""


class Pick(NamedTuple):
    """A path that is chosen when it is needed, among what is there then."""

    how: str
    index: int
    name: bytes

    def resolve(self, files: Sequence[bytes], dirs: Sequence[bytes]) -> bytes:
        """Choose: an existing path, a name in an existing directory, or just any path."""
        match self.how:
            case "file" if files:
                return files[self.index % len(files)]
            case "dir" if dirs:
                return dirs[self.index % len(dirs)]
            case "new":
                return os.path.join([*dirs, b""][self.index % (len(dirs) + 1)], self.name)
            case _:
                return PATHS[self.index % len(PATHS)]


def picks(*hows: str) -> st.SearchStrategy[Pick]:
    """Paths chosen in one of the ways of Pick.resolve."""
    return st.builds(Pick, st.sampled_from(hows), st.integers(0, 999), st.sampled_from(NAMES))


class Operation(NamedTuple):
    """A method of Files with its arguments; a Pick stands for a path."""

    name: str
    arguments: tuple[Any, ...]
    opens: bool = False
    """The first path is opened or followed: left out unless that leads to a file or directory."""

    def resolve(self, root: Path) -> Operation | None:
        """The operation with paths of the tree at `root`; None when it is to be left out."""
        files, dirs = listing(root)
        arguments = [
            item.resolve(files, dirs) if isinstance(item, Pick) else item for item in self.arguments
        ]
        if self.opens and not may_follow(root, arguments[0]):
            return None
        return self._replace(arguments=tuple(arguments))


def listing(root: Path) -> tuple[list[bytes], list[bytes]]:
    """All paths below `root` in a fixed order: what is no directory, and directories."""
    files: list[bytes] = []
    dirs: list[bytes] = []
    base = os.fsencode(root)
    for top, below, names in os.walk(base):
        below.sort()
        here = top[len(base) + 1 :]
        dirs.extend(os.path.join(here, name) for name in below)
        files.extend(os.path.join(here, name) for name in sorted(names))
    return files, dirs


def _operation(name: str, *arguments: Any, opens: bool = False) -> Operation:
    return Operation(name, arguments, opens)


def operations() -> st.SearchStrategy[Operation]:
    """One operation, mostly one that can succeed, on few names so that operations meet."""
    file, new = picks("file", "file", "file", "dir", "any"), picks("new", "new", "new", "any")
    anything = picks("file", "dir", "any")
    directory = picks("dir", "dir", "dir", "file", "any")
    mode = st.sampled_from((0o644, 0o600, 0o755, 0o4755, 0o2755, 0o1777, 0o2775))
    content = st.binary(max_size=12)
    name = st.sampled_from(XATTRS)
    exchange = st.just(RENAME_EXCHANGE)
    owner = st.sampled_from((0, 1, 1000))
    size = st.sampled_from((0, 3, 4096, 9000))
    # The kernel refuses 0:0 devices, which we take.
    devices = st.sampled_from(((stat.S_IFIFO | 0o640, 0), (stat.S_IFCHR | 0o600, 0x103)))

    def op(name: str, *arguments: st.SearchStrategy[Any], opens: bool = False) -> Any:
        return st.builds(_operation, st.just(name), *arguments, opens=st.just(opens))

    moves = [
        op("rename", anything, new, st.sampled_from((0, 0, RENAME_NOREPLACE))),
        op("rename", directory, new, st.just(0)),
        op("rename", directory, directory, st.just(0)),
        op("rename", file, file, st.just(0)),
        op("rename", anything, anything, exchange),
    ]
    return st.one_of(
        op("create", new, mode, content),
        op("mkdir", new, mode),
        op("mkdir", new, mode),
        st.builds(lambda p, d: _operation("mknod", p, *d), new, devices),
        op("symlink", content.map(lambda c: c.hex().encode() or b"x"), new),
        op("link", file, new),
        op("unlink", file),
        op("unlink", file),
        op("rmdir", directory),
        *moves,
        *moves,
        op("write", file, size, content, opens=True),
        op("rewrite", file, content, opens=True),
        op("truncate", file, size, opens=True),
        op("chmod", anything, mode, opens=True),
        op("chown", anything, owner, owner),
        op("utime", anything, st.just(OLD_NS + 5), st.just(OLD_NS + 7)),
        op("setxattr", anything, name, content, st.sampled_from((0, 0, 1, 2))),
        op("setxattr", directory, st.just(acl.DEFAULT), st.sampled_from(ACLS), st.just(0)),
        op("removexattr", anything, name),
    )


def programs(min_size: int = 0, max_size: int = 15) -> st.SearchStrategy[list[Operation]]:
    """Operations in a row."""
    return st.lists(operations(), min_size=min_size, max_size=max_size)


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
                resolved = operation.resolve(root)
                if resolved is not None:
                    apply(files, resolved)
        age(layer)
        layers.insert(0, layer)
    return layers


def age(layer: Path) -> None:
    """Give everything in a layer old times, so that a time that should not change shows it."""
    for top, dirs, names in os.walk(layer, topdown=False):
        for name in (*names, *dirs):
            os.utime(os.path.join(top, name), ns=(OLD_NS, OLD_NS), follow_symlinks=False)
    os.utime(layer, ns=(OLD_NS, OLD_NS))
