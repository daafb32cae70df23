"""`snapfs snapshot` and its verbs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapfs.cli import output, shapes
from snapfs.cli.backup import verify
from snapfs.cli.options import (
    SIZE,
    SNAPSHOT,
    client_options,
    connect,
    json_option,
    parse_labels,
)
from snapfs.model import FailedPrecondition

if TYPE_CHECKING:
    from snapfs.service.records import Record

_label_option = click.option(
    "--label", "labels", multiple=True, metavar="KEY=VALUE", help="A label; may be repeated."
)


@click.group()
def snapshot() -> None:
    """Make, commit, look at and remove snapshots.

    \b
    Example:
      snapfs snapshot prepare work
      snapfs snapshot commit work base
      snapfs snapshot tree
    """


@snapshot.command("list")
@client_options
@json_option
@click.option(
    "--filter", "filters", multiple=True, help="In containerd's grammar; any of several matches."
)
@click.option("--measure", is_flag=True, help="Say what active snapshots use too.")
def list_(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    filters: tuple[str, ...],
    measure: bool,
) -> None:
    """List snapshots.

    \b
    Example:
      snapfs snapshot list --filter 'kind==committed,labels.owner==me'
    """
    with connect(address, config_path) as client:
        records = list(client.list(filters, measure=measure))
    if as_json:
        output.print_json([shapes.record(it) for it in records])
        return
    rows = [
        (
            output.fitted(it.snapshot.name),
            it.snapshot.kind.word,
            output.fitted(it.snapshot.parent or "-"),
            output.size(it.usage.size_bytes) if it.usage is not None else "-",
            str(it.snapshot.id),
            output.when(it.snapshot.updated_ns),
        )
        for it in records
    ]
    output.table(("NAME", "KIND", "PARENT", "SIZE", "ID", "UPDATED"), rows, right=("SIZE", "ID"))


@snapshot.command()
@client_options
@json_option
@click.argument("name", type=SNAPSHOT, required=False)
def tree(address: Path | None, config_path: Path | None, as_json: bool, name: str | None) -> None:
    """Draw chains of snapshots, with sizes and where they are mounted.

    With NAME, only that snapshot and what stands on it.

    \b
    Example:
      snapfs snapshot tree
    """
    from snapfs.cli import forest

    with connect(address, config_path) as client:
        records = list(client.list((), measure=True))
    branches = forest.plant(records, name)
    if as_json:
        output.print_json([forest.as_json(branch) for branch in branches])
    else:
        for branch in branches:
            output.show(forest.draw(branch))


@snapshot.command()
@client_options
@json_option
@click.argument("name", type=SNAPSHOT)
def info(address: Path | None, config_path: Path | None, as_json: bool, name: str) -> None:
    """Show everything about one snapshot.

    \b
    Example:
      snapfs snapshot info work
    """
    with connect(address, config_path) as client:
        record = client.info(name)
    if as_json:
        output.print_json(shapes.record(record))
    else:
        output.pairs(shapes.details(record))


@snapshot.command()
@client_options
@json_option
@click.option("--parent", type=SNAPSHOT, default="", help="Committed snapshot to start from.")
@_label_option
@click.argument("key")
def prepare(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    parent: str,
    labels: tuple[str, ...],
    key: str,
) -> None:
    """Make a writable snapshot KEY and print how to mount it.

    \b
    Example:
      snapfs snapshot prepare --parent base work
    """
    with connect(address, config_path) as client:
        mounts = client.prepare(key, parent, parse_labels(labels))
    _print_mounts(mounts, as_json=as_json)


@snapshot.command()
@client_options
@json_option
@_label_option
@click.argument("key")
@click.argument("parent", type=SNAPSHOT)
def view(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    labels: tuple[str, ...],
    key: str,
    parent: str,
) -> None:
    """Make a read-only look KEY at the committed snapshot PARENT.

    \b
    Example:
      snapfs snapshot view look base
    """
    with connect(address, config_path) as client:
        mounts = client.view(key, parent, parse_labels(labels))
    _print_mounts(mounts, as_json=as_json)


@snapshot.command()
@client_options
@json_option
@_label_option
@click.argument("key", type=SNAPSHOT)
@click.argument("name")
def commit(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    labels: tuple[str, ...],
    key: str,
    name: str,
) -> None:
    """Turn the active snapshot KEY into the committed snapshot NAME.

    \b
    Example:
      snapfs snapshot commit work base-2
    """
    with connect(address, config_path) as client:
        record = client.commit(key, name, parse_labels(labels))
    if as_json:
        output.print_json(shapes.record(record))
        return
    used = record.usage
    size = (
        f": {output.size(used.size_bytes)} in {output.count(used.inodes, 'inode')}" if used else ""
    )
    click.echo(f"committed {output.printable(name)}{size}")


@snapshot.command()
@client_options
@click.option("--force", is_flag=True, help="Also what is mounted; its users keep a dead tree.")
@click.argument("names", nargs=-1, required=True, type=SNAPSHOT, metavar="NAME...")
def remove(
    address: Path | None, config_path: Path | None, force: bool, names: tuple[str, ...]
) -> None:
    """Remove snapshots, in the order given.

    One that others stand on is refused: remove those first. So is one that is mounted.

    \b
    Example:
      snapfs snapshot remove work base
    """
    with connect(address, config_path) as client:
        for name in names:
            if not force:
                _check_not_mounted(client.info(name))
            client.remove(name)


def _check_not_mounted(it: Record) -> None:
    """Refuse here, not in the service: containerd may remove what is mounted."""
    if it.mounted_at:
        places = ", ".join(map(str, it.mounted_at))
        raise FailedPrecondition(
            f"snapshot {output.printable(it.snapshot.name)} is mounted at {places}; "
            "`snapfs umount` first, or remove it with --force"
        )


@snapshot.command()
@client_options
@json_option
@click.argument("name", type=SNAPSHOT)
def usage(address: Path | None, config_path: Path | None, as_json: bool, name: str) -> None:
    """Show how much a snapshot uses itself, parents excluded.

    \b
    Example:
      snapfs snapshot usage work
    """
    with connect(address, config_path) as client:
        used = client.usage(name)
    if as_json:
        output.print_json({"size_bytes": used.size_bytes, "inodes": used.inodes})
    else:
        output.table(("SIZE", "INODES"), [(output.size(used.size_bytes), str(used.inodes))])


@snapshot.command()
@client_options
@json_option
@click.option("--bytes", "size_bytes", type=SIZE, help="Space it may take, as 10GiB.")
@click.option("--inodes", type=click.IntRange(min=1), help="Files and directories it may have.")
@click.option("--none", "unbounded", is_flag=True, help="No limit that is not given beside this.")
@click.argument("key", type=SNAPSHOT)
def quota(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    size_bytes: int | None,
    inodes: int | None,
    unbounded: bool,
    key: str,
) -> None:
    """Show or set how much the active snapshot KEY may take.

    Without options it shows; with one it sets, from the next request on.

    \b
    Example:
      snapfs snapshot quota work --bytes 10GiB --inodes 100000
    """
    if unbounded:
        size_bytes, inodes = size_bytes or 0, inodes or 0
    with connect(address, config_path) as client:
        if size_bytes is None and inodes is None:
            it = client.quota(key)
        else:
            it = client.set_quota(key, size_bytes=size_bytes, inodes=inodes)
    if as_json:
        output.print_json(shapes.quota(it))
    else:
        rows = shapes.quota_rows(it.limits, it.used)
        output.table(("", "USED", "QUOTA"), rows, right=("USED", "QUOTA"))
    if it.unbound.files:
        click.echo(f"warning: {shapes.quota_warning(it.unbound)}", err=True)


@snapshot.command()
@client_options
@json_option
@click.argument("name", type=SNAPSHOT)
@click.argument("changes", nargs=-1, required=True, metavar="KEY=VALUE|KEY-...")
def label(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    name: str,
    changes: tuple[str, ...],
) -> None:
    """Set labels with KEY=VALUE, delete them with KEY-.

    \b
    Example:
      snapfs snapshot label base owner=me old-
    """
    gone = [change[:-1] for change in changes if "=" not in change and change.endswith("-")]
    wanted = parse_labels(tuple(c for c in changes if "=" in c or not c.endswith("-")))
    paths = [f"labels.{key}" for key in (*wanted, *gone)]
    with connect(address, config_path) as client:
        record = client.update(name, wanted, paths)
    if as_json:
        output.print_json(shapes.record(record))
    else:
        rows = [(key, value) for key, value in sorted(record.snapshot.labels.items())]
        output.table(("LABEL", "VALUE"), rows)


@snapshot.command()
@client_options
@json_option
@click.argument("name", type=SNAPSHOT)
def diff(address: Path | None, config_path: Path | None, as_json: bool, name: str) -> None:
    """List added (A), changed (C) and deleted (D) paths against the parent.

    \b
    Example:
      snapfs snapshot diff work
    """
    with connect(address, config_path) as client:
        changes = client.diff(name)
        if as_json:
            output.print_json([shapes.change(it) for it in changes])
            return
        for change in changes:
            mark = change.kind.value[0].upper()
            click.echo(f"{mark} {output.printable(shapes.text(change.path))}")


snapshot.add_command(verify)


def _print_mounts(mounts: list[shapes.Mount], *, as_json: bool) -> None:
    if as_json:
        output.print_json([shapes.mount(it) for it in mounts])
        return
    for it in mounts:
        options = ",".join(it.options)
        line = f"mount -t {it.type} -o {options} {it.source} TARGET"
        click.echo(output.printable(line))
