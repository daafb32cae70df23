"""Progress of long work on a terminal's standard error; elsewhere nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def bars() -> Progress:
    """Return a set of bars to be shown for a block; it knows by itself whether to show them."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        DownloadColumn,
        Progress,
        TextColumn,
        TransferSpeedColumn,
    )

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        DownloadColumn(binary_units=True),
        TransferSpeedColumn(),
        console=console,
        disable=not console.is_terminal,
    )


@contextmanager
def bar(text: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show one bar for the block; give what to tell how many bytes are done. 0: total unknown."""
    shown = bars()
    task = shown.add_task(text, total=total_bytes or None)
    with shown:
        yield lambda done: shown.update(task, completed=done)
