"""One of every change that a tree can go through, on one set of layers."""

from __future__ import annotations

import os
from collections.abc import Callable

from snapfs.overlay import RENAME_EXCHANGE
from tests.support.overlay.files import OnTree
from tests.support.overlay.layers import Dir, Same

LOWER = {
    "d/s/f": b"deep",
    "d/g": b"g",
    "empty/x": b"x",
    "a": b"linked",
    "e/b": Same("a"),
    "e/c": Same("a"),
    "sgid": Dir(0o2775, 0, 50),
}
USER = {"uid": 1000, "gid": 1000, "umask": 0o22}

Step = Callable[[OnTree], None]


def nothing(_: OnTree) -> None:
    pass


def new_file(files: OnTree) -> None:
    _, fd = files.tree.create(files.tree.root, b"new", 0o644, os.O_RDWR, **USER)
    os.close(fd)


def touch_up_g(files: OnTree) -> None:
    files.chmod(b"d/g", 0o600)


def both(*steps: Step) -> Step:
    def run(files: OnTree) -> None:
        for step in steps:
            step(files)

    return run


def clear_empty(files: OnTree) -> None:
    files.unlink(b"empty/x")


def touch_up_c(files: OnTree) -> None:
    files.chmod(b"e/c", 0o600)


def remove_empty(files: OnTree) -> None:
    clear_empty(files)
    files.rmdir(b"empty")


CHANGES: dict[str, tuple[Step, Step]] = {
    "copy-up": (nothing, lambda f: f.chmod(b"d/s/f", 0o600)),
    "copy-up of a hard link": (nothing, lambda f: f.chmod(b"e/b", 0o600)),
    "create": (nothing, lambda f: f.create(b"d/n", 0o644, b"")),
    "create by a user": (nothing, new_file),
    "create over a whiteout": (lambda f: f.unlink(b"d/g"), lambda f: f.create(b"d/g", 0o644, b"")),
    "mkdir": (nothing, lambda f: f.mkdir(b"d/n", 0o755)),
    "mkdir in a set-group-id directory": (nothing, lambda f: f.mkdir(b"sgid/n", 0o755)),
    "mkdir over a whiteout": (remove_empty, lambda f: f.mkdir(b"empty", 0o755)),
    "symlink": (nothing, lambda f: f.symlink(b"t", b"n")),
    "link to a lower file": (nothing, lambda f: f.link(b"d/g", b"n")),
    "unlink of a lower file": (nothing, lambda f: f.unlink(b"d/g")),
    "unlink of an upper file": (lambda f: f.chmod(b"d/g", 0o600), lambda f: f.unlink(b"d/g")),
    "unlink of a hard link": (touch_up_c, lambda f: f.unlink(b"e/b")),
    "unlink of the last hard link": (
        both(touch_up_c, lambda f: f.unlink(b"a")),
        lambda f: f.unlink(b"e/b"),
    ),
    "rmdir": (clear_empty, lambda f: f.rmdir(b"empty")),
    "rename of a lower file": (nothing, lambda f: f.rename(b"d/g", b"e/g", 0)),
    "rename of a lower directory": (nothing, lambda f: f.rename(b"d", b"e/d", 0)),
    "rename of a hard link": (touch_up_c, lambda f: f.rename(b"e/b", b"d/b", 0)),
    "rename over a file": (nothing, lambda f: f.rename(b"d/g", b"a", 0)),
    "rename over an upper file": (
        lambda f: f.chmod(b"a", 0o600),
        lambda f: f.rename(b"d/g", b"a", 0),
    ),
    "rename over an empty directory": (clear_empty, lambda f: f.rename(b"d", b"empty", 0)),
    "rename of a directory over a whiteout": (remove_empty, lambda f: f.rename(b"d", b"empty", 0)),
    "rename of an upper directory over a whiteout": (
        both(remove_empty, lambda f: f.mkdir(b"up", 0o755)),
        lambda f: f.rename(b"up", b"empty", 0),
    ),
    "rename of a directory back to where it is below": (
        lambda f: f.rename(b"d/s", b"e/m", 0),
        lambda f: f.rename(b"e/m", b"d/m", 0),
    ),
    "exchange of directories, one back to where it is below": (
        both(lambda f: f.rename(b"d/s", b"e/m", 0), lambda f: f.mkdir(b"d/up", 0o755)),
        lambda f: f.rename(b"e/m", b"d/up", RENAME_EXCHANGE),
    ),
    "exchange": (nothing, lambda f: f.rename(b"d", b"e/b", RENAME_EXCHANGE)),
    "exchange of directories": (nothing, lambda f: f.rename(b"d", b"e", RENAME_EXCHANGE)),
    "settling": (touch_up_c, lambda f: f.tree.settle()),
    "write after a change of the mode": (touch_up_g, lambda f: f.truncate(b"d/g", 0)),
    "link after a change of the mode": (touch_up_g, lambda f: f.link(b"d/g", b"n")),
    "rename after a change of the mode": (touch_up_g, lambda f: f.rename(b"d/g", b"e/g", 0)),
    "exchange after a change of the mode": (
        touch_up_g,
        lambda f: f.rename(b"d/s/f", b"d/g", RENAME_EXCHANGE),
    ),
    "rename over after a change of the mode": (touch_up_g, lambda f: f.rename(b"a", b"d/g", 0)),
    "settling after a change of the mode": (
        both(touch_up_g, touch_up_c),
        lambda f: f.tree.settle(),
    ),
    "setting an attribute": (nothing, lambda f: f.setxattr(b"d", b"user.a", b"1", 0)),
}
"""What to do before, and the change."""
