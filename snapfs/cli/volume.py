"""`snapfs volume`: create, clone, list, info, mount, umount, remove, resize, diff, snapshot, log,
reset, prune; `sets` and `edit` are in volume_sets.py, `history` in volume_history.py."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapfs.cli import options, output, volume_history, volume_sets, volume_shapes
from snapfs.cli.moments import MOMENT
from snapfs.cli.mount import mount_read_only
from snapfs.cli.options import SIZE, AbsolutePath, client_options, parse_labels
from snapfs.cli.volume_options import REF, VOLUME, connect, manner_options, reading
from snapfs.model import FailedPrecondition, NotFound

if TYPE_CHECKING:
    from snapfs.service.volumes_client import VolumesClient


@click.group()
def volume() -> None:
    """Volumes: writable filesystems with history.

    \b
    Example:
      snapfs volume create db --path /srv/db --mount
      snapfs volume snapshot db -m 'before the upgrade'
      snapfs volume log db
    """


volume.add_command(volume_sets.sets)
volume.add_command(volume_sets.edit)
volume.add_command(volume_history.history)


_path_option = click.option(
    "--path", type=AbsolutePath(), help="Where to mount it.  [default: below the state directory]"
)
_size_option = click.option("--size", type=SIZE, help="What its own changes may take.")


@volume.command()
@reading
@_path_option
@_size_option
@click.option("--prefix", default="", metavar="PATH", help="Path before the name of its set.")
@click.option("--description", default="", help="What it is for.")
@click.option("--branch", default="", help="Branch of the first snapshot.  [default: main]")
@click.option("--mount", "and_mount", is_flag=True, help="Mount it too.")
@click.argument("name")
@click.argument("attributes", nargs=-1, metavar="[KEY=VALUE]...")
def create(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    path: Path | None,
    size: int | None,
    prefix: str,
    description: str,
    branch: str,
    and_mount: bool,
    name: str,
    attributes: tuple[str, ...],
) -> None:
    """Create the empty volume NAME.

    \b
    Example:
      snapfs volume create db --path /srv/db --mount
    """
    with connect(address, config_path) as client:
        client.create(
            name,
            prefix=prefix,
            description=description,
            attributes=parse_labels(attributes),
            mount_path=os.fspath(path or ""),
            size_bytes=size or 0,
            branch=branch,
        )
        if and_mount:
            client.mount(name)
        made = client.describe(name)
    if as_json:
        output.print_json(volume_shapes.volume(made))
    elif made.mounted_at:
        click.echo(output.printable(made.mounted_at))


@volume.command()
@reading
@_path_option
@_size_option
@click.option("--branch", default="", help="Branch that it makes.  [default: its name]")
@click.argument("source", type=VOLUME)
@click.argument("name")
@click.argument("ref", type=REF, default="HEAD")
def clone(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    path: Path | None,
    size: int | None,
    branch: str,
    source: str,
    name: str,
    ref: str,
) -> None:
    """Make another volume NAME of SOURCE, a volume or a set, at the snapshot REF.

    Both have one history; the first snapshot of the clone makes a branch of its own.

    \b
    Example:
      snapfs volume clone db trial 'main@{2026-11-20 09:00}'
    """
    with connect(address, config_path) as client:
        made = client.clone(
            source,
            name,
            ref=ref,
            branch=branch,
            mount_path=os.fspath(path or ""),
            size_bytes=size or 0,
        )
    if as_json:
        output.print_json(volume_shapes.volume(made))


@volume.command("list")
@reading
def list_(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """List the volumes of this host.

    \b
    Example:
      snapfs volume list
    """
    with connect(address, config_path) as client:
        found = list(client.walk())
    if as_json:
        output.print_json([volume_shapes.volume(it) for it in found])
        return
    rows = [
        (
            it.volume.name,
            it.branch or "-",
            volume_shapes.short(it.volume.base) if it.volume.base else "-",
            str(it.set.snapshots),
            output.size(it.usage.size_bytes),
            it.mounted_at or "-",
        )
        for it in found
    ]
    header = ("NAME", "BRANCH", "SNAPSHOT", "SNAPSHOTS", "OWN DATA", "MOUNTED AT")
    output.table(header, rows, right=("SNAPSHOTS", "OWN DATA"))


@volume.command()
@reading
@click.argument("name", type=VOLUME)
def info(address: Path | None, config_path: Path | None, as_json: bool, name: str) -> None:
    """Show the volume NAME.

    \b
    Example:
      snapfs volume info db
    """
    with connect(address, config_path) as client:
        found = client.describe(name)
    if as_json:
        output.print_json(volume_shapes.volume(found))
    else:
        output.pairs(volume_shapes.details(found))


@volume.command()
@client_options
@click.option("--ref", type=REF, help="Not the volume: this snapshot of it, read-only, at PATH.")
@click.argument("name", type=VOLUME)
@click.argument("path", type=AbsolutePath(), required=False)
def mount(
    address: Path | None, config_path: Path | None, ref: str | None, name: str, path: Path | None
) -> None:
    """Mount the volume NAME, at its path or at PATH from now on, and print where.

    The service mounts it again whenever it starts, until `volume umount`. A snapshot of it, given
    with --ref, is mounted until `snapfs umount PATH`.

    \b
    Example:
      snapfs volume mount db /srv/db
      snapfs volume mount db --ref 'main@{2026-11-20 09:00}' /mnt
    """
    with connect(address, config_path) as client:
        if ref is None:
            click.echo(output.printable(client.mount(name, os.fspath(path or ""))))
            return
        found = client.resolve(name, ref)
    if path is None:
        raise click.UsageError("a snapshot is mounted at a PATH; give one")
    if not found.blob:
        raise FailedPrecondition(f"volume snapshot {found.id} has no data on this host; pull it")
    with options.connect(address, config_path) as snapshots:
        mount_read_only(snapshots, found.blob, path)


@volume.command()
@client_options
@click.argument("name", type=VOLUME)
def umount(address: Path | None, config_path: Path | None, name: str) -> None:
    """Unmount the volume NAME; its data stays.

    \b
    Example:
      snapfs volume umount db
    """
    with connect(address, config_path) as client:
        client.umount(name)


@volume.command()
@client_options
@click.option("--discard", is_flag=True, help="Lose changes that no snapshot has.")
@click.option("--history", is_flag=True, help="All that there was: its set, snapshots, branches.")
@click.argument("name", type=VOLUME)
def remove(
    address: Path | None, config_path: Path | None, discard: bool, history: bool, name: str
) -> None:
    """Remove the volume NAME; what is in snapshots stays.

    One that is mounted, or has changes that no snapshot has, is refused without --discard or
    --history; one that is used is refused in any case. With --history NAME may be a set that has
    no volume here.

    \b
    Example:
      snapfs volume remove trial
      snapfs volume remove trial --discard
    """
    with connect(address, config_path) as client:
        try:
            if not (discard or history):
                _check_nothing_is_lost(client, name)
            client.remove(name, history=history)
        except NotFound:
            if not history:
                raise
            client.remove_set(name)


def _check_nothing_is_lost(client: VolumesClient, name: str) -> None:
    """Refuse here, not in the service: engines of containers have asked their user already."""
    found = client.describe(name)
    if found.mounted_at:
        raise FailedPrecondition(
            f"volume {found.volume.name!r} is mounted at {found.mounted_at}; "
            f"`snapfs volume umount {found.volume.name}` first, or give --discard"
        )
    root = 1  # is no change
    has_base = found.volume.base is not None
    changes = sum(1 for _ in client.diff(name)) if has_base else found.usage.inodes - root
    if changes:
        raise FailedPrecondition(
            f"volume {found.volume.name!r} has {output.count(changes, 'change')} that no snapshot "
            "has; take one, or give --discard"
        )


@volume.command()
@client_options
@click.argument("name", type=VOLUME)
@click.argument("size", metavar="SIZE|none")
def resize(address: Path | None, config_path: Path | None, name: str, size: str) -> None:
    """Set what the changes of the volume NAME may take, while it is used.

    \b
    Example:
      snapfs volume resize db 20GiB
    """
    limit = 0 if size == "none" else SIZE.convert(size, None, None)
    with connect(address, config_path) as client:
        client.resize(name, limit)


@volume.command()
@reading
@click.argument("name", type=VOLUME)
@click.argument("before", type=REF, default="")
@click.argument("after", type=REF, default="")
def diff(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    name: str,
    before: str,
    after: str,
) -> None:
    """List what differs between the snapshots BEFORE (HEAD) and AFTER (the volume as it is).

    \b
    Example:
      snapfs volume diff db
      snapfs volume diff db HEAD^ HEAD
    """
    with connect(address, config_path) as client:
        found = client.diff(name, before, after)
        if as_json:
            output.print_json([{"kind": kind, "path": os.fsdecode(path)} for kind, path in found])
            return
        for kind, path in found:
            click.echo(f"{kind[0].upper()} {output.printable(os.fsdecode(path))}")


@volume.command()
@reading
@click.option("-m", "--message", required=True, help="What it is; `volume log` shows it.")
@click.option("-b", "--branch", default="", help="Make this branch, beginning with it.")
@click.argument("name", type=VOLUME)
@click.argument("attributes", nargs=-1, metavar="[KEY=VALUE]...")
def snapshot(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    message: str,
    branch: str,
    name: str,
    attributes: tuple[str, ...],
) -> None:
    """Take a snapshot of the volume NAME, which stays mounted and in use.

    \b
    Example:
      snapfs volume snapshot db -m 'before the upgrade'
    """
    with connect(address, config_path) as client:
        done = client.snapshot(name, message, branch=branch, attributes=parse_labels(attributes))
    if as_json:
        output.print_json(volume_shapes.taken(done))
        return
    on = done.branch.name or "(unnamed)"
    click.echo(
        f"{volume_shapes.short(done.snapshot.id)} on {output.printable(on)}: "
        f"{output.count(done.files, 'file')}, {output.size(done.copied_bytes)}; "
        f"paused for {done.pause_ns / 1e6:.1f} ms"
    )


@volume.command()
@reading
@click.option("--all", "everything", is_flag=True, help="All branches, as a graph.")
@click.argument("name", type=VOLUME)
@click.argument("ref", type=REF, default="")
def log(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    everything: bool,
    name: str,
    ref: str,
) -> None:
    """Show the history of the volume NAME, newest first: of HEAD, or of REF.

    \b
    Example:
      snapfs volume log db --all
    """
    from snapfs.cli import historygraph

    with connect(address, config_path) as client:
        found = list(client.log(name, ref, everything=everything))
        if as_json:
            output.print_json([volume_shapes.snapshot(it) for it in found])
            return
        head = _head(client, name)
    for marks, commit in historygraph.rows(found):
        text = "" if commit is None else volume_shapes.line(commit, is_head=commit.id == head)
        click.echo(f"{marks}  {text}".rstrip())


def _head(client: VolumesClient, name: str) -> str | None:
    """Return what a volume grew from; None for a set."""
    try:
        return client.describe(name).volume.base
    except NotFound:
        return None


@volume.command()
@reading
@click.option("--hard", is_flag=True, help="Needed: changes that no snapshot has are lost.")
@manner_options
@click.argument("name", type=VOLUME)
@click.argument("ref", type=REF)
def reset(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    hard: bool,
    signal_name: str,
    pause: bool,
    name: str,
    ref: str,
) -> None:
    """Let the volume NAME, and its branch, be what they were at REF.

    Snapshots that other branches have stay, and so do all until the history expires (`volume
    prune`): `branch@{1h}` still finds them.

    \b
    Example:
      snapfs volume reset --hard db HEAD^
    """
    from snapfs.volumes.replacing import Manner

    if not hard:
        raise click.UsageError("a reset discards what no snapshot has; say so with --hard")
    with connect(address, config_path) as client:
        found = client.reset(name, ref, manner=Manner(signal=signal_name, pause=pause))
    if as_json:
        output.print_json(volume_shapes.snapshot(found))
    else:
        click.echo(volume_shapes.line(found))


@volume.command()
@reading
@click.option(
    "--before",
    "before_ns",
    type=MOMENT,
    default="30d",
    show_default=True,
    metavar="TIME",
    help="Forget where branches and volumes were before.",
)
def prune(address: Path | None, config_path: Path | None, as_json: bool, before_ns: int) -> None:
    """Delete the snapshots that no branch, no volume and no younger history has.

    \b
    Example:
      snapfs volume prune --before 7d
    """
    with connect(address, config_path) as client:
        count = client.prune(before_ns)
    if as_json:
        output.print_json({"snapshots": count})
    else:
        click.echo(f"deleted {output.count(count, 'snapshot')}")
