"""Make and end the mounts that the service answers with. Raises OSError."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse import mounts
from snapfs.model import Mount

MS_REMOUNT = 0x20
MS_BIND = 0x1000
MS_REC = 0x4000

_FLAGS = {
    "ro": mounts.MS_RDONLY,
    "rw": 0,
    "nosuid": mounts.MS_NOSUID,
    "nodev": mounts.MS_NODEV,
    "noexec": mounts.MS_NOEXEC,
    "noatime": mounts.MS_NOATIME,
    "bind": MS_BIND,
    "rbind": MS_BIND | MS_REC,
}


def attach(mount: Mount, target: Path) -> None:
    """Make one mount at `target`, as `mount -t TYPE -o OPTIONS SOURCE TARGET` would.

    A read-only bind mount takes two calls; when the second fails the first is undone.
    """
    flags, data = 0, []
    for option in mount.options:
        if option in _FLAGS:
            flags |= _FLAGS[option]
        else:
            data.append(option)
    mounts.mount(mount.source, target, mount.type, flags, ",".join(data))
    if flags & MS_BIND and flags & ~(MS_BIND | MS_REC):
        try:
            mounts.mount("", target, "", flags & ~MS_REC | MS_REMOUNT, "")
        except OSError:
            detach(target, lazy=True)
            raise


def detach(target: Path, *, lazy: bool = False) -> None:
    """Unmount `target`; `lazy` hides a busy mount now and ends it when it is let go."""
    mounts.unmount(target, mounts.MNT_DETACH if lazy else 0)


@contextmanager
def attached(given: Sequence[Mount], prefix: str) -> Iterator[Path]:
    """Make mounts, each over the one before, at a directory of their own for the block.

    INVARIANT nothing below the directory is ever removed: it shows the files of others. What
    cannot be unmounted since it is busy is hidden, and ends when it is let go.
    """
    target = Path(tempfile.mkdtemp(prefix=prefix))
    count = 0
    try:
        for each in given:
            attach(each, target)
            count += 1
        yield target
    finally:
        for _ in range(count):
            detach(target, lazy=True)
        target.rmdir()
