"""Two roots and what goes between them."""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from snapfs.model import Committed
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.transfer import Packed, Sink, Source, Stock


class Root:
    """A root whose layers are written directly."""

    def __init__(self, path: Path) -> None:
        self.snapshotter = Snapshotter(path, trees=NoTrees())
        self.stock = Stock(self.snapshotter)
        self.source = Source(self.stock)
        self.sink = Sink(self.stock)

    def commit(self, name: str, parent: str, write: Callable[[Path], None]) -> Committed:
        """Commit a layer that `write` fills."""
        self.snapshotter.prepare(f"extract-{name}", parent)
        identity = self.snapshotter.stat(f"extract-{name}").id
        write(self.stock.directories.upper(identity))
        return self.snapshotter.commit(f"extract-{name}", name)

    def layer(self, name: str) -> Path:
        return self.snapshotter.layers(name)[0]

    def close(self) -> None:
        problems = self.snapshotter.fsck().problems
        self.snapshotter.close()
        assert problems == ()


def send(
    source: Root, sink: Root, name: str, parent: str = "", taken: Callable[[Packed], None] = id
) -> int:
    """Send a layer from one root to another; return the bytes that went over."""
    offer = source.source.offer(name)
    sent = 0
    with sink.sink.receive(name, parent, offer) as landing:
        if landing is None:
            return 0
        parts = list(source.source.manifest(name))
        sent += sum(map(len, parts))
        for packed in source.source.chunks(name, landing.take_manifest(parts)):
            taken(packed)
            sent += len(packed.data) + len(packed.digest)
            landing.put(packed)
        landing.finish()
    return sent


def everything(layer: Path) -> None:
    """Fill a layer with one of each that a layer can hold."""
    (layer / "dir" / "inner").mkdir(parents=True)
    big = layer / "dir" / "big"
    big.write_bytes(os.urandom(700_000))
    os.link(big, layer / "second-name")
    (layer / "dir" / "empty").write_bytes(b"")
    with (layer / "sparse").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(20 << 20)
        file.write(b"in the middle")
    os.symlink("/somewhere/else", layer / "dir" / "symlink")
    os.mknod(layer / "whiteout", stat.S_IFCHR, 0)
    os.mknod(layer / "device", stat.S_IFBLK | 0o640, os.makedev(7, 3))
    os.mkfifo(layer / "fifo", 0o600)
    os.mknod(layer / "socket", stat.S_IFSOCK | 0o755)
    os.setxattr(layer / "dir", "trusted.overlay.opaque", b"y")
    os.setxattr(layer / "dir" / "inner", "trusted.overlay.redirect", b"other")
    os.setxattr(big, "user.words", b"of the user")
    os.setxattr(layer / "dir" / "symlink", "trusted.on-a-link", b"1", follow_symlinks=False)
    os.setxattr(big, "trusted.overlay.snapfs.ino", b"12345")
    os.chown(big, 1000, 1001)
    os.chmod(big, 0o6755)
    (layer / os.fsdecode(b"no\xffutf8")).write_bytes(b"x")
    os.chmod(layer / "dir" / "inner", 0o1777)
    os.chown(layer, 5, 6)
    os.utime(layer / "dir", ns=(5, 1_234_567_890_123_456_789))
    os.utime(layer / "dir" / "symlink", ns=(5, -1_500_000_000), follow_symlinks=False)


def seen(layer: Path) -> dict[bytes, Any]:
    """Return all that is to arrive of a layer, found by other means than ours."""
    return dict(_seen(layer))


def _seen(layer: Path) -> Iterator[tuple[bytes, Any]]:
    top = os.fsencode(layer)
    first: dict[int, bytes] = {}
    for directory, names, files in os.walk(top):
        for name in (b".", *names, *files):
            if name == b"." and directory != top:
                continue
            path = os.path.join(directory, name)
            found = os.lstat(path)
            xattrs = {
                key: os.getxattr(path, key, follow_symlinks=False)
                for key in os.listxattr(path, follow_symlinks=False)
                if key != "trusted.overlay.snapfs.ino"
            }
            data: object = None
            if stat.S_ISREG(found.st_mode):
                with open(path, "rb") as file:
                    data = hashlib.file_digest(file, "sha256").hexdigest(), found.st_nlink
            elif stat.S_ISLNK(found.st_mode):
                data = os.readlink(path)
            same = first.setdefault(found.st_ino, path)
            yield (
                os.path.relpath(path, top),
                (
                    found.st_mode,
                    found.st_uid,
                    found.st_gid,
                    found.st_mtime_ns,
                    found.st_rdev,
                    os.path.relpath(same, top),
                    xattrs,
                    data,
                ),
            )
