"""Opens files, many and each for a moment, until its standard input ends; counts what fails.

    python -m tests.crash.opening TOP SEED

Prints the number of opens and each call that failed, with its errno.
"""

from __future__ import annotations

import errno
import os
import random
import select
import sys
from collections import Counter, deque
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Result = TypeVar("Result")

LOWER_FILES = 3500
UPPER_FILES = 300
DIRECTORIES = 20
MOST_HELD = 12
MOST_FAILURES = 20


def fill(top: Path) -> None:
    """Make the files of the lower layer, each of which says its name."""
    _fill(top, "l", LOWER_FILES)


def fill_upper(top: Path) -> None:
    """Make more in a mounted tree."""
    _fill(top, "u", UPPER_FILES)


def _fill(top: Path, kind: str, count: int) -> None:
    for number in range(count):
        path = top / _name(kind, number)
        path.parent.mkdir(exist_ok=True)
        path.write_text(path.name)


def _name(kind: str, number: int) -> str:
    return f"d{number % DIRECTORIES}/{kind}{number}"


class Opening:
    """Opens, reads, writes and closes; some files stay open for a while."""

    def __init__(self, top: str, seed: int) -> None:
        self.top = top
        self.dice = random.Random(seed)
        self.held: deque[tuple[int, str]] = deque()
        self.opens = 0
        self.failures: Counter[str] = Counter()

    def turn(self) -> None:
        name = self._pick()
        flags = os.O_RDWR if name[-1] in "0369" and "/u" in name else os.O_RDONLY
        fd = self._try("open", name, lambda: os.open(f"{self.top}/{name}", flags))
        if fd is None:
            return
        self.opens += 1
        self._check(fd, name)
        if flags == os.O_RDWR:
            self._try("write", name, lambda: os.pwrite(fd, name.partition("/")[2].encode(), 0))
        if self.dice.random() < 0.05:
            self.held.append((fd, name))
        else:
            self._try("close", name, lambda: os.close(fd))
        if len(self.held) > MOST_HELD:
            self._let_go()

    def end(self) -> None:
        while self.held:
            self._let_go()

    def _pick(self) -> str:
        if self.held and self.dice.random() < 0.1:
            return self.dice.choice(self.held)[1]
        kind, count = self.dice.choices([("l", LOWER_FILES), ("u", UPPER_FILES)], [4, 1])[0]
        few = 40 if self.dice.random() < 0.3 else count  # that programs have open at the same time
        return _name(kind, self.dice.randrange(few))

    def _let_go(self) -> None:
        fd, name = self.held.popleft()
        self._check(fd, name)
        self._try("close", name, lambda: os.close(fd))

    def _check(self, fd: int, name: str) -> None:
        found = self._try("read", name, lambda: os.pread(fd, 100, 0))
        if found is not None and found != name.partition("/")[2].encode():
            self.failures[f"read {name}: {found!r}"] += 1

    def _try(self, what: str, name: str, call: Callable[[], Result]) -> Result | None:
        try:
            return call()
        except OSError as error:
            self.failures[f"{what} {name}: {errno.errorcode[error.errno or 0]}"] += 1
            return None


def main() -> int:
    top, seed = sys.argv[1:]
    os.chdir(top)
    opening = Opening(".", int(seed))
    while opening.failures.total() < MOST_FAILURES:
        if select.select([0], [], [], 0)[0]:
            break
        for _ in range(20):
            opening.turn()
    opening.end()
    print(opening.opens)
    for failure, times in opening.failures.items():
        print(f"{failure}, {times} times")
    return bool(opening.failures)


if __name__ == "__main__":
    sys.exit(main())
