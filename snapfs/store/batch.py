"""Batches: many small updates in few transactions, each item whole or not at all.

Items run in child transactions of an update. An update of a batch ends before the item that would
take it over CHANGES or BYTES; then other updates have their turn, then the batch goes on. An item
that is larger by itself has an update of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Generic, Protocol, TypeAlias, TypeVar

from snapfs.store.writing import WriteTx

T = TypeVar("T")

CHANGES = 200
"""Most changes of rows in one update of a batch."""

BYTES = 3 * (1 << 20) * 3 // 8
"""Most bytes of rows in one: three quarters of the 1.5 MiB that can be agreed on at once."""


@dataclass(frozen=True, slots=True)
class Done(Generic[T]):
    """An item that took effect, durably."""

    result: T


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that raised and left nothing."""

    error: Exception


Outcome: TypeAlias = Done[T] | Failed
Item: TypeAlias = Callable[[WriteTx], T]


class Update(Protocol):
    """`Store.update`, with its timeout settled."""

    def __call__(self, function: Callable[[WriteTx], list[Outcome[T]]]) -> list[Outcome[T]]: ...


def run(update: Update, items: Iterable[Item[T]]) -> Iterator[Outcome[T]]:
    """Yield the outcome of each item once it is durable, in order.

    What the iteration over `items` raises ends the batch: items not yet begun are dropped.
    """
    source = iter(items)
    waiting: list[Item[T]] = []
    while True:
        waiting += islice(source, CHANGES - len(waiting))
        if not waiting:
            return
        outcomes = update(lambda tx: _some(tx, tuple(waiting)))  # noqa: B023  # runs before the next turn
        del waiting[: len(outcomes)]
        yield from outcomes


class _Full(Exception):
    """The item does not fit into this update any more."""


def _some(tx: WriteTx, items: Sequence[Item[T]]) -> list[Outcome[T]]:
    """Run items from the first on until the transaction is full; return their outcomes."""
    outcomes: list[Outcome[T]] = []
    for item in items:
        if tx.changes_made >= CHANGES or tx.bytes_changed >= BYTES:
            break
        try:
            outcomes.append(Done(tx.atomic(partial(_one, item, first=not outcomes))))
        except _Full:
            break
        except Exception as error:  # noqa: BLE001  # the item's own error goes to its caller
            outcomes.append(Failed(error))
    return outcomes


def _one(item: Item[T], tx: WriteTx, *, first: bool) -> T:
    result = item(tx)
    if not first and (tx.changes_made > CHANGES or tx.bytes_changed > BYTES):
        raise _Full
    return result
