"""What one operation of the overlay costs in Python and system calls, without FUSE around it.

    python -m bench operations [--directory DIRECTORY]

Prints microseconds per operation on a tree of eight layers, which is made below a directory.
"""

from __future__ import annotations

import contextlib
import gc
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import arguments
from snapfs.overlay import Inodes, Node, Tree, TreeSpec

FILES = 2000
LAYERS = 8


def build(base: Path) -> TreeSpec:
    """Layers that each have the same directory with files of their own."""
    lowers = []
    for number in range(LAYERS):
        directory = base / f"layer{number}" / "usr" / "share" / "dir"
        directory.mkdir(parents=True)
        for index in range(FILES // LAYERS):
            (directory / f"file-{number}-{index:05}").write_bytes(b"x" * 100)
        lowers.append(base / f"layer{number}")
    (base / "upper").mkdir()
    (base / "work").mkdir()
    return TreeSpec(1, tuple(lowers), base / "upper", base / "work")


def measure(label: str, call: Callable[[Any], object], items: Iterable[Any]) -> None:
    """Print the cost of calling `call` once for each item."""
    items = list(items)
    start = time.perf_counter()
    for item in items:
        call(item)
    print(f"{label:<44}{(time.perf_counter() - start) / len(items) * 1e6:8.2f} µs")


def walk(tree: Tree, path: str) -> Node:
    node: Node = tree.root
    for name in path.split("/"):
        node = tree.lookup(node, name.encode())
        tree.inodes.remember(node)
    return node


def run(base: Path) -> None:
    spec = build(base)
    inodes = Inodes()
    tree = Tree(spec, inodes)
    directory = walk(tree, "usr/share/dir")
    names = [b"file-%d-%05d" % (n, i) for n in range(LAYERS) for i in range(FILES // LAYERS)]
    who = {"uid": 0, "gid": 0, "umask": 0o22}

    measure(
        "first lookup in a directory (reads the index)",
        lambda n: tree.lookup(directory, n),
        names[:1],
    )

    def look(name: bytes) -> None:
        node = tree.lookup(directory, name)
        inodes.remember(node)
        tree.getattr(node)

    measure("lookup + remember + getattr, cold", look, names)
    nodes = [tree.lookup(directory, name) for name in names]
    measure("lookup + remember + getattr, known node", look, names)
    measure("getattr", tree.getattr, nodes)
    measure(f"readdir of {FILES} entries", lambda _: tree.readdir(directory), [0])

    def missing(name: bytes) -> None:
        with contextlib.suppress(FileNotFoundError):
            tree.lookup(directory, b"no" + name)

    measure("negative lookup in a lower directory", missing, names)
    measure("open + close, reading", lambda n: os.close(tree.open(n, os.O_RDONLY)), nodes)
    measure("forget", lambda n: inodes.forget(n.ino, n.nlookup), nodes)
    nodes = [tree.lookup(directory, name) for name in names[:500]]
    measure("copy-up of 100 bytes, synced", lambda n: os.close(tree.open(n, os.O_RDWR)), nodes)
    measure("negative lookup in a merged directory", missing, names)
    measure("lookup of an upper file, copied up", lambda n: tree.lookup(directory, n), names[:500])
    work = tree.mkdir(tree.root, b"work", 0o755, **who)
    inodes.remember(work)
    new = [b"new-%05d" % index for index in range(FILES)]

    def create(name: bytes) -> None:
        node, fd = tree.create(work, name, 0o644, os.O_WRONLY, **who)
        inodes.remember(node)
        tree.getattr(node)
        os.close(fd)

    measure("create + getattr + close", create, new)

    def rename(name: bytes) -> None:
        tree.rename(work, name, work, b"r" + name)

    measure("rename in the upper layer", rename, new)

    def unlink(name: bytes) -> None:
        node = tree.lookup(work, name)
        tree.unlink(work, name)
        inodes.forget(node.ino, node.nlookup)

    measure("unlink of a known upper file + forget", unlink, [b"r" + name for name in new])
    measure("unlink of a lower file", lambda n: tree.unlink(directory, n), names[1000:])
    tree.close()


def main() -> None:
    parser = arguments.parser("operations", __doc__)
    parser.add_argument(
        "--directory", type=Path, help="where the tree is made; that for temporary files"
    )
    base = Path(tempfile.mkdtemp(dir=parser.parse_args().directory))
    gc.disable()
    try:
        run(base)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
