"""Who may have a snapshot's tree: those who show it, or a commit that then need ask nobody.

Whoever shows a tree that takes changes makes the directory `snapfs` in its work directory before
anything else, and it stays there: the tree keeps its temporary files in it (overlay/work.py). A
commit tries to take that name with a file. The kernel lets only one of the two have it: while the
name is free nobody has ever shown the tree, so nothing of it is open, cached or half done; once
the file is there nobody can begin to. Most layers are unpacked beside the trees (mounts.py) and
are committed so, without a word to a worker.

The file goes when the commit fails, and at the next opening when a crash left it with an active
snapshot (recovery.py). It stays in a committed one: a worker may have read, just before, that the
snapshot is active.
"""

from __future__ import annotations

import os
import stat
from contextlib import suppress
from pathlib import Path

_NAME = "snapfs"


def claim(work: Path) -> bool:
    """Take a tree that nobody has ever shown; False when somebody has, or it cannot be taken."""
    flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
    try:
        os.close(os.open(work / _NAME, flags, 0o600))
    except OSError:  # shown, removed, or a full disk: the trees are asked
        return False
    return True


def release(work: Path) -> None:
    """Give back what `claim` took; nothing to do when it is not taken."""
    name = work / _NAME
    try:
        if stat.S_ISREG(name.lstat().st_mode):
            name.unlink()
    except (FileNotFoundError, NotADirectoryError):
        return


def show(work: Path) -> bool:
    """Say that a tree is about to be shown; False when a commit has it."""
    name = work / _NAME
    while True:
        try:
            name.mkdir(0o700)
        except FileExistsError:
            with suppress(FileNotFoundError):  # the commit has just failed: the name is free again
                return stat.S_ISDIR(name.lstat().st_mode)
        else:
            return True
