"""Another process at a store, for tests: `python -m tests.store.child COMMAND PATH [ARGUMENT]`.

It prints what it found, one line each, and flushes; it takes orders as lines on standard input.
"""

from __future__ import annotations

import os
import sys
import threading
from pathlib import Path

from snapfs.model import SnapfsError
from snapfs.store import ReadStore, Store, inspection
from tests.store.kit import DOCS, SCOPE, TABLES, Doc


def say(text: object) -> None:
    os.write(1, f"{text}\n".encode())  # one write, so that threads' lines stay whole


def hold(path: Path) -> None:
    """Be the writer until told otherwise."""
    with Store.open(path, TABLES):
        say("open")
        sys.stdin.readline()


def write(path: Path, threads: int = 4) -> None:
    """Create docs from many threads, saying the name of each once it is acknowledged."""
    store = Store.open(path, TABLES, map_size_bytes=1 << 20)

    def work(thread: int) -> None:
        number = 0
        while True:
            name = f"{thread}-{number}"
            row = store.update(lambda tx, name=name: tx.create(DOCS, SCOPE, name, Doc("x" * 500)))
            say(f"{row.name} {row.mod_rev}")
            number += 1

    for thread in range(threads):
        threading.Thread(target=work, args=(thread,), daemon=True).start()
    sys.stdin.readline()


def read(path: Path) -> None:
    """Answer each line with the number of docs, checking that what is seen is consistent."""
    with ReadStore.open(path, TABLES) as store:
        for _ in sys.stdin:
            with store.view() as tx:
                revisions = [row.mod_rev for row in tx.rows(DOCS, SCOPE)]
                assert max(revisions, default=0) <= tx.revision
                assert all(tx.get(DOCS, SCOPE, row.name) == row for row in tx.rows(DOCS, SCOPE))
                say(f"{len(revisions)} {tx.revision}")


def stay(path: Path) -> None:
    """Keep a view open until killed."""
    with ReadStore.open(path, TABLES) as store, store.view() as tx:
        say(tx.revision)
        sys.stdin.readline()


def stranger(path: Path) -> None:
    """Try to read as a user who may not."""
    os.seteuid(65534)
    try:
        ReadStore.open(path, TABLES)
    except SnapfsError as error:
        say(f"{type(error).__name__} {error}")


def damage(path: Path) -> None:
    """Open and read all there is of each store named on standard input, and say how it went.

    `ok` and the number of rows, or the class of the refusal. Anything else is an ended process.
    """
    for line in sys.stdin:
        say(_try(Path(line.strip())))


def _try(path: Path) -> str:
    before = (path / inspection.DATA_FILE).read_bytes()
    try:
        with Store.open(path, TABLES) as store:
            problems = store.check()
            before = b""
            return f"{_read_all(store)} problems={len(problems)}"
    except SnapfsError as error:
        named = str(path) in str(error) or "run `snapfs fsck`" in str(error)
        return f"refused {type(error).__name__}" if named else f"unclear {error}"
    finally:
        if before:
            assert (path / inspection.DATA_FILE).read_bytes() == before
            assert [entry.name for entry in path.iterdir()] == [inspection.DATA_FILE]


def _read_all(store: Store) -> str:
    try:
        with store.view() as tx:
            rows = list(tx.rows(DOCS, SCOPE))
            list(tx.events(tx.compacted_revision))
            list(tx.intents())
    except SnapfsError as error:
        return f"unread {type(error).__name__}"
    wrong = [row.name for row in rows if row.body.text != f"text of {row.name}"]
    return f"wrong {wrong}" if wrong else f"ok {len(rows)}"


if __name__ == "__main__":
    commands = (hold, write, read, stay, stranger, damage)
    {command.__name__: command for command in commands}[sys.argv[1]](Path(sys.argv[2]))
