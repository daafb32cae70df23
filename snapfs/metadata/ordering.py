"""In which order garbage goes: what refers before what is referred to.

Between two batches of a sweep somebody may want again what has not gone yet. It must then have all
that it refers to, as if the whole garbage went at once. Rows that refer to each other in a circle
go together. Pure.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator

Following = Callable[[int], Iterable[int]]
"""Returns what a row refers to."""


def batches(oids: Collection[int], following: Following, size: int) -> Iterator[list[int]]:
    """Yield `oids` in lists of about `size`, no row before one that leads to it."""
    batch: list[int] = []
    for circle in reversed(list(circles(oids, following))):
        if batch and len(batch) + len(circle) > size:
            yield batch
            batch = []
        batch += circle
    if batch:
        yield batch


def circles(oids: Collection[int], following: Following) -> Iterator[list[int]]:
    """Yield the strongly connected components, none before one that it leads to (Tarjan, 1972)."""
    wanted = frozenset(oids)
    number: dict[int, int] = {}
    lowest: dict[int, int] = {}
    stack: list[int] = []
    waiting: set[int] = set()

    def enter(oid: int) -> tuple[int, Iterator[int]]:
        number[oid] = lowest[oid] = len(number)
        stack.append(oid)
        waiting.add(oid)
        return oid, iter([it for it in following(oid) if it in wanted])

    for first in oids:
        path = [] if first in number else [enter(first)]
        while path:
            oid, left = path[-1]
            for target in left:
                if target not in number:
                    path.append(enter(target))
                    break
                if target in waiting:
                    lowest[oid] = min(lowest[oid], number[target])
            else:
                path.pop()
                if path:
                    above = path[-1][0]
                    lowest[above] = min(lowest[above], lowest[oid])
                if lowest[oid] == number[oid]:
                    circle: list[int] = []
                    while not circle or circle[-1] != oid:
                        circle.append(stack.pop())
                    waiting.difference_update(circle)
                    yield circle
