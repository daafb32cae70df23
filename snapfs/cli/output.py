"""What people and programs get to read: JSON, tables, sizes, times.

Text on a terminal is coloured; in a pipe it is plain and never wrapped. Names come from
strangers, so control characters are shown escaped.
"""

from __future__ import annotations

import datetime
import json
import sys
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, Literal

import click

if TYPE_CHECKING:
    from rich.console import Console, RenderableType

MAX_COLUMN = 200
"""Characters of a name; containerd's have about 110."""
_PIPE_COLUMNS = 100_000


def print_json(value: Any) -> None:
    """Print `value` as indented JSON; bytes that are no UTF-8 come as lone surrogates."""
    click.echo(json.dumps(value, indent=2))


def printable(text: str) -> str:
    """Return `text` with everything a terminal could act on escaped."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode() for c in _pairs(text)
    )


def fitted(name: str) -> str:
    """Return a name as a terminal has room for it: a key may have 32 KiB. Programs get it whole."""
    return shortened(name) if sys.stdout.isatty() else name


def shortened(name: str) -> str:
    """Return a name without its middle if it is long; names mostly differ at their ends."""
    half = MAX_COLUMN // 2
    return name if len(name) <= MAX_COLUMN else f"{name[: half - 1]}…{name[-half:]}"


def _pairs(text: str) -> Iterable[str]:
    return text.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


def size(size_bytes: int) -> str:
    """Return a size in binary units, to three digits: `1.5 MiB`."""
    value = float(size_bytes)
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if value < 1024 or unit == "TiB":
            digits = 0 if value >= 100 else 1 if value >= 10 else 2
            number = f"{value:.{digits}f}"
            return f"{number.rstrip('0').rstrip('.') if digits else number} {unit}"
        value /= 1024
    raise AssertionError("unreachable")


def count(number: int, one: str, many: str = "") -> str:
    """Return `1 file`, `2 files`."""
    return f"{number:,} {one if number == 1 else many or one + 's'}"


def when(time_ns: int) -> str:
    """Return a local time to the second."""
    moment = datetime.datetime.fromtimestamp(time_ns / 1e9).astimezone()
    return moment.strftime("%Y-%m-%d %H:%M:%S")


def iso(time_ns: int) -> str:
    """Return UTC with nanoseconds (RFC 3339)."""
    moment = datetime.datetime.fromtimestamp(time_ns // 1_000_000_000, datetime.UTC)
    return f"{moment:%Y-%m-%dT%H:%M:%S}.{time_ns % 1_000_000_000:09d}Z"


def table(
    header: Sequence[str],
    rows: Iterable[Sequence[str]],
    *,
    right: Iterable[str] = (),
    whole: Iterable[str] = (),
) -> None:
    """Print columns under `header`; those named in `right` are aligned right.

    On a narrow terminal cells are folded, but for those of the columns named in `whole`.
    """
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, header_style="bold")
    for name in header:
        side: Literal["left", "right"] = "right" if name in set(right) else "left"
        grid.add_column(name, justify=side, overflow="fold", no_wrap=name in set(whole))
    for row in rows:
        grid.add_row(*(Text(printable(cell)) for cell in row))
    show(grid)


def pairs(rows: Iterable[tuple[str, str]]) -> None:
    """Print `name  value` lines."""
    from rich.table import Table
    from rich.text import Text

    grid = Table(box=None, pad_edge=False, show_header=False)
    grid.add_column(style="bold")
    grid.add_column(overflow="fold")
    for name, value in rows:
        grid.add_row(name, Text(printable(value)))
    show(grid)


def show(renderable: RenderableType) -> None:
    """Print a rich object; plain and unwrapped unless standard output is a terminal."""
    console = _console()
    with console.capture() as capture:
        console.print(renderable)
    lines = (line.rstrip() for line in capture.get().splitlines())
    click.echo("\n".join(lines), color=True)


def _console() -> Console:
    from rich.console import Console

    width = None if sys.stdout.isatty() else _PIPE_COLUMNS
    return Console(file=sys.stdout, width=width, highlight=False, markup=False, emoji=False)
