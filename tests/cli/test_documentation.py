"""docs/cli.md names every command, and every setting with its variable and default."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from snapfs import config
from snapfs.cli.main import cli

PAGE = (Path(__file__).parents[2] / "docs" / "cli.md").read_text()


def test_the_page_names_every_command() -> None:
    for name, command in cli.commands.items():
        verbs = command.commands if isinstance(command, click.Group) else {"": None}
        for verb in verbs:
            assert f"`snapfs {name} {verb}".rstrip() in PAGE


@pytest.mark.parametrize("key", config.KEYS)
def test_the_page_names_the_setting(key: str) -> None:
    (row,) = (line for line in PAGE.splitlines() if line.startswith(f"| `{key}` |"))
    assert f"`{config.environment_name(key)}`" in row
    if key != "address":
        value = {k: v for k, v, _ in config.resolve(environ={}).rows()}[key]
        assert f"| {_shown(value)} |" in row


def _shown(value: object) -> str:
    match value:
        case "":
            return "none"
        case bool():
            return str(value).lower()
        case int() | float():
            return f"{value:g}"
    return f"`{value}`"
