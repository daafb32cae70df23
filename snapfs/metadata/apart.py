"""A mark in a process of its own: beside the writer, on a read transaction of its own.

    stdin     the request
    stdout    how much was found; only when all of it was
    RESULT    descriptor of a file without a name: arrays, which are read where they lie
    LIFE      descriptor of a pipe that ends when the service does, and the other process with it

One that is killed leaves a slot in the store's table of readers, which is freed at once.
"""

from __future__ import annotations

import gc
import mmap
import os
import subprocess
import sys
import threading
import time
from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, BinaryIO, cast

import msgspec
import structlog

from snapfs import anchors
from snapfs.metadata import graph, marking
from snapfs.metadata.collectibles import External, Externals, Place
from snapfs.metadata.marking import Found, Marks
from snapfs.metadata.schema import TABLES
from snapfs.model import DeadlineExceeded, SnapfsError, Unavailable
from snapfs.store import ReadStore, Store, Table

DEADLINE_S = 600.0
"""For a mark, which takes some ten seconds for a million rows."""

LOOK_S = 0.2
"""The log of 10,000 revisions is not cut within it, however fast they come."""

COMMAND = (sys.executable, "-P", "-m", "snapfs.metadata.apart")

NICE = 10
"""The writers that it is to spare come first when processors are few."""

_SHOWN_BYTES = 500
_NUMBER_BYTES = 8


class _Request(msgspec.Struct, frozen=True):
    path: str
    now_ns: int
    batch: int
    found: list[tuple[str, External]]
    alive: list[Place]


class _Head(msgspec.Struct, frozen=True):
    revision: int
    marks: int
    garbage: int
    batches: int
    alive: list[Place]


def find(
    store: Store,
    now_ns: int,
    externals: Externals,
    *,
    batch: int,
    meanwhile: Callable[[], object] = lambda: None,
) -> Found:
    """Do what `marking.find` does, in another process; call `meanwhile` every LOOK_S until then.

    Raises what that raises; Unavailable when it fails, with what it said, and DeadlineExceeded.
    """
    request = _Request(os.fspath(store.path), now_ns, batch, externals.found, list(externals.alive))
    with _nameless() as asked, _nameless() as answer:
        asked.write(msgspec.msgpack.encode(request))
        asked.seek(0)
        said = _run(store, asked.fileno(), answer.fileno(), meanwhile)
        head = msgspec.msgpack.decode(said, type=_Head)
        externals.alive.update(head.alive)
        return _read(head, answer)


def _nameless() -> BinaryIO:
    """Return a file in memory."""
    return os.fdopen(os.memfd_create("snapfs-marks", os.MFD_CLOEXEC), "w+b")


def _read(head: _Head, file: BinaryIO) -> Found:
    size = os.fstat(file.fileno()).st_size
    if not size:
        return Found(head.revision, Marks((), b""), (), ())
    left = memoryview(mmap.mmap(file.fileno(), size, prot=mmap.PROT_READ))

    def numbers(count: int) -> Sequence[int]:
        nonlocal left
        found, left = left[: _NUMBER_BYTES * count], left[_NUMBER_BYTES * count :]
        return cast(Sequence[int], found.cast("Q"))

    oids, garbage, ends = numbers(head.marks), numbers(head.garbage), numbers(head.batches)
    return Found(head.revision, Marks(oids, left), garbage, ends)


def _run(store: Store, request: int, result: int, meanwhile: Callable[[], object]) -> bytes:
    """Have the other process fill `result`, and return what it says of it."""
    theirs, life = os.pipe()
    try:
        process = _start(request, result, theirs)
        with process:
            try:
                said, why = _await(process, meanwhile)
            except BaseException:
                process.kill()
                raise
    finally:
        os.close(theirs)
        os.close(life)
        store.forget_dead_readers()
    if process.returncode:
        last = why[-_SHOWN_BYTES:].decode(errors="replace").strip().rpartition("\n")[2]
        raise Unavailable(
            f"the process that marks what is alive ended with {process.returncode}: "
            f"{last or 'it was killed'}"
        )
    return said


def _await(
    process: subprocess.Popen[bytes], meanwhile: Callable[[], object]
) -> tuple[bytes, bytes]:
    end_s = time.monotonic() + DEADLINE_S
    while time.monotonic() < end_s:
        try:
            return process.communicate(timeout=LOOK_S)
        except subprocess.TimeoutExpired:
            meanwhile()
    raise DeadlineExceeded(f"what is alive was not marked within {DEADLINE_S:.0f} s")


def _start(request: int, result: int, life: int) -> subprocess.Popen[bytes]:
    try:
        return subprocess.Popen(
            [*COMMAND, str(result), str(life)],
            stdin=request,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=(result, life),
            cwd="/",
        )
    except OSError as error:
        raise Unavailable(f"no process can be started to mark what is alive: {error}") from error


def main(result: str, life: str) -> None:
    """Be the other process."""
    os.nice(NICE)
    structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
    gc.disable()  # what is made stays to the end
    graph.be_alone()
    threading.Thread(target=_end_with, args=(int(life),), daemon=True).start()
    request = msgspec.msgpack.decode(sys.stdin.buffer.read(), type=_Request)
    externals = Externals.of(request.found, request.alive)
    tables: tuple[Table[Any], ...] = (*anchors.TABLES, *TABLES)
    with ReadStore.open(Path(request.path), tables) as store, store.view() as tx:
        found = marking.find(tx, request.now_ns, externals, batch=request.batch)
    with os.fdopen(int(result), "wb") as file:
        for numbers in (found.marks.oids, found.garbage, found.ends):
            array("Q", numbers).tofile(file)
        file.write(bytes(found.marks.marks))
    counts = (len(found.marks.oids), len(found.garbage), len(found.ends))
    head = _Head(found.revision, *counts, list(externals.alive))
    sys.stdout.buffer.write(msgspec.msgpack.encode(head))
    sys.stdout.buffer.flush()
    os._exit(0)  # without taking apart, row by row, what ends now


def _end_with(life: int) -> None:
    os.read(life, 1)
    os._exit(1)


if __name__ == "__main__":
    try:
        main(*sys.argv[1:])
    except (SnapfsError, OSError) as error:
        sys.exit(str(error))
