"""Writers that a connection left behind when it ended.

Who has a file open past us goes on writing when the mount is aborted, or when all its processes
die: no worker will hear of the last close. So the work directory of a snapshot names the connection
that shows it. Where that is not the present one, the files of the layer are asked for writers
before the layer may be taken to hold still.

INVARIANT: a snapshot is named before a file of it is opened past us, and named anew only when
nobody writes to it.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Container, Iterator
from pathlib import Path

from snapfs.overlay.quiet import is_written

_SHOWN_BY = b"trusted.snapfs.shown-by"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def name_of(journal: int) -> bytes:
    """Name a connection by its journal, which all its workers share."""
    return b"%s %d" % (_BOOT_ID.read_bytes().strip(), os.fstat(journal).st_ino)


def claim(work: Path, connection: bytes) -> None:
    """Note who shows a snapshot, unless somebody is noted already."""
    if _shown_by(work) is None:
        _note(work, connection)


def is_suspect(work: Path, connection: bytes) -> bool:
    """Whether another connection has shown a snapshot, whose writers may be left."""
    return _shown_by(work) not in (None, connection)


def writers(
    upper: Path, work: Path, connection: bytes, known: Container[tuple[int, int]]
) -> list[str]:
    """Name the files of a layer that somebody may write; with none, take the snapshot over.

    `known` are the files (st_dev, st_ino) that are open for writing through us. Blocks: asks each
    file. Safe in any thread.
    """
    root = os.fsencode(upper)
    found = [path for path in _files(root, known) if is_written(path)]
    if not found:
        _note(work, connection)
    return [path[len(root) :].decode(errors="backslashreplace") for path in found]


def _files(root: bytes, known: Container[tuple[int, int]]) -> Iterator[bytes]:
    for above, _, names in os.walk(root, onerror=_refuse):
        for name in names:
            path = os.path.join(above, name)
            real = os.lstat(path)
            if stat.S_ISREG(real.st_mode) and (real.st_dev, real.st_ino) not in known:
                yield path


def _refuse(error: OSError) -> None:
    raise error


def _shown_by(work: Path) -> bytes | None:
    return os.getxattr(work, _SHOWN_BY) if os.fsdecode(_SHOWN_BY) in os.listxattr(work) else None


def _note(work: Path, connection: bytes) -> None:
    os.setxattr(work, _SHOWN_BY, connection)
