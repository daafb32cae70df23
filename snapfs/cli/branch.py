"""`snapfs branch`: create, list, switch, rename, remove."""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli import output, volume_shapes
from snapfs.cli.volume_options import REF, VOLUME, connect, manner_options, reading


@click.group()
def branch() -> None:
    """Branches: lines of a volume's history, each known by where it ends.

    \b
    Example:
      snapfs branch create db experiment
      snapfs branch switch db experiment
    """


@branch.command()
@reading
@click.argument("volume", type=VOLUME)
@click.argument("name")
@click.argument("ref", type=REF, default="HEAD")
def create(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    volume: str,
    name: str,
    ref: str,
) -> None:
    """Create the branch NAME in the history of VOLUME, ending at the snapshot REF.

    \b
    Example:
      snapfs branch create db experiment
    """
    with connect(address, config_path) as client:
        made = client.create_branch(volume, name, ref=ref)
    if as_json:
        output.print_json(volume_shapes.branch(made))


@branch.command("list")
@reading
@click.argument("volume", type=VOLUME)
def list_(address: Path | None, config_path: Path | None, as_json: bool, volume: str) -> None:
    """List the branches of VOLUME.

    \b
    Example:
      snapfs branch list db
    """
    with connect(address, config_path) as client:
        found = list(client.branches(volume))
    if as_json:
        output.print_json([volume_shapes.branch(it) for it in found])
        return
    rows = [
        (it.name or "(unnamed)", volume_shapes.short(it.tip), output.when(it.modified_ns), it.id)
        for it in found
    ]
    output.table(("NAME", "SNAPSHOT", "CHANGED", "ID"), rows)


@branch.command()
@reading
@click.option("--discard", is_flag=True, help="Lose changes that no snapshot has.")
@manner_options
@click.argument("volume", type=VOLUME)
@click.argument("ref", type=REF)
def switch(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    discard: bool,
    signal_name: str,
    pause: bool,
    volume: str,
    ref: str,
) -> None:
    """Let VOLUME be at the end of a branch, or at any snapshot and on no branch.

    \b
    Example:
      snapfs branch switch db experiment
      snapfs branch switch db main --signal TERM
    """
    from snapfs.volumes.replacing import Manner

    with connect(address, config_path) as client:
        manner = Manner(signal=signal_name, pause=pause)
        found = client.switch(volume, ref, discard=discard, manner=manner)
    if as_json:
        output.print_json(volume_shapes.snapshot(found))
    else:
        click.echo(volume_shapes.line(found))


@branch.command()
@reading
@click.argument("volume", type=VOLUME)
@click.argument("name")
@click.argument("new_name")
def rename(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    volume: str,
    name: str,
    new_name: str,
) -> None:
    """Give the branch NAME of VOLUME another name; its history stays its own.

    \b
    Example:
      snapfs branch rename db experiment release
    """
    with connect(address, config_path) as client:
        renamed = client.rename_branch(volume, name, new_name)
    if as_json:
        output.print_json(volume_shapes.branch(renamed))


@branch.command()
@reading
@click.argument("volume", type=VOLUME)
@click.argument("name")
def remove(
    address: Path | None, config_path: Path | None, as_json: bool, volume: str, name: str
) -> None:
    """Remove the branch NAME of VOLUME; what only it reaches stays until its history expires.

    \b
    Example:
      snapfs branch remove db experiment
    """
    with connect(address, config_path) as client:
        gone = client.remove_branch(volume, name)
    if as_json:
        output.print_json(volume_shapes.branch(gone))
