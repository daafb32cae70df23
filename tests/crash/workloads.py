"""Programs that notice the least failure: WORKLOAD DIRECTORY SEED. Each works until its standard
input ends, then prints how many turns it made, and exits 0. The first system call that fails, or
content that is not as expected, ends it with a traceback.

They know nothing of what is under them; tests run them on snapshots whose daemons are being killed.
"""

from __future__ import annotations

import fcntl
import itertools
import mmap
import os
import random
import select
import shutil
import sqlite3
import stat
import struct
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

FILES = 40
FILE_BYTES = 256 * 1024


def content(seed: int, size: int) -> bytes:
    return random.Random(seed).randbytes(size)


def fill(layer: Path) -> None:
    """Make what the workloads find below them: a tree whose contents tell their own names."""
    for number in range(FILES):
        place = layer / "base" / f"d{number % 5}" / f"e{number % 3}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"f{number}").write_bytes(content(number, 1000 + number))
        (place / f"l{number}").symlink_to(f"f{number}")


class Names:
    """Creates, links, moves and removes, and knows what must be there."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.here = here
        self.dice = dice
        self.files: dict[str, bytes] = {}
        self.directories: list[str] = []
        self.numbers = itertools.count()
        self.past: list[tuple[str, ...]] = []
        """What was done, for who has to find out why something is missing."""
        self.here.mkdir()

    def turn(self) -> None:
        for _ in range(20):
            self.dice.choice((self.create, self.remove, self.move, self.link, self.attribute))()
        self.directory()
        self.check()

    def fresh(self) -> str:
        above = self.dice.choice(["", *(f"{it}/" for it in self.directories)])
        return f"{above}n{next(self.numbers)}"

    def create(self) -> None:
        name = self.fresh()
        with (self.here / name).open("xb") as file:
            file.write(name.encode())
        self.files[name] = name.encode()
        self.past.append(("create", name))

    def remove(self) -> None:
        if self.files:
            name = self.dice.choice(list(self.files))
            (self.here / name).unlink()
            del self.files[name]
            self.past.append(("remove", name))

    def move(self) -> None:
        if len(self.files) > 1:
            old, new = self.dice.sample(list(self.files), 2)
            new = self.dice.choice((new, self.fresh()))
            if not (self.here / old).samefile(self.here / new) if new in self.files else True:
                (self.here / old).rename(self.here / new)
                self.files[new] = self.files.pop(old)
                self.past.append(("move", old, new))

    def link(self) -> None:
        if self.files:
            old, new = self.dice.choice(list(self.files)), self.fresh()
            os.link(self.here / old, self.here / new)
            self.files[new] = self.files[old]
            self.past.append(("link", old, new))

    def attribute(self) -> None:
        if self.files:
            path = self.here / self.dice.choice(list(self.files))
            name = f"user.a{next(self.numbers)}"
            os.setxattr(path, name, b"1", os.XATTR_CREATE)
            assert os.getxattr(path, name) == b"1"
            os.removexattr(path, name)

    def directory(self) -> None:
        name = f"d{next(self.numbers)}"
        (self.here / name).mkdir()
        moved = f"m{next(self.numbers)}"
        (self.here / name).rename(self.here / moved)
        if len(self.directories) < 3:
            self.directories.append(moved)
        else:
            (self.here / moved).rmdir()

    def check(self) -> None:
        found = {
            str((Path(above) / name).relative_to(self.here))
            for above, _, names in os.walk(self.here)
            for name in names
        }
        missing, unknown = set(self.files) - found, found - set(self.files)
        assert not missing | unknown, f"missing {missing}, unknown {unknown}: {self.past[-30:]}"
        for name in self.dice.sample(list(self.files), min(5, len(self.files))):
            assert (self.here / name).read_bytes() == self.files[name]


class RandomAccess:
    """Reads and writes at random places, with what must come of it in memory (fsx)."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.dice = dice
        self.path = here
        self.expected = bytearray()
        self.fd = os.open(here, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600)

    def turn(self) -> None:
        for _ in range(20):
            self.dice.choice((self.write, self.read, self.cut, self.reserve))()
        assert os.fstat(self.fd).st_size == len(self.expected)
        assert self.path.read_bytes() == self.expected

    def place(self) -> tuple[int, int]:
        return self.dice.randrange(FILE_BYTES), self.dice.randrange(1, 20_000)

    def write(self) -> None:
        at, size = self.place()
        data = self.dice.randbytes(size)
        assert os.pwrite(self.fd, data, at) == size
        self.grow(at + size)
        self.expected[at : at + size] = data

    def grow(self, size: int) -> None:
        self.expected.extend(bytes(max(0, size - len(self.expected))))

    def read(self) -> None:
        at, size = self.place()
        assert os.pread(self.fd, size, at) == self.expected[at : at + size]

    def cut(self) -> None:
        size = self.dice.randrange(FILE_BYTES)
        os.ftruncate(self.fd, size)
        del self.expected[size:]
        self.grow(size)

    def reserve(self) -> None:
        at, size = self.place()
        os.posix_fallocate(self.fd, at, size)
        self.grow(at + size)


class Unlinked(RandomAccess):
    """The same on a file that has lost its name."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        super().__init__(here, dice)
        here.unlink()

    def turn(self) -> None:
        for _ in range(20):
            self.dice.choice((self.write, self.read, self.cut))()
        found = os.fstat(self.fd)
        assert (found.st_size, found.st_nlink) == (len(self.expected), 0)


class Mapping:
    """Writes a file through a shared mapping and reads it back by another way."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.dice = dice
        self.path = here
        self.fd = os.open(here, os.O_RDWR | os.O_CREAT, 0o600)
        os.ftruncate(self.fd, FILE_BYTES)
        self.map = mmap.mmap(self.fd, FILE_BYTES)

    def turn(self) -> None:
        for _ in range(10):
            at = self.dice.randrange(FILE_BYTES - 4096)
            data = self.dice.randbytes(4096)
            self.map[at : at + 4096] = data
            assert os.pread(self.fd, 4096, at) == data
        self.map.flush()
        assert self.path.read_bytes() == self.map[:]


class Database:
    """SQLite with a write-ahead log."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.database = sqlite3.connect(here, timeout=60, isolation_level=None)
        assert self.database.execute("pragma journal_mode=wal").fetchone() == ("wal",)
        self.database.execute("create table t (n integer primary key, v blob)")
        self.count = 0

    def turn(self) -> None:
        self.database.execute("begin")
        for _ in range(20):
            self.count += 1
            self.database.execute("insert into t values (?, ?)", (self.count, bytes(500)))
        self.database.execute("commit")
        assert (
            self.database.execute("select count(*), max(n) from t").fetchone() == (self.count,) * 2
        )
        if self.count % 200 == 0:
            assert self.database.execute("pragma integrity_check").fetchone() == ("ok",)
            self.database.execute("pragma wal_checkpoint(truncate)")


class Git:
    """Commits, and asks git whether all is well."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.here = here
        self.dice = dice
        self.count = 0
        here.mkdir()
        self.git("init", "-q")

    def git(self, *arguments: str) -> str:
        command = ["git", "-c", "user.name=n", "-c", "user.email=e@example.org", *arguments]
        done = subprocess.run(command, cwd=self.here, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{arguments}: {done.stderr}"
        return done.stdout

    def turn(self) -> None:
        self.count += 1
        for number in range(5):
            (self.here / f"f{number}").write_bytes(self.dice.randbytes(2000))
        self.git("add", "-A")
        self.git("commit", "-q", "-m", f"turn {self.count}")
        assert self.git("status", "--porcelain") == ""
        assert int(self.git("rev-list", "--count", "HEAD")) == self.count
        self.git("fsck", "--strict")


class Archive:
    """Unpacks an archive, compares, removes it all."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.here = here
        self.archive = Path(os.environ["ARCHIVES"]) / f"{here.name}.tar"
        source = self.archive.with_suffix(".d")
        fill(source)
        with tarfile.open(self.archive, "w") as archive:
            archive.add(source, "tree")

    def turn(self) -> None:
        self.here.mkdir()
        for command in ("-xf", "-df"):
            done = subprocess.run(
                ["tar", command, self.archive, "-C", self.here], capture_output=True, text=True
            )
            assert done.returncode == 0, f"tar {command}: {done.stderr}"
        shutil.rmtree(self.here)


class Walk:
    """Walks what was there from the beginning, from a working directory in it, and reads it."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        os.chdir(here.parent / "base" / "d1")
        self.kept = [os.open(f"e1/f{n}", os.O_RDONLY) for n in range(FILES) if n % 15 == 1]

    def turn(self) -> None:
        seen = 0
        for above, _, names in os.walk(".."):
            for name in names:
                path, number = os.path.join(above, name), int(name[1:])
                found = os.lstat(path)
                if name.startswith("l"):
                    assert os.readlink(path) == f"f{number}"
                    continue
                assert stat.S_ISREG(found.st_mode)
                assert found.st_size == 1000 + number
                assert Path(path).read_bytes() == content(number, 1000 + number)
                seen += 1
        assert seen == FILES, f"{seen} of {FILES} files are listed"
        for fd in self.kept:
            assert os.fstat(fd).st_nlink == 1
            assert len(os.pread(fd, 5000, 0)) == os.fstat(fd).st_size


class Touch:
    """Copies files up while others read them, once each, in a tree of its own."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        self.here = here
        self.dice = dice
        here.mkdir()
        self.count = 0

    def turn(self) -> None:
        self.count += 1
        path = self.here / f"log{self.count % 3}"
        lines = path.read_bytes().count(b"\n") if path.exists() else 0
        for number in range(5):
            with path.open("ab", buffering=0) as log:
                assert log.write(b"%d\n" % (lines + number)) > 1
            path.chmod(0o600 + number)
            os.utime(path, ns=(number, number))
            found = path.stat()
            assert (stat.S_IMODE(found.st_mode), found.st_mtime_ns) == (0o600 + number, number)
        assert path.read_bytes().split() == [b"%d" % n for n in range(lines + 5)]


class Locks:
    """Holds a lock of each kind while others try to get it, and gives it to them."""

    def __init__(self, here: Path, dice: random.Random) -> None:
        here.write_bytes(b"locked")
        self.one, self.two = (os.open(here, os.O_RDWR) for _ in range(2))

    def turn(self) -> None:
        for lock in (fcntl.flock, _lock_description):
            lock(self.one, fcntl.LOCK_EX)
            for _ in range(20):
                assert not _is_got(lambda lock=lock: lock(self.two, _TRY))  # type: ignore[misc]
            lock(self.one, fcntl.LOCK_UN)
            lock(self.two, _TRY)
            lock(self.two, fcntl.LOCK_UN)
        fcntl.lockf(self.one, fcntl.LOCK_EX)
        assert not self.another_gets_it()
        fcntl.lockf(self.one, fcntl.LOCK_UN)
        assert self.another_gets_it()

    def another_gets_it(self) -> bool:
        """Whether another process gets the lock of fcntl(2), which a process has once."""
        child = os.fork()
        if not child:
            try:
                os._exit(0 if _is_got(lambda: fcntl.lockf(self.two, _TRY)) else 1)
            finally:
                os._exit(2)
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        assert status in (0, 1), f"exit status {status}"
        return status == 0


_TRY = fcntl.LOCK_EX | fcntl.LOCK_NB


def _lock_description(fd: int, operation: int) -> None:
    kind = fcntl.F_UNLCK if operation == fcntl.LOCK_UN else fcntl.F_WRLCK
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, struct.pack("hhqqi4x", kind, os.SEEK_SET, 0, 0, 0))


def _is_got(lock: Callable[[], None]) -> bool:
    try:
        lock()
    except BlockingIOError:
        return False
    return True


class User:
    """An ordinary user who makes set-id programs and writes to them, and may not change root's."""

    NUMBER = 1000

    def __init__(self, here: Path, dice: random.Random) -> None:
        here.mkdir()
        os.chown(here, self.NUMBER, self.NUMBER)
        os.chdir(here)
        os.setgroups([])
        os.setresgid(self.NUMBER, self.NUMBER, self.NUMBER)
        os.setresuid(self.NUMBER, self.NUMBER, self.NUMBER)

    def turn(self) -> None:
        path = Path("program")
        with path.open("xb", buffering=0) as file:
            found = os.fstat(file.fileno())
            assert (found.st_uid, found.st_gid) == (self.NUMBER, self.NUMBER)
            for number in range(5):
                path.chmod(0o6755)
                assert stat.S_IMODE(path.stat().st_mode) == 0o6755
                assert file.write(b"%d" % number) == 1
                assert stat.S_IMODE(path.stat().st_mode) == 0o755
        assert path.read_bytes() == b"01234"
        path.unlink()
        others = Path("..", "base", "d1", "e1", "f1")
        assert others.read_bytes() == content(1, 1001)
        for change in (lambda: others.open("r+b"), lambda: others.chmod(0o777), others.unlink):
            try:
                change()
            except PermissionError:
                continue
            raise AssertionError("what is root's was changed")


WORKLOADS: dict[str, Callable[[Path, random.Random], object]] = {
    "names": Names,
    "random": RandomAccess,
    "unlinked": Unlinked,
    "mapping": Mapping,
    "sqlite": Database,
    "git": Git,
    "untar": Archive,
    "walk": Walk,
    "append": Touch,
    "locks": Locks,
    "user": User,
}
READING = ("walk",)
"""Those that change nothing."""


def turns(name: str, directory: Path, seed: int) -> Iterator[None]:
    workload = WORKLOADS[name](directory / f"{name}-{seed}", random.Random(seed))
    while True:
        try:
            workload.turn()  # type: ignore[attr-defined]
        except OSError:
            print("last done:", getattr(workload, "past", [])[-60:], file=sys.stderr)
            raise
        yield


def main() -> None:
    name, directory, seed = sys.argv[1:]
    os.umask(0)
    done = 0
    for _ in turns(name, Path(directory), int(seed)):
        done += 1
        if select.select([sys.stdin], [], [], 0)[0]:
            break
    print(done)


if __name__ == "__main__":
    main()
