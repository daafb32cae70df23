"""What a copy waits for before the rename that publishes it.

After a power cut a name leads to the lower file or to the whole copy, never to a copy without its
data. That is a matter of order alone, and less than an fsync(2) keeps it where a file system is
known to commit the rename after all that was done before, and to have the disk's cache flushed
before the commit counts:

* ext4 with a journal inside, but for fast commits, and xfs. The data need only be with the disk by
  then, its blocks and the size in the metadata; they are once the pages are written out. A clone is
  metadata itself, of data that was written out before.
* tmpfs keeps nothing over a power cut.

Others wait until the copy is durable. btrfs does with clones, too: an fsync(2) of a directory logs
a new name in it, and not the extents of the file.
"""

from __future__ import annotations

import enum
import os
import struct
from pathlib import Path

from .filecalls import FS_XFLAG_RTINHERIT, get_extended, magic_of

_TMPFS = 0x01021994
_EXT = 0xEF53
_XFS = 0x58465342
_BTRFS = 0x9123683E
_NODES = Path("/dev")
_DEVICES = Path("/sys/dev/block")
_JOURNALS = Path("/proc/fs/jbd2")
_EXT4 = Path("/proc/fs/ext4")

_SUPERBLOCK_AT = 1024
_MAGIC_AND_COMPAT = struct.Struct("<56xH34xI")
"""Of ext4's superblock: s_magic, s_feature_compat."""
_FAST_COMMIT = 0x400


class Order(enum.IntEnum):
    """What is waited for (copies_src/copies.h has the same)."""

    NOTHING = 0
    WRITTEN = 1
    """Until the data is written out; nothing when it is cloned."""
    SYNCED = 2
    """Until the copy is durable."""


def order_of(directory: bytes | Path) -> Order:
    """Return what copies wait for that are made in a directory. It does not change while the file
    system is mounted."""
    fd = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        return _order_of(fd)
    except OSError:
        return Order.SYNCED
    finally:
        os.close(fd)


def keeps_sizes(fd: int) -> bool:
    """Whether a file that has a size and no data has it after a power cut too, once its name is
    there. On btrfs an fsync(2) of the directory makes the name durable, and not the size."""
    return magic_of(fd) != _BTRFS


def _order_of(fd: int) -> Order:
    magic = magic_of(fd)
    if magic == _TMPFS:
        return Order.NOTHING
    is_ordered = (magic == _EXT and _is_ordered_ext4(os.fstat(fd).st_dev)) or (
        magic == _XFS and not _is_realtime(fd)
    )
    return Order.WRITTEN if is_ordered else Order.SYNCED


def _is_ordered_ext4(device: int) -> bool:
    """Whether an ext4 has a journal on its own device, so that one flush is for data and commit,
    waits for that before it commits, and commits all of a transaction or nothing."""
    link = _DEVICES / f"{os.major(device)}:{os.minor(device)}"
    name = os.readlink(link).rpartition("/")[2]
    options = (_EXT4 / name / "options").read_text().split()
    has_journal = any(
        it.name.removeprefix(f"{name}-").isdigit() for it in _JOURNALS.glob(f"{name}-*")
    )
    return (
        has_journal
        and not {"journal_async_commit", "fc_debug_force"} & set(options)
        and not _has_fast_commits(_NODES / name.replace("!", "/"), device)
    )


def _has_fast_commits(node: Path, device: int) -> bool:
    """No file of /proc or /sys tells."""
    fd = os.open(node, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        raw = os.pread(fd, _MAGIC_AND_COMPAT.size, _SUPERBLOCK_AT)
        is_it = os.fstat(fd).st_rdev == device and len(raw) == _MAGIC_AND_COMPAT.size
    finally:
        os.close(fd)
    if not is_it:
        return True
    magic, compat = _MAGIC_AND_COMPAT.unpack(raw)
    return magic != _EXT or bool(compat & _FAST_COMMIT)


def _is_realtime(fd: int) -> bool:
    """Whether the data of new files is on another device than the log's flush is for."""
    return bool(get_extended(fd).xflags & FS_XFLAG_RTINHERIT)
