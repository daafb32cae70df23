"""Progress of long work on a terminal's standard error, gone when it is done; elsewhere nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from snapfs.cli import output

if TYPE_CHECKING:
    from rich.progress import Progress, Task, TaskID

Tell = Callable[[str, int, int], None]
"""Takes what is worked on, and how many bytes of it are done, of how many; 0: nobody knows."""


@contextmanager
def bars() -> Iterator[Tell]:
    """Show a bar for each thing that is worked on, as long as it is; give what to tell."""
    shown = _bars()
    known: dict[str, TaskID] = {}

    def tell(what: str, done: int, total: int) -> None:
        if what not in known:
            known[what] = shown.add_task(output.printable(what), total=total or None)
        shown.update(known[what], completed=done, visible=not total or done < total)

    with shown:
        yield tell


@contextmanager
def bar(text: str, total_bytes: int) -> Iterator[Callable[[int], None]]:
    """Show one bar for the block; give what to tell how many bytes are done. 0: total unknown."""
    with bars() as tell:
        yield lambda done: tell(text, done, total_bytes)


@contextmanager
def waiting(text: str) -> Iterator[None]:
    """Show that something is waited for of which no more is known."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    with console.status(text):
        yield


def _bars() -> Progress:
    from rich.console import Console
    from rich.progress import BarColumn, Progress, ProgressColumn, TextColumn
    from rich.text import Text

    class Done(ProgressColumn):
        def render(self, task: Task) -> Text:
            return Text(_done(task), justify="right")

    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        Done(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )


def _done(task: Task) -> str:
    done = output.size(int(task.completed))
    of = f" of {output.size(int(task.total))}" if task.total else ""
    speed = f", {output.size(int(task.speed))}/s" if task.speed else ""
    return done + of + speed
