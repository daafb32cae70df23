"""Commands that are imported when they are named: help, or a start, waits for no other's code."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, MutableMapping
from importlib import import_module

import click


class LazyCommands(MutableMapping[str, click.Command]):
    """What a group has: by name, each from the attribute of that name of its module."""

    def __init__(self, summaries: Mapping[str, tuple[str, str]]) -> None:
        """`summaries` gives each command's module and the first line of its help."""
        self.summaries = summaries
        self._loaded: dict[str, click.Command] = {}

    def __getitem__(self, name: str) -> click.Command:
        if name not in self._loaded:
            module, _ = self.summaries[name]
            self._loaded[name] = getattr(
                import_module(f"{__package__}.{module}"), name.replace("-", "_")
            )
        return self._loaded[name]

    def __setitem__(self, name: str, command: click.Command) -> None:
        raise TypeError(f"{name}: name it in the table")

    def __delitem__(self, name: str) -> None:
        raise TypeError(f"{name}: is named in the table")

    def __iter__(self) -> Iterator[str]:
        return iter(self.summaries)

    def __len__(self) -> int:
        return len(self.summaries)


class LazyGroup(click.Group):
    """A group of `LazyCommands`; its help loads none of them."""

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if not isinstance(self.commands, LazyCommands):
            return super().format_commands(ctx, formatter)
        summaries = self.commands.summaries
        width = formatter.width - 6 - max(map(len, summaries))
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, click.Command(name, help=text).get_short_help_str(width))
                    for name, (_, text) in sorted(summaries.items())
                ]
            )
        return None
