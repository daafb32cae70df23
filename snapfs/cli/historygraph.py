"""The tree of a set's snapshots in columns, as `volume log --all` draws it. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Protocol, TypeVar


class Commit(Protocol):
    """What is drawn; parents come after their children."""

    @property
    def id(self) -> str: ...
    @property
    def parent(self) -> str | None: ...


C = TypeVar("C", bound=Commit)


def rows(commits: Iterable[C]) -> Iterator[tuple[str, C | None]]:
    """Yield what stands before each commit, and lines between, which have none."""
    columns: list[str | None] = []
    for commit in commits:
        mine = [at for at, wanted in enumerate(columns) if wanted == commit.id]
        if not mine:
            columns.append(commit.id)
            mine = [len(columns) - 1]
        first, *others = mine
        if others:
            yield _joined(columns, first, others), None
            for at in others:
                columns[at] = None
            _trim(columns)
        marks = (
            "*" if at == first else "|" if wanted else " " for at, wanted in enumerate(columns)
        )
        yield " ".join(marks), commit
        columns[first] = commit.parent
        _trim(columns)


def _joined(columns: list[str | None], first: int, others: list[int]) -> str:
    """Draw the line in which other columns come to the first that waits for the same."""
    line = list(" ".join("|" if wanted else " " for wanted in columns))
    for at in others:
        line[2 * at] = " "
        line[2 * at - 1] = "/"
    for place in range(2 * first + 1, 2 * max(others) - 1):
        if line[place] == " ":
            line[place] = "_"
    return "".join(line).rstrip()


def _trim(columns: list[str | None]) -> None:
    while columns and columns[-1] is None:
        columns.pop()
