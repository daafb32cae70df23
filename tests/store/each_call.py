"""Updates of an open store of which each call fails in turn, with readers and a watch beside them.

    python -m tests.store.each_call PATH HOW

HOW is `EIO`, `ENOSPC` or `EDQUOT`, with `+` when the calls after the failing one fail too, with `!`
when moreover that one was done all the same. Started with the library of
tests.support.failing_calls. What was refused must not be there and what was acknowledged must, for
who reads in this process meanwhile, in another one, and by the watch. With room again the same
update succeeds, in the same open store; after EIO once it was opened again, and where a commit may
have been done, which then stays as readers were shown it.
"""

from __future__ import annotations

import errno
import json
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.model import DataLoss, ResourceExhausted, Unavailable
from snapfs.store import RowCreated, Store, Watch
from tests.store.kit import DOCS, SCOPE, TABLES, Doc, child
from tests.support import failing_calls

MOST_CALLS = 200
REFUSALS = (ResourceExhausted, DataLoss)


class Failing:
    """What was acknowledged so far, and how often something was refused."""

    def __init__(self, path: Path, how: str) -> None:
        self.path = path
        self.error = getattr(errno, how.rstrip("+!"))
        self.onwards = how.endswith("+")
        self.expected: list[str] = []
        self.refused = self.done = 0

    def add(self, store: Store, name: str) -> None:
        store.update(lambda tx: tx.create(DOCS, SCOPE, name, Doc("x" * 3000)))
        self.expected.append(name)

    def attempt(self, store: Store, at: int) -> bool:
        """Let the `at`th call of an update fail; say whether it made so many."""
        failing_calls.fail(self.path, at, self.error, onwards=self.onwards)
        try:
            self.add(store, f"{at:03}")
            self.done += 1
        except REFUSALS:
            self.refused += 1
        assert names(store) == self.expected, f"call {at}"
        was_reached = failing_calls.counted() >= at
        failing_calls.fail(self.path, 0, 0, onwards=False)
        return was_reached


def names(store: Store) -> list[str]:
    with store.view() as tx:
        return [row.name for row in tx.rows(DOCS, SCOPE)]


@contextmanager
def reading(store: Store) -> Iterator[None]:
    """Read all the time beside the block, which fails if that fails."""
    stop, failures = threading.Event(), []

    def read(held_s: float) -> None:
        while not stop.wait(0.001):  # else updates wait for the interpreter's lock
            try:
                with store.view():
                    stop.wait(held_s)
            except Exception as error:
                failures.append(error)
                raise

    threads = [threading.Thread(target=read, args=(it,)) for it in (0.0, 0.01, 0.1)]
    for thread in threads:
        thread.start()
    try:
        yield
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    assert failures == []


@contextmanager
def read_elsewhere(failing: Failing) -> Iterator[None]:
    """Have another process read, before and after the block."""
    with child("read", str(failing.path)) as reader:
        assert reader.stdin is not None
        assert reader.stdout is not None
        for _ in range(2):
            print(file=reader.stdin, flush=True)
            count, _, _ = reader.stdout.readline().partition(" ")
            assert int(count) == len(failing.expected)
            if not failing.refused:
                yield
        reader.stdin.close()


def one_after_the_other(failing: Failing, store: Store, watch: Watch) -> None:
    """Fail each call for want of space."""
    for at in range(1, MOST_CALLS):
        if not failing.attempt(store, at):
            break
        failing.add(store, f"{at:03} again")
    seen: list[str] = []
    while len(seen) < len(failing.expected):
        news = watch.take(10.0).events
        assert news, "the watch is lost"
        seen += [event.row.name for event in news if isinstance(event, RowCreated)]
    assert seen == failing.expected
    assert store.check() == []


def doubtful(failing: Failing) -> None:
    """Let calls of an update say that they failed; count how often that ended the updates."""
    reached = 0
    for at in range(1, MOST_CALLS):
        with Store.open(failing.path, TABLES) as store, reading(store):
            assert names(store) == failing.expected
            failing_calls.lie(failing.path, at, failing.error)
            try:
                failing.add(store, f"{at:03}")
                failing.done += 1
            except REFUSALS:
                failing.expected = names(store)
            reached = failing_calls.counted()
            failing_calls.fail(failing.path, 0, 0, onwards=False)
            try:
                failing.add(store, f"{at:03} again")
            except Unavailable:
                failing.refused += 1
            assert names(store) == failing.expected
            assert store.check() == []
        if reached < at:
            break


def main(path: Path, how: str) -> None:
    failing = Failing(path, how)
    if how.endswith("!"):
        doubtful(failing)
    elif failing.error == errno.EIO:
        for at in range(1, MOST_CALLS):
            with Store.open(path, TABLES) as store, reading(store):
                assert names(store) == failing.expected
                if not failing.attempt(store, at):
                    break
    else:
        with (
            Store.open(path, TABLES) as store,
            store.watch(None, commits=False) as watch,
            read_elsewhere(failing),
            reading(store),
        ):
            one_after_the_other(failing, store, watch)
    print(json.dumps({"refused": failing.refused, "done": failing.done}))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
