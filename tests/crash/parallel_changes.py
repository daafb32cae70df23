"""Changes to directories that other programs change as well, each looked at afterwards.

A `Program` changes names of its own only, in directories that may be moved meanwhile, and knows
what they must look like (`expected_files`). The first call that fails, or that shows something
else, is an error.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import random
from collections import deque
from collections.abc import Callable
from pathlib import Path

from tests.crash.expected_files import DIRECTORIES, Expected, Held, Kind, Names, Place

RENAME_EXCHANGE = 2
MOST_HELD = 8
TIMES_NS = (1, 2**33 * 10**9 + 5, -100 * 10**9 + 7, 1700000000123456789)
_libc = ctypes.CDLL(None, use_errno=True)


class Program:
    """Makes one change after the other; each method is one kind of change with its checks."""

    def __init__(
        self, top: Path, number: int, seed: int, *, passthrough: bool, set_id: bool
    ) -> None:
        self.dice = random.Random(seed * 1000 + number)
        self.names = Names(top, number)
        self.expected = self.names.expected
        self.passthrough = passthrough
        self.modes = [0o600, 0o644, 0o755, 0o1644, *((0o4755, 0o2755) if set_id else ())]
        self.held: list[Held] = []
        self.made = 0
        self.last: deque[object] = deque(maxlen=8)

    def change(self) -> None:
        self.dice.choices(CHANGES, WEIGHTS)[0](self)

    def note(self, what: str, *about: object) -> None:
        self.last.append((what, *about))

    def pick(self, *kinds: Kind) -> Place:
        """Choose a name; a new file when there is none of the kinds."""
        if places := self.names.of_kind(kinds or ("file", "directory", "symlink")):
            return self.dice.choice(places)
        return self.mkdir() if kinds == ("directory",) else self.create()

    def new(self) -> Place:
        self.made += 1
        directory = self.dice.randrange(DIRECTORIES)
        return Place(directory, f"{self.names.prefix}n{self.made}")

    def fd_of(self, place: Place) -> int:
        return self.names.directories[place.directory]

    def check(self, when: str, *places: Place) -> None:
        """Look names up, and read what they are expected to be."""
        for place in places:
            self.names.check(place, when)
        for place in places:
            if place in self.expected:
                self.names.check_content(place, when)

    def create(self) -> Place:
        place, mode = self.new(), self.dice.choice(self.modes)
        data = self.dice.randbytes(self.dice.choice([0, 1, 100, 5000]))
        self.note("create", place, oct(mode), len(data))
        fd = self.names.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR, mode)
        os.write(fd, data)
        made = self.expected[place] = Expected("file", bytearray(data), mode)
        if mode & 0o6000:
            os.fchmod(fd, mode)
        made.check(os.fstat(fd), ("fstat", place))
        if self.dice.random() < 0.2:
            self.held.append(Held(fd, made))
        else:
            os.close(fd)
        self.names.check(place, "create")
        return place

    def create_again(self) -> None:
        place = self.pick()
        self.note("create again", place)
        try:
            os.close(self.names.open(place, os.O_CREAT | os.O_EXCL | os.O_RDWR))
        except FileExistsError:
            return
        raise AssertionError(("O_EXCL made anew", place))

    def append(self) -> None:
        place = self.pick("file")
        data = self.dice.randbytes(self.dice.choice([1, 50, 3000]))
        self.note("append", place, len(data))
        fd = self.names.open(place, os.O_WRONLY | os.O_APPEND)
        os.write(fd, data)
        file = self.expected[place]
        file.written(data, len(file.data))
        file.check(os.fstat(fd), ("fstat", place))
        os.close(fd)
        self.names.check(place, "append")

    def write(self) -> None:
        place = self.pick("file")
        file = self.expected[place]
        at = self.dice.randrange(len(file.data) + 100)
        data = self.dice.randbytes(60)
        self.note("write", place, at)
        fd = self.names.open(place, os.O_RDWR)
        os.pwrite(fd, data, at)
        os.close(fd)
        file.written(data, at)
        self.check("write", place)

    def write_past_the_cache(self) -> None:
        place = self.pick("file")
        self.note("O_DIRECT", place)
        try:
            fd = self.names.open(place, os.O_RDWR | os.O_DIRECT)
        except OSError as error:
            assert error.errno == errno.EINVAL  # noqa: PT017 - a file system without it, tmpfs
            return
        with mmap.mmap(-1, 4096) as aligned:
            aligned[:] = self.dice.randbytes(4096)
            os.pwrite(fd, aligned, 0)
            self.expected[place].written(aligned[:], 0)
        os.close(fd)
        self.check("O_DIRECT", place)

    def write_mapped(self) -> None:
        place = self.pick("file")
        file = self.expected[place]
        if len(file.data) < 10:
            return
        self.note("mmap", place)
        fd = self.names.open(place, os.O_RDWR)
        with mmap.mmap(fd, len(file.data)) as mapped:
            os.close(fd)
            mapped[3:8] = b"MAPPD"
            file.written(b"MAPPD", 3)
            self.names.check_content(place, "mapped")
        self.names.check_content(place, "unmapped")

    def truncate(self) -> None:
        place, size = self.pick("file"), self.dice.choice([0, 0, 10, 4096, 9000])
        how = self.dice.choice(["path", "descriptor", "open"])
        self.note("truncate", place, size, how)
        if how == "path":
            os.truncate(self.names.path(place), size)
        elif how == "descriptor":
            fd = self.names.open(place, os.O_WRONLY)
            os.ftruncate(fd, size)
            os.close(fd)
        else:
            size = 0
            os.close(self.names.open(place, os.O_WRONLY | os.O_TRUNC))
        self.expected[place].resized(size)
        self.check("truncate", place)

    def unlink(self) -> None:
        place = self.pick("file", "symlink")
        self.note("unlink", place)
        os.unlink(place.name, dir_fd=self.fd_of(place))
        self.names.removed(place)
        self.names.check(place, "unlink")

    def rename(self) -> None:
        old = self.pick("file", "symlink")
        new = self.pick("file", "symlink") if self.dice.random() < 0.4 else self.new()
        self.note("rename", old, new)
        self._rename(old, new)
        self.names.moved(old, new)
        self.check("rename", old, new)

    def move_directory(self) -> None:
        old = self.pick("directory")
        new = self.pick("directory") if self.dice.random() < 0.3 else self.new()
        self.note("move directory", old, new)
        if old == new:
            return
        if new in self.expected and self.expected[new].entries:
            refused_as_not_empty(lambda: self._rename(old, new))
            return
        self._rename(old, new)
        self.names.moved(old, new)
        self.check("move directory", old, new)

    def _rename(self, old: Place, new: Place) -> None:
        os.rename(old.name, new.name, src_dir_fd=self.fd_of(old), dst_dir_fd=self.fd_of(new))

    def exchange(self) -> None:
        one, other = self.pick(), self.pick()
        if one == other:
            return
        self.note("exchange", one, other)
        names = (self.fd_of(one), one.name.encode(), self.fd_of(other), other.name.encode())
        if _libc.renameat2(*names, RENAME_EXCHANGE):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
        self.expected[one], self.expected[other] = self.expected[other], self.expected[one]
        self.check("exchange", one, other)

    def link(self) -> None:
        old, new = self.pick("file"), self.new()
        self.note("link", old, new)
        os.link(old.name, new.name, src_dir_fd=self.fd_of(old), dst_dir_fd=self.fd_of(new))
        self.expected[new] = self.expected[old]
        self.expected[new].links += 1
        self.names.check(old, "link")
        self.names.check(new, "link")

    def symlink(self) -> None:
        place = self.new()
        target = f"to {place.name}"
        self.note("symlink", place)
        os.symlink(target, place.name, dir_fd=self.fd_of(place))
        self.expected[place] = Expected("symlink", bytearray(target.encode()))
        self.check("symlink", place)

    def chmod(self) -> None:
        place = self.pick("file", "directory")
        is_file = self.expected[place].kind == "file"
        mode = self.dice.choice(self.modes if is_file else [0o700, 0o755])
        self.note("chmod", place, oct(mode))
        os.chmod(place.name, mode, dir_fd=self.fd_of(place))
        self.expected[place].mode = mode
        self.names.check(place, "chmod")

    def chown(self) -> None:
        place = self.pick()
        uid, gid = self.dice.choice([(0, 0), (1, 2), (1000, -1), (-1, 7)])
        self.note("chown", place, uid, gid)
        os.chown(place.name, uid, gid, dir_fd=self.fd_of(place), follow_symlinks=False)
        it = self.expected[place]
        it.uid, it.gid = it.uid if uid == -1 else uid, it.gid if gid == -1 else gid
        if it.kind == "file":  # posix.md: set-id bits go with chown, by root too
            it.mode &= ~(0o6000 if it.mode & 0o010 else 0o4000)
        self.names.check(place, "chown")

    def set_times(self) -> None:
        place, time_ns = self.pick(), self.dice.choice(TIMES_NS)
        self.note("utimes", place, time_ns)
        directory = self.fd_of(place)
        os.utime(place.name, ns=(time_ns, time_ns), dir_fd=directory, follow_symlinks=False)
        self.expected[place].mtime_ns = time_ns
        self.names.check(place, "utimes")

    def set_attribute(self) -> None:
        place = self.pick("file", "directory")
        name = self.dice.choice(["user.a", "user.b", "trusted.q"])
        value = self.dice.randbytes(self.dice.choice([1, 30, 900]))
        self.note("setxattr", place, name, len(value))
        os.setxattr(self.names.path(place), name, value)
        self.expected[place].attributes[name] = value
        self.check("setxattr", place)

    def remove_attribute(self) -> None:
        place = self.pick("file", "directory")
        attributes = self.expected[place].attributes
        if attributes:
            name = self.dice.choice(sorted(attributes))
            self.note("removexattr", place, name)
            os.removexattr(self.names.path(place), name)
            del attributes[name]
            self.check("removexattr", place)

    def mkdir(self) -> Place:
        """Make a directory, at times in the place of something that a lower layer has."""
        place = self.new()
        if self.dice.random() < 0.4:
            lower = self.names.prefix + self.dice.choice(["dir", "low1"])
            if (above_lower := Place(place.directory, lower)) not in self.expected:
                place = above_lower
        self.note("mkdir", place)
        os.mkdir(place.name, 0o755, dir_fd=self.fd_of(place))
        self.expected[place] = Expected("directory", mode=0o755)
        self.check("mkdir", place)
        return place

    def rmdir(self) -> None:
        place = self.pick("directory")
        entries = self.expected[place].entries
        self.note("rmdir", place, sorted(entries))
        if entries:
            refused_as_not_empty(lambda: os.rmdir(place.name, dir_fd=self.fd_of(place)))
            if self.dice.random() < 0.6:
                return
            self._empty(place)
        os.rmdir(place.name, dir_fd=self.fd_of(place))
        del self.expected[place]
        self.names.check(place, "rmdir")

    def _empty(self, place: Place) -> None:
        directory = self.expected[place]
        fd = self.names.open(place, os.O_RDONLY)
        for name in directory.entries:
            os.unlink(name, dir_fd=fd)
        directory.entries.clear()
        directory.mtime_ns = None
        assert os.listdir(fd) == [], (place, "is not empty")
        os.close(fd)

    def change_entry(self) -> None:
        """Append to, make or remove a file in a directory of our own."""
        place, name = self.pick("directory"), f"x{self.dice.randrange(6)}"
        directory = self.expected[place]
        self.note("entry", place, name)
        above = self.names.open(place, os.O_RDONLY)
        if name in directory.entries and self.dice.random() < 0.5:
            os.unlink(name, dir_fd=above)
            del directory.entries[name]
        else:
            data = self.dice.randbytes(10)
            fd = os.open(name, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644, dir_fd=above)
            os.write(fd, data)
            os.close(fd)
            directory.entries.setdefault(name, bytearray()).extend(data)
        os.close(above)
        directory.mtime_ns = None
        self.check("entry", place)

    def hold(self) -> None:
        if len(self.held) <= MOST_HELD:
            place, flags = self.pick("file"), self.dice.choice([os.O_RDONLY, os.O_RDWR])
            self.note("hold", place, flags)
            self.held.append(Held(self.names.open(place, flags), self.expected[place]))

    def use_held(self) -> None:
        if not self.held:
            return
        held = self.dice.choice(self.held)
        self.note("held", held.of.links)
        held.check(passthrough=self.passthrough)
        if self.dice.random() < 0.3 and not held.reads_only:
            os.pwrite(held.fd, b"HELD", 0)
            held.of.written(b"HELD", 0)
            held.of.check(os.fstat(held.fd), "write to a held file")
        if self.dice.random() < 0.2:
            os.fchmod(held.fd, 0o640)
            held.of.mode = 0o640
            held.of.check(os.fstat(held.fd), "chmod of a held file")
        if self.dice.random() < 0.4:
            os.close(held.fd)
            self.held.remove(held)

    def make_without_a_name(self) -> None:
        place, directory = self.new(), self.dice.randrange(DIRECTORIES)
        self.note("O_TMPFILE", place, directory)
        above = self.names.directories[directory]
        fd = os.open(".", os.O_TMPFILE | os.O_RDWR, 0o644, dir_fd=above)
        os.write(fd, b"tmp")
        if self.dice.random() < 0.7:
            target = self.fd_of(place)
            os.link(f"/proc/self/fd/{fd}", place.name, dst_dir_fd=target, follow_symlinks=True)
            self.expected[place] = Expected("file", bytearray(b"tmp"))
        self.names.check(place, "O_TMPFILE")
        os.close(fd)

    def list_names(self) -> None:
        directory = self.dice.randrange(DIRECTORIES)
        self.note("list", directory)
        self.names.check_list(directory)

    def read(self) -> None:
        place = self.pick()
        self.note("read", place)
        self.check("read", place)

    def look_for_nothing(self) -> None:
        never = Place(self.dice.randrange(DIRECTORIES), f"{self.names.prefix}never")
        self.names.check(never, "look up")


Change = Callable[[Program], object]
SOME = (
    Program.create, Program.append, Program.unlink, Program.rename, Program.rmdir,
    Program.change_entry, Program.use_held,
)  # fmt: skip
"""Twice as often as the others."""
OTHERS = (
    Program.create_again, Program.write, Program.write_past_the_cache, Program.write_mapped,
    Program.truncate, Program.move_directory, Program.exchange, Program.link, Program.symlink,
    Program.chmod, Program.chown, Program.set_times, Program.set_attribute,
    Program.remove_attribute, Program.mkdir, Program.hold, Program.make_without_a_name,
    Program.list_names, Program.read, Program.look_for_nothing,
)  # fmt: skip
CHANGES: tuple[Change, ...] = (*SOME, *OTHERS)
WEIGHTS = (*(2 for _ in SOME), *(1 for _ in OTHERS))


def refused_as_not_empty(change: Callable[[], None]) -> None:
    try:
        change()
    except OSError as error:
        assert error.errno == errno.ENOTEMPTY, error  # noqa: PT017 - programs have no pytest
        return
    raise AssertionError("a directory that is not empty was removed")
