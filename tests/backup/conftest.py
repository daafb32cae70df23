"""A root with a chain of layers, an active snapshot, an image's blob and volumes."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs import tables
from snapfs.metadata import Context, Metadata
from snapfs.model import Committed
from snapfs.overlay import LayerCopy, has_changed
from snapfs.snapshots import NoTrees, Snapshotter
from snapfs.volumes import Volumes
from tests.support.daemon import eventually


class Root:
    """A root that is open, and what is written in it in a few lines."""

    def __init__(self, path: Path, *, seals: bool = True) -> None:
        self.path, self._seals = path, seals
        self.snapshotter = Snapshotter(
            path, trees=NoTrees(), tables=tables.TABLES, copier=LayerCopy, seals=seals
        )
        self.metadata = Metadata(
            self.snapshotter.store, path / "content", {"snapfs": self.snapshotter}
        )
        self.volumes = Volumes(self.snapshotter, path.parent / "mounts", changed=has_changed)

    def upper(self, key: str) -> Path:
        return self.path / "layers" / str(self.snapshotter.stat(key).id) / "fs"

    def commit(self, name: str, parent: str = "", data: bytes = b"data") -> Path:
        """Commit a layer with one of everything, sealed; return its directory."""
        self.snapshotter.prepare(f"{name}-key", parent)
        upper = self.upper(f"{name}-key")
        (upper / "etc" / "deep").mkdir(parents=True)
        (upper / "etc" / "file").write_bytes(data)
        os.link(upper / "etc" / "file", upper / "other")
        (upper / "link").symlink_to("etc/file")
        os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
        os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
        os.lchown(upper / "link", 1000, 1000)
        (upper / "etc" / "file").chmod(0o4750)
        with (upper / "sparse").open("wb") as file:
            file.truncate(10 << 20)
            file.seek(5 << 20)
            file.write(data)
        self.snapshotter.commit(f"{name}-key", name)
        if self._seals:
            eventually(lambda: self._digest(name), timeout_s=90, what="the digest of a layer")
        return upper

    def _digest(self, name: str) -> bytes:
        found = self.snapshotter.stat(name)
        assert isinstance(found, Committed)
        return found.digest

    def write_blob(self, data: bytes) -> str:
        """Write content; return its digest."""
        writer = self.metadata.content.writer(Context("default"), "ref")
        writer.write(data)
        return writer.commit().digest

    def close(self) -> None:
        self.metadata.close()
        self.snapshotter.close()


@pytest.fixture
def root(tmp_path: Path) -> Iterator[Root]:
    made = Root(tmp_path / "root")
    yield made
    made.close()
