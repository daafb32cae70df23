"""A program that changes files without a pause and ends at the first error."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import eventually

WRITER = """
import os, sys
from pathlib import Path
place, turns, stop = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3])
log = open(place / "log", "a+b", buffering=0)
turn = 0
while not stop.exists():
    line = b"%08d\\n" % turn
    assert log.write(line) == len(line)
    assert os.pread(log.fileno(), len(line), turn * len(line)) == line
    new = place / "new"
    new.write_text(str(turn))
    new.rename(place / "current")
    assert (place / "current").read_text() == str(turn)
    (place / f"dir{turn}").mkdir()
    if turn % 20 == 0:
        os.fsync(log.fileno())
    if turn >= 10:
        (place / f"dir{turn - 10}").rmdir()
    turn += 1
    turns.write_text(str(turn))
assert (place / "log").stat().st_size == 9 * turn
"""


class Writer:
    """A program that changes files without a pause and ends with 1 at the first error."""

    def __init__(self, base: Path, target: Path) -> None:
        self._turns, self._stop = base / "turns", base / "stop"
        self._process = subprocess.Popen(
            [sys.executable, "-c", WRITER, target, self._turns, self._stop]
        )

    def must_go_on(self, turns: int = 5) -> None:
        """Return when it has made more turns since now."""
        wanted = self._count() + turns
        eventually(lambda: self._count() >= wanted, what="the writer's progress")
        assert self._process.poll() is None

    def end(self) -> None:
        self._stop.touch()
        assert self._process.wait(20) == 0

    def clean_up(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait(20)

    def _count(self) -> int:
        text = self._turns.read_text() if self._turns.exists() else ""
        return int(text or 0)


@contextmanager
def writing(base: Path, target: Path) -> Iterator[Writer]:
    writer = Writer(base, target)
    try:
        writer.must_go_on()
        yield writer
        writer.end()
    finally:
        writer.clean_up()
