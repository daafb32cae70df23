"""Layer directories: where they are, how one is made, found and made durable.

    <root>/layers/<id>/fs     an active or committed snapshot's own files, as overlayfs has them
    <root>/layers/<id>/work   same file system: temporary files of copy-up
    <root>/layers/<id>/seal   of a committed one that was sealed: what is in it
    <root>/empty              an empty directory, lower layer of what has no parent

A view has no directory: it owns no files. Raises OSError; the callers say what it means.
"""

from __future__ import annotations

import itertools
import os
import stat
from collections.abc import Iterable
from contextlib import suppress
from pathlib import Path

from snapfs.model import SnapshotId
from snapfs.seals import SEAL

ROOT_MODE = 0o755
WORK_MODE = 0o711
PRIVATE_MODE = 0o700


class LayerDirectories:
    """The layer directories of one root."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.path = root / "layers"
        self.empty = root / "empty"

    def establish(self) -> None:
        """Make what every root has; durable on return."""
        self.root.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        self.path.mkdir(mode=PRIVATE_MODE, exist_ok=True)
        self.empty.mkdir(mode=ROOT_MODE, exist_ok=True)
        sync_directory(self.root)

    def check_writable(self) -> None:
        """Raise when the file system takes no changes at all (EROFS, EIO); a full one does."""
        os.utime(self.path)

    def directory(self, snapshot_id: SnapshotId | int) -> Path:
        return self.path / str(snapshot_id)

    def upper(self, snapshot_id: SnapshotId | int) -> Path:
        return self.path / str(snapshot_id) / "fs"

    def work(self, snapshot_id: SnapshotId | int) -> Path:
        return self.path / str(snapshot_id) / "work"

    def seal(self, snapshot_id: SnapshotId | int) -> Path:
        """Where the list of a sealed layer is (snapfs.seals)."""
        return self.path / str(snapshot_id) / SEAL

    def lowers(self, chain: Iterable[SnapshotId | int]) -> tuple[Path, ...]:
        """Return the layers below a snapshot with these parents, direct parent first."""
        return tuple(map(self.upper, chain)) or (self.empty,)

    def make(
        self, snapshot_id: SnapshotId, parent: SnapshotId | None, *, exist_ok: bool = False
    ) -> None:
        """Make the directories of a new active snapshot; durable on return.

        The root of the new layer has owner and mode of the direct parent's root, since it is what
        the merged tree shows; without a parent it is 0755 and root's.

        One fsync is enough: ext4 and xfs log changes in order, so that of the last one covers the
        others, and btrfs logs the ancestors of a new directory with it.
        """
        directory, upper = self.directory(snapshot_id), self.upper(snapshot_id)
        directory.mkdir(mode=PRIVATE_MODE, exist_ok=exist_ok)
        upper.mkdir(mode=ROOT_MODE, exist_ok=exist_ok)
        self.work(snapshot_id).mkdir(mode=WORK_MODE, exist_ok=exist_ok)
        self._inherit(upper, parent)
        sync_directory(directory)

    def _inherit(self, upper: Path, parent: SnapshotId | None) -> None:
        wanted = self.upper(parent).stat() if parent is not None else None
        mode = stat.S_IMODE(wanted.st_mode) if wanted else ROOT_MODE
        uid, gid = (wanted.st_uid, wanted.st_gid) if wanted else (0, 0)
        made = upper.stat()
        if (made.st_uid, made.st_gid) != (uid, gid):
            os.chown(upper, uid, gid)
        if stat.S_IMODE(upper.stat().st_mode) != mode:
            upper.chmod(mode)

    def delete(self, snapshot_id: SnapshotId) -> None:
        """Delete directories that `make` made, in whole or in part; durable on return."""
        for path in (self.upper(snapshot_id), self.work(snapshot_id), self.directory(snapshot_id)):
            with suppress(FileNotFoundError):
                path.rmdir()
        sync_directory(self.path)

    def set_aside(self, identity: int) -> Path | None:
        """Rename the directory of an id, if there is one, so that it is no id's; durable."""
        found = self.directory(identity)
        if not found.exists():
            return None
        for number in itertools.count(1):
            aside = found.with_name(f"{identity}.unknown-{number}")
            if not aside.exists():
                break
        found.rename(aside)
        sync_directory(self.path)
        return aside

    def ids(self) -> list[SnapshotId]:
        """Return the ids that have a directory, in order."""
        return sorted(SnapshotId(int(name)) for name in os.listdir(self.path) if is_id(name))

    def strangers(self) -> list[Path]:
        """Return what lies among the layer directories and is not named by an id."""
        return sorted(self.path / name for name in os.listdir(self.path) if not is_id(name))


def is_id(name: str) -> bool:
    """Say whether a directory name is the decimal form of an id, as we write it."""
    return name.isascii() and name.isdigit() and not name.startswith("0")


def sync_directory(path: Path) -> None:
    """Make the entries of a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)
