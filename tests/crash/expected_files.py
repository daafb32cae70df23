"""What one program expects of its own files in directories that others change as well.

The model knows content, sizes, link counts, modes, owners, attributes, and the modification times
and inode numbers that the program has set or seen. Every check reads the real tree and raises
AssertionError with the name, what was done last, and both values.
"""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, NamedTuple

Kind = Literal["file", "directory", "symlink"]
DIRECTORIES = 4
LOWER_FILES = 6
LOWER_ENTRIES = 3


class Place(NamedTuple):
    """A name in one of the directories that the programs share."""

    directory: int
    name: str


@dataclass(eq=False)
class Expected:
    """One file, directory or symbolic link, whatever names it has; None is not known yet."""

    kind: Kind
    data: bytearray = field(default_factory=bytearray)
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    links: int = 1
    attributes: dict[str, bytes] = field(default_factory=dict)
    mtime_ns: int | None = None
    inode: int | None = None
    entries: dict[str, bytearray] = field(default_factory=dict)
    """What is in a directory: plain files only."""
    lower_data: bytes | None = None
    """What a lower layer has for it."""

    def written(self, data: bytes, at: int) -> None:
        self.resized(max(len(self.data), at))
        self.data[at : at + len(data)] = data
        self.mtime_ns = None

    def resized(self, size: int) -> None:
        del self.data[size:]
        self.data += bytes(size - len(self.data))
        self.mtime_ns = None

    def check(self, found: os.stat_result, when: object) -> None:
        """Compare with what stat(2) tells; an inode number that was not known is noted."""
        known: dict[str, object] = {"owner": (self.uid, self.gid)}
        seen: dict[str, object] = {"owner": (found.st_uid, found.st_gid)}
        if self.kind == "file":
            known |= {"size": len(self.data), "links": self.links}
            seen |= {"size": found.st_size, "links": found.st_nlink}
        if self.kind != "symlink":
            known["mode"], seen["mode"] = oct(self.mode), oct(stat.S_IMODE(found.st_mode))
        if self.mtime_ns is not None:
            known["mtime"], seen["mtime"] = self.mtime_ns, found.st_mtime_ns
        if self.inode is not None:
            known["inode"], seen["inode"] = self.inode, found.st_ino
        assert seen == known, (when, "is", seen, "not", known)
        self.inode = found.st_ino


@dataclass(frozen=True)
class Held:
    """A file that is kept open, whatever happens to its names."""

    fd: int
    of: Expected

    @property
    def reads_only(self) -> bool:
        return fcntl.fcntl(self.fd, fcntl.F_GETFL) & os.O_ACCMODE == os.O_RDONLY

    def check(self, *, passthrough: bool) -> None:
        found = os.pread(self.fd, 1 << 20, 0)
        # In passthrough a reader's descriptor of a lower file goes on with that file after its
        # copy-up: posix.md, Where snapfs differs; fuse.md, A copy-up while the lower file is read.
        stale = passthrough and self.reads_only and found == self.of.lower_data
        assert found == self.of.data or stale, ("held", *_difference(found, self.of.data))
        self.of.check(os.fstat(self.fd), "fstat of a held file")


class Names:
    """The names of one program, and whether they are as expected."""

    def __init__(self, top: Path, number: int) -> None:
        """Opens the shared directories below `top`, which may be moved from then on."""
        self.prefix = f"t{number}-"
        flags = os.O_RDONLY | os.O_DIRECTORY
        self.directories = [os.open(top / f"d{it}", flags) for it in range(DIRECTORIES)]
        self.expected: dict[Place, Expected] = {}
        for directory in range(DIRECTORIES):
            for nth in range(LOWER_FILES):
                data = lower_data(directory, number, nth)
                file = Expected("file", bytearray(data), lower_data=data)
                self.expected[Place(directory, f"{self.prefix}low{nth}")] = file
            inner = {f"x{nth}": bytearray(b"inner") for nth in range(LOWER_ENTRIES)}
            found = Expected("directory", mode=0o755, entries=inner)
            self.expected[Place(directory, f"{self.prefix}dir")] = found

    def of_kind(self, kinds: Sequence[Kind]) -> list[Place]:
        return [place for place, it in self.expected.items() if it.kind in kinds]

    def path(self, place: Place) -> str:
        """A path for calls that take no descriptor of a directory."""
        return f"/proc/self/fd/{self.directories[place.directory]}/{place.name}"

    def open(self, place: Place, flags: int, mode: int = 0o644) -> int:
        return os.open(place.name, flags, mode, dir_fd=self.directories[place.directory])

    def removed(self, place: Place) -> None:
        """Strike a name out, which may be nobody's."""
        if gone := self.expected.pop(place, None):
            gone.links -= gone.kind == "file"

    def moved(self, old: Place, new: Place) -> None:
        """What rename(2) does: nothing when both are names of one file."""
        if self.expected[old] is not self.expected.get(new):
            self.removed(new)
            self.expected[new] = self.expected.pop(old)

    def check(self, place: Place, when: str) -> None:
        """Look a name up; it is there as expected, or it is not there."""
        expected = self.expected.get(place)
        directory = self.directories[place.directory]
        try:
            found = os.stat(place.name, dir_fd=directory, follow_symlinks=False)
        except FileNotFoundError:
            assert expected is None, (when, place, "is gone", expected)
            return
        assert expected is not None, (when, place, "is there", found)
        expected.check(found, (when, place))

    def check_content(self, place: Place, when: str) -> None:
        """Read a file, a link's target or a directory with its files; and extended attributes."""
        expected = self.expected[place]
        if expected.kind == "symlink":
            target = os.readlink(place.name, dir_fd=self.directories[place.directory])
            assert target.encode() == expected.data, (when, place, target)
            return
        fd = self.open(place, os.O_RDONLY)
        try:
            if expected.kind == "directory":
                _check_entries(fd, expected, (when, place))
            else:
                found = _read(fd)
                assert found == expected.data, (when, place, *_difference(found, expected.data))
        finally:
            os.close(fd)
        path = self.path(place)
        attributes = {it: os.getxattr(path, it) for it in os.listxattr(path)}
        assert attributes == expected.attributes, (when, place, attributes, expected.attributes)

    def check_list(self, directory: int) -> None:
        names = os.listdir(self.directories[directory])
        found = sorted(it for it in names if it.startswith(self.prefix))
        known = sorted(it.name for it in self.expected if it.directory == directory)
        assert found == known, ("list", directory, set(found) ^ set(known), found)

    def check_all(self) -> None:
        for directory in range(DIRECTORIES):
            self.check_list(directory)
        for place in self.expected:
            self.check(place, "at the end")
            self.check_content(place, "at the end")


def lower_data(directory: int, program: int, nth: int) -> bytes:
    return f"lower {directory} {program} {nth}\n".encode() * 200


def fill(top: Path, programs: int) -> None:
    """Make what so many programs find in the lower layer, and places to move directories to."""
    for directory in range(DIRECTORIES):
        above = top / f"d{directory}"
        above.mkdir()
        for program in range(programs):
            for nth in range(LOWER_FILES):
                data = lower_data(directory, program, nth)
                _write(above / f"t{program}-low{nth}", data)
            inner = above / f"t{program}-dir"
            inner.mkdir()
            inner.chmod(0o755)
            for nth in range(LOWER_ENTRIES):
                _write(inner / f"x{nth}", b"inner")
    (top / "a").mkdir()
    (top / "b").mkdir()


def _write(file: Path, data: bytes) -> None:
    file.write_bytes(data)
    file.chmod(0o644)


def _read(fd: int) -> bytes:
    found = b""
    while part := os.read(fd, 1 << 20):
        found += part
    return found


def _difference(found: bytes, known: bytes | bytearray) -> tuple[object, ...]:
    """Say where two contents that are not equal begin to differ."""
    pairs = enumerate(zip(found, known, strict=False))
    first = next((at for at, (one, other) in pairs if one != other), "the shorter one's end")
    return len(found), "bytes, not", len(known), "other from", first


def _check_entries(fd: int, expected: Expected, when: object) -> None:
    names = sorted(os.listdir(fd))
    assert names == sorted(expected.entries), (when, "lists", names, sorted(expected.entries))
    for name, data in expected.entries.items():
        inner = os.open(name, os.O_RDONLY, dir_fd=fd)
        try:
            found = _read(inner)
        finally:
            os.close(inner)
        assert found == data, (when, name, found[:20], bytes(data[:20]))
