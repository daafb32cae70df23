"""`snapfs watch`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.options import client_options, json_option, resolve

if TYPE_CHECKING:
    from snapfs.service.store_client import Wanted
    from snapfs.service.store_wire import SeenEvent, SeenRow


@click.command()
@client_options
@json_option
@click.option(
    "--from",
    "after_rev",
    type=click.IntRange(min=0),
    metavar="REVISION",
    help="Begin after this revision.  [default: now]",
)
@click.option(
    "--table",
    "tables",
    multiple=True,
    metavar="NAME",
    help="Objects of this table, as snapshot; may be repeated.  [default: all]",
)
@click.option(
    "--action",
    "actions",
    multiple=True,
    type=click.Choice(("create", "update", "delete")),
    help="This action; may be repeated; needs --table.  [default: any]",
)
@click.option("--name", help="The object of this name; needs --table.")
@click.option("--prefix", default="", help="Objects whose names begin so; needs --table.")
def watch(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    after_rev: int | None,
    tables: tuple[str, ...],
    actions: tuple[str, ...],
    name: str | None,
    prefix: str,
) -> None:
    """Print what happens to objects, a line each, until interrupted.

    Each line begins with its revision, from which a later watch may go on; so nothing is missed
    between the two, also when the service was restarted. With --json a line is an object.

    \b
    Example:
      snapfs watch
      snapfs watch --from 120 --table snapshot --action delete --json
    """
    from snapfs.service.store_client import StoreClient

    if (name is not None or prefix or actions) and not tables:
        raise click.UsageError("--action, --name and --prefix are of a table; name it with --table")
    wanted = [_wanted(table, actions, name, prefix) for table in tables]
    config = resolve(config_path, address=address).config
    with StoreClient(config.address) as client:
        try:
            for _, events in client.watch(after_rev, wanted, include_old=as_json):
                for event in events:
                    click.echo(json.dumps(_shape(event)) if as_json else _line(event))
        except KeyboardInterrupt:
            return


def _wanted(table: str, actions: tuple[str, ...], name: str | None, prefix: str) -> Wanted:
    from snapfs.service.store_client import Wanted
    from snapfs.store import Action

    chosen = tuple(Action[action.upper()] for action in actions)
    return Wanted(table, chosen, name=name, name_prefix=prefix)


def _line(event: SeenEvent) -> str:
    row = event.row
    action = str(event.action.name).lower()
    return f"{event.revision}  {action}  {row.table}  {output.printable(output.fitted(row.name))}"


def _shape(event: SeenEvent) -> dict[str, Any]:
    return {
        "revision": event.revision,
        "action": str(event.action.name).lower(),
        "object": _row(event.row),
        "old": event.old and _row(event.old),
    }


def _row(row: SeenRow) -> dict[str, Any]:
    return {
        "table": row.table,
        "oid": row.oid,
        "scope": row.scope,
        "name": row.name,
        "created_revision": row.create_rev,
        "modified_revision": row.mod_rev,
        "spec_revision": row.spec_rev,
        "created": output.iso(row.created_ns),
        "updated": output.iso(row.updated_ns),
        "body": row.body,
    }
