"""Programs that try what is refused, and what is only just not, and say what they were told.

Each runs in a directory of its own, with files that `fill` made; what it says is compared with what
it says on ext4. Nothing of it depends on the file system: no numbers of inodes, no blocks.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import stat
import struct
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

USER, OTHER, GROUP = 1000, 1001, 2000
NOW, OMIT = (1 << 30) - 1, (1 << 30) - 2
"""Of nanoseconds: UTIME_NOW, UTIME_OMIT."""
libc = ctypes.CDLL(None, use_errno=True)


class Saying:
    """What a program was told, in order."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def __call__(
        self, what: str, step: Callable[..., object], /, *arguments: Any, **options: Any
    ) -> None:
        """Take a step; note what it returned, or its errno."""
        try:
            told = str(step(*arguments, **options))
        except OSError as error:
            told = errno.errorcode.get(error.errno or 0, str(error))
        except (ValueError, OverflowError) as error:
            told = f"{type(error).__name__}"
        self.lines.append(f"{what}: {told}")


Run = Callable[[Saying], None]
Fill = Callable[[], None]


@dataclass(frozen=True)
class Program:
    """`fill` and `run` are called in its directory."""

    name: str
    fill: Fill
    run: Run


PROGRAMS: list[Program] = []


def program(fill: Fill = lambda: None) -> Callable[[Run], Run]:
    """Put a function into the list, by its name."""

    def note(run: Run) -> Run:
        PROGRAMS.append(Program(run.__name__, fill, run))
        return run

    return note


def said_in(directory: Path, step: Callable[[Saying], None]) -> list[str]:
    """Take a step in a process of its own, in `directory`; return what it says."""
    mine, its = os.pipe()
    child = os.fork()
    if not child:
        status = 1
        try:
            os.close(mine)
            os.chdir(directory)
            os.umask(0o022)
            saying = Saying()
            try:
                step(saying)
            except Exception:  # noqa: BLE001  # is told by the parent
                saying.lines.append(traceback.format_exc())
            with open(its, "w") as out:
                json.dump(saying.lines, out)
            status = 0
        finally:
            os._exit(status)
    os.close(its)
    with open(mine) as answer:
        text = answer.read()
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0, text
    lines: list[str] = json.loads(text)
    return lines


@contextmanager
def user(uid: int = USER, gid: int | None = None, groups: tuple[int, ...] = ()) -> Iterator[None]:
    """Be somebody else for a while."""
    os.setgroups(groups)
    os.setegid(uid if gid is None else gid)
    os.seteuid(uid)
    try:
        yield
    finally:
        os.seteuid(0)
        os.setegid(0)
        os.setgroups([])


def call(name: str, *arguments: object) -> int:
    """Call a function of libc. Raises OSError."""
    result = getattr(libc, name)(*arguments)
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return int(result)


def opened(path: str, flags: int, mode: int = 0o644) -> str:
    """Open and close; return "opened"."""
    os.close(os.open(path, flags | os.O_CLOEXEC, mode))
    return "opened"


def mode(path: str) -> str:
    return oct(os.lstat(path).st_mode)


def kind(path: str) -> str:
    return oct(stat.S_IFMT(os.stat(path).st_mode))


def owner(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


def times(path: str) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_atime_ns, found.st_mtime_ns


def size_of(file: str | int) -> int:
    return os.stat(file).st_size


def links_of(file: str | int) -> int:
    """How many names a file has; of a symbolic link its own."""
    return (os.fstat(file) if isinstance(file, int) else os.lstat(file)).st_nlink


def there_and_back(directory: str) -> None:
    here = os.open(".", os.O_PATH | os.O_CLOEXEC)
    try:
        os.chdir(directory)
        os.fchdir(here)
    finally:
        os.close(here)


def openat2(path: str, mode_: int, resolve: int) -> str:
    how = struct.pack("<QQQ", os.O_RDONLY, mode_, resolve)
    os.close(call("syscall", 437, -100, path.encode(), how, 24))
    return "opened"


def rename2(old: str, new: str, flags: int) -> int:
    return call("renameat2", -100, os.fsencode(old), -100, os.fsencode(new), flags)


KINDS = ("file", "dir", "fifo", "link", "null", "socket")


def one_of_each(uid: int = USER, gid: int = USER) -> None:
    """Make a file of each type, that a user owns."""
    Path("file").write_text("file")
    os.mkdir("dir")
    os.mkfifo("fifo")
    os.symlink("file", "link")
    os.mknod("null", stat.S_IFCHR | 0o644, os.makedev(1, 3))
    os.mknod("socket", stat.S_IFSOCK | 0o644)
    for name in KINDS:
        os.chown(name, uid, gid, follow_symlinks=False)
