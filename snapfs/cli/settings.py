"""`snapfs config`, `snapfs completion` and `snapfs version`."""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli import output
from snapfs.cli.options import config_option, json_option, resolve

SHELLS = ("bash", "zsh", "fish")


@click.group()
def config() -> None:
    """Show and check the configuration.

    \b
    Example:
      snapfs config show
      snapfs config check
    """


@config.command("show")
@config_option
@json_option
def show(config_path: Path | None, as_json: bool) -> None:
    """Print every setting in force and where its value came from.

    \b
    Example:
      SNAPFS_LOG_LEVEL=debug snapfs config show
    """
    resolved = resolve(config_path)
    rows = list(resolved.rows())
    if as_json:
        output.print_json({key: {"value": value, "origin": origin} for key, value, origin in rows})
        return
    output.table(
        ("KEY", "VALUE", "ORIGIN"), [(key, str(value), origin) for key, value, origin in rows]
    )


@config.command("check")
@config_option
def check(config_path: Path | None) -> None:
    """Read the configuration and say whether `snapfs serve` would take it.

    \b
    Example:
      snapfs config check --config ./config.toml
    """
    from snapfs import preflight

    resolved = resolve(config_path)
    if resolved.config.service.group:
        preflight.group_number(resolved.config.service.group)
    changed = sum(origin != "default" for origin in resolved.origins.values())
    click.echo(f"configuration is valid: {changed} of {len(resolved.origins)} settings changed")


@click.command()
@click.argument("shell", type=click.Choice(SHELLS))
def completion(shell: str) -> None:
    """Print the completion script for a shell.

    \b
    Example:
      snapfs completion bash > /etc/bash_completion.d/snapfs
    """
    from click.shell_completion import get_completion_class

    from snapfs.cli.main import cli

    kind = get_completion_class(shell)
    if kind is None:
        raise click.UsageError(f"no completion for {shell}")
    click.echo(kind(cli, {}, "snapfs", "_SNAPFS_COMPLETE").source())


@click.command()
@json_option
def version(as_json: bool) -> None:
    """Print the version.

    \b
    Example:
      snapfs version --json
    """
    from importlib.metadata import version as installed

    number = installed("snapfs")
    if as_json:
        output.print_json({"version": number})
    else:
        click.echo(f"snapfs {number}")
