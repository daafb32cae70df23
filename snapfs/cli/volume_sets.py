"""`snapfs volume sets`, `edit`: what there is of sets, and what is said of them."""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli import output, volume_shapes
from snapfs.cli.options import parse_labels
from snapfs.cli.volume_options import REF, VOLUME, connect, reading


@click.command()
@reading
@click.option("--match", default="", metavar="GLOB", help="Only those whose path matches.")
@click.option("--owner", default="", help="Only those of this owner.")
@click.option("--attribute", "attributes", multiple=True, metavar="KEY=VALUE", help="Repeatable.")
@click.option(
    "--sort", type=click.Choice(["name", "time", "size"]), default="name", show_default=True
)
@click.option("--reverse", is_flag=True, help="The last first.")
@click.option("--offset", type=click.IntRange(min=0), default=0, help="Leave out the first.")
@click.option("--limit", type=click.IntRange(min=0), help="At most so many.")
def sets(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    match: str,
    owner: str,
    attributes: tuple[str, ...],
    sort: str,
    reverse: bool,
    offset: int,
    limit: int | None,
) -> None:
    """List the sets of this host, also those that came from elsewhere and have no volume here.

    \b
    Example:
      snapfs volume sets --match 'db*' --sort time --reverse --limit 10
    """
    from snapfs.volumes.queries import Query, Sort

    query = Query(
        match=match,
        owner=owner,
        attributes=parse_labels(attributes) or None,
        sort=Sort(sort),
        descending=reverse,
        offset=offset,
        limit=limit,
    )
    with connect(address, config_path) as client:
        found = list(client.sets(query))
        volumes: dict[str, list[str]] = {}
        for each in client.walk():
            volumes.setdefault(each.set.id, []).append(each.volume.name)
    if as_json:
        output.print_json([volume_shapes.of_set(it, volumes.get(it.id, [])) for it in found])
        return
    rows = [
        (
            it.path,
            volume_shapes.short(it.id),
            str(it.snapshots),
            str(it.branches),
            output.size(it.size_bytes),
            "-" if it.last_snapshot_ns is None else output.when(it.last_snapshot_ns),
            ", ".join(volumes.get(it.id, [])) or "-",
        )
        for it in found
    ]
    header = ("SET", "ID", "SNAPSHOTS", "BRANCHES", "SIZE", "LAST SNAPSHOT", "VOLUMES HERE")
    output.table(header, rows, right=("SNAPSHOTS", "BRANCHES", "SIZE"))


@click.command()
@reading
@click.option("--ref", type=REF, help="Not the set: this snapshot of it.")
@click.option("--name", "new_name", help="Its new name.")
@click.option("--prefix", metavar="PATH", help="Path before the name of the set.")
@click.option("--description", help="What it is for; of a snapshot, its message.")
@click.option("--owner", help="Whose it is.")
@click.argument("name", type=VOLUME)
@click.argument("attributes", nargs=-1, metavar="[KEY=VALUE]...")
def edit(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    ref: str | None,
    new_name: str | None,
    prefix: str | None,
    description: str | None,
    owner: str | None,
    name: str,
    attributes: tuple[str, ...],
) -> None:
    """Change what is said of the set of the volume NAME, or of a set, or of a snapshot of it.

    It travels with the next sync. KEY= takes an attribute away.

    \b
    Example:
      snapfs volume edit db --description 'orders, since 2024' tier=gold
      snapfs volume edit db --ref HEAD^ --description 'before the upgrade'
    """
    changes = parse_labels(attributes)
    if ref is not None and prefix is not None:
        raise click.UsageError("a snapshot has no --prefix")
    with connect(address, config_path) as client:
        if ref is not None:
            snapshot = client.edit_snapshot(
                name,
                ref,
                name=new_name,
                description=description,
                owner=owner,
                attributes=changes,
            )
            if as_json:
                output.print_json(volume_shapes.snapshot(snapshot))
            else:
                click.echo(volume_shapes.line(snapshot))
            return
        done = client.edit_set(
            name,
            name=new_name,
            prefix=prefix,
            description=description,
            owner=owner,
            attributes=changes,
        )
    if as_json:
        output.print_json(volume_shapes.of_set(done, []))
