"""Where snapshots are mounted, read from a mount table (proc(5), mountinfo). Pure.

A snapshot is mounted where a directory `<id>` of one of our lanes is bind-mounted, also of a lane
that a former daemon had (its source names its mount point), or where a kernel overlay has its
layer directory as upper.
"""

from __future__ import annotations

import os
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from snapfs.model import SnapshotId

_ESCAPE = re.compile(rb"\\([0-3][0-7]{2})")


@dataclass(frozen=True, slots=True)
class Entry:
    """One line of a mount table; paths as bytes, unescaped."""

    root: bytes
    """Directory of the file system that forms the mount's root."""
    target: bytes
    type: bytes
    source: bytes
    options: bytes
    """Those of the file system (its super block)."""


def parse(table: bytes) -> Iterator[Entry]:
    """Yield the entries of /proc/PID/mountinfo."""
    for line in filter(None, table.split(b"\n")):  # the kernel escapes no other end of a line
        before, _, after = line.partition(b" - ")
        fields = before.split(b" ")
        kind, source, options = after.split(b" ", 2)
        yield Entry(
            root=_unescape(fields[3]),
            target=_unescape(fields[4]),
            type=kind,
            source=_unescape(source),
            options=_unescape(options),
        )


def by_snapshot(
    entries: Iterable[Entry], *, lanes: Path, layers: Path
) -> Mapping[SnapshotId, tuple[Path, ...]]:
    """Return where each snapshot is mounted; `lanes` holds the lanes' mount points."""
    lane = b"snapfs:" + os.fsencode(lanes) + b"/"
    upper = re.compile(rb"(?:^|,)upperdir=" + re.escape(os.fsencode(layers)) + rb"/(\d+)/fs(?:,|$)")
    found: defaultdict[SnapshotId, list[Path]] = defaultdict(list)
    for entry in entries:
        if entry.type == b"fuse.snapfs" and entry.source.startswith(lane):
            match = re.match(rb"/(\d+)(?:/|$)", entry.root)
        elif entry.type == b"overlay":
            match = upper.search(entry.options)
        else:
            continue
        if match:
            found[SnapshotId(int(match[1]))].append(Path(os.fsdecode(entry.target)))
    return {number: tuple(targets) for number, targets in found.items()}


def _unescape(field: bytes) -> bytes:
    return _ESCAPE.sub(lambda match: bytes([int(match[1], 8)]), field)
