"""Everything that a container can see of a tree, in a dictionary, for comparing two trees."""

from __future__ import annotations

import hashlib
import os
import stat
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple


class Entry(NamedTuple):
    """One path; `links` are all paths of the same file, `nlink` counts them."""

    mode: int
    uid: int
    gid: int
    size: int
    rdev: int
    mtime_ns: int
    content: str
    xattrs: tuple[tuple[str, bytes], ...]
    nlink: int
    links: tuple[str, ...]


def describe(root: Path) -> dict[str, Entry]:
    """Read a whole tree.

    Left out, as they may rightly differ: sizes and link counts of directories, and the time of the
    root, which containerd sets nowhere.
    """
    found = {"": os.lstat(root)}
    for directory, names, files in os.walk(root):
        for name in (*names, *files):
            path = os.path.join(directory, name)
            found[os.path.relpath(path, root)] = os.lstat(path)
    links: defaultdict[tuple[int, int], list[str]] = defaultdict(list)
    for path, status in found.items():
        if not stat.S_ISDIR(status.st_mode):
            links[status.st_dev, status.st_ino].append(path)
    tree = {
        path: _entry(root / path, status, tuple(sorted(links[status.st_dev, status.st_ino])))
        for path, status in found.items()
    }
    tree[""] = tree[""]._replace(mtime_ns=0)
    return tree


def _entry(path: Path, status: os.stat_result, links: tuple[str, ...]) -> Entry:
    is_directory = stat.S_ISDIR(status.st_mode)
    names = os.listxattr(path, follow_symlinks=False)
    return Entry(
        mode=status.st_mode,
        uid=status.st_uid,
        gid=status.st_gid,
        size=0 if is_directory else status.st_size,
        rdev=status.st_rdev,
        mtime_ns=status.st_mtime_ns,
        content=_content(path, status),
        xattrs=tuple(sorted((it, os.getxattr(path, it, follow_symlinks=False)) for it in names)),
        nlink=0 if is_directory else status.st_nlink,
        links=() if is_directory else links,
    )


def _content(path: Path, status: os.stat_result) -> str:
    if stat.S_ISLNK(status.st_mode):
        return os.readlink(path)
    if not stat.S_ISREG(status.st_mode):
        return ""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def differences(left: dict[str, Entry], right: dict[str, Entry]) -> list[str]:
    """Say in words how two trees differ; empty when they do not."""
    lines = [f"{path!r} only on the left" for path in sorted(left.keys() - right.keys())]
    lines += [f"{path!r} only on the right" for path in sorted(right.keys() - left.keys())]
    for path in sorted(left.keys() & right.keys()):
        for field, one, other in zip(Entry._fields, left[path], right[path], strict=True):
            if one != other:
                lines.append(f"{path!r} {field}: {one!r} and {other!r}")
    return lines
