"""A disk that records writes: `python -m tests.support.recorded_disk POINT IMAGE LOG FAULT`.

POINT/disk shows IMAGE, past the page cache, for a loop device. Each write and each flush is
appended to LOG when it has been done, so the length of LOG is a moment in the life of the disk.
While the file FAULT exists, what it names fails: a word each of `write`, `flush`, `read`, with EIO.
"""

from __future__ import annotations

import errno
import os
import signal
import stat
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import trio

import pyfuse3  # isort: skip

TOP, DISK = pyfuse3.ROOT_INODE, 2
ROOT = Path(__file__).parents[2]
NAME = b"disk"
_HEADER = struct.Struct("=QI")
_FLUSH = 0xFFFFFFFF
"""In place of a length."""


class _Disk(pyfuse3.Operations):
    def __init__(self, image: Path, log: Path, fault: Path) -> None:
        super().__init__()
        self._fd = os.open(image, os.O_RDWR)
        self._log = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        self._fault = fault

    async def lookup(
        self, parent_inode: int, name: bytes, ctx: pyfuse3.RequestContext
    ) -> pyfuse3.EntryAttributes:
        if name != NAME:
            raise pyfuse3.FUSEError(errno.ENOENT)
        return await self.getattr(DISK, ctx)

    async def getattr(
        self, inode: int, ctx: pyfuse3.RequestContext | None = None
    ) -> pyfuse3.EntryAttributes:
        entry = pyfuse3.EntryAttributes()
        entry.st_ino = inode
        entry.st_nlink = 1
        entry.st_mode = stat.S_IFDIR | 0o700 if inode == TOP else stat.S_IFREG | 0o600
        entry.st_size = 0 if inode == TOP else os.fstat(self._fd).st_size
        entry.entry_timeout = entry.attr_timeout = 1000
        return entry

    async def open(self, inode: int, flags: int, ctx: pyfuse3.RequestContext) -> pyfuse3.FileInfo:
        return pyfuse3.FileInfo(fh=1, direct_io=True)

    async def read(self, fh: int, off: int, size: int) -> bytes:
        self._check("read")
        return os.pread(self._fd, size, off)

    async def write(self, fh: int, off: int, buf: bytes) -> int:
        self._check("write")
        os.pwrite(self._fd, buf, off)
        os.write(self._log, _HEADER.pack(off, len(buf)) + buf)
        return len(buf)

    async def fsync(self, fh: int, datasync: bool) -> None:
        self._check("flush")
        os.write(self._log, _HEADER.pack(0, _FLUSH))

    async def flush(self, fh: int) -> None:
        """Closing is no flush of a disk."""

    def _check(self, what: str) -> None:
        with suppress(FileNotFoundError):
            if what in self._fault.read_text().split():
                raise pyfuse3.FUSEError(errno.EIO)


def main(mountpoint: str, image: str, log: str, fault: str) -> None:
    disk = _Disk(Path(image), Path(log), Path(fault))
    pyfuse3.init(disk, mountpoint, {"fsname=recorded"})
    try:
        trio.run(pyfuse3.main)
    finally:
        pyfuse3.close(unmount=True)


@dataclass(frozen=True, slots=True)
class Write:
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Flush:
    """All writes before it are durable."""


@dataclass(frozen=True, slots=True)
class Recorded:
    """One entry of a log, and the length of the log once it was done."""

    end: int
    what: Write | Flush


def recorded(log: Path) -> Iterator[Recorded]:
    """Yield the entries of a log."""
    raw, at = log.read_bytes(), 0
    while at < len(raw):
        offset, length = _HEADER.unpack_from(raw, at)
        at += _HEADER.size
        if length == _FLUSH:
            yield Recorded(at, Flush())
        else:
            yield Recorded(at + length, Write(offset, raw[at : at + length]))
            at += length


class RecordedDisk:
    """A disk that is attached: a loop device over a file that records."""

    def __init__(self, device: Path, log: Path, fault: Path, server: int) -> None:
        """`server` is the process that answers."""
        self.device = device
        self.log = log
        self._fault = fault
        self._server = server

    @property
    def now(self) -> int:
        """The present moment."""
        return self.log.stat().st_size

    @contextmanager
    def failing(self, *what: str) -> Iterator[None]:
        """Let `write`, `flush` or `read` fail for the block."""
        draft = self._fault.with_suffix(".new")
        draft.write_text(" ".join(what))
        draft.rename(self._fault)
        try:
            yield
        finally:
            self._fault.unlink()

    @contextmanager
    def silent(self) -> Iterator[None]:
        """Answer nothing for the block: who reads or writes waits for its end."""
        os.kill(self._server, signal.SIGSTOP)
        try:
            yield
        finally:
            os.kill(self._server, signal.SIGCONT)


@contextmanager
def attached(image: Path, base: Path) -> Iterator[RecordedDisk]:
    """Attach the image file `image` as a disk for the block; `base` is for files of ours."""
    point, log, fault = base / "recorder", base / "log", base / "fault"
    point.mkdir()
    log.touch()
    arguments = [str(it) for it in (point, image, log, fault)]
    with ExitStack() as stack:
        process = subprocess.Popen([sys.executable, "-m", __name__, *arguments], cwd=ROOT)
        stack.callback(process.wait, 20)
        stack.callback(_run, "umount", "-l", point)
        end = time.monotonic() + 30
        while not (point / NAME.decode()).exists():
            assert process.poll() is None, "the recorder ended"
            assert time.monotonic() < end, "the recorder does not begin"
            time.sleep(0.01)
        device = _run("losetup", "--show", "-f", point / NAME.decode())
        stack.callback(_run, "losetup", "-d", device)
        yield RecordedDisk(Path(device), log, fault, process.pid)


def small_disk(base: Path) -> tuple[Path, Path]:
    """Make an image of ext4 below `base`; return it and an empty directory, for `attached`."""
    image, own = base / "image", base / "recorded"
    own.mkdir()
    with image.open("wb") as file:
        file.truncate(64 << 20)
    subprocess.run(["mkfs.ext4", "-q", image], check=True, timeout=60)
    return image, own


def _run(*command: str | Path) -> str:
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    return done.stdout.strip()


def rebuild(image: Path, writes: Sequence[Write]) -> None:
    """Do writes to an image file."""
    with image.open("r+b") as file:
        for write in writes:
            file.seek(write.offset)
            file.write(write.data)


if __name__ == "__main__":
    main(*sys.argv[1:])
