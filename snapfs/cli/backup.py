"""`snapfs backup`, `snapfs restore` and `snapfs snapshot verify`: copies of a root, and digests.

They read and write the root themselves, beside the service, so that it goes on answering.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.moments import MOMENT
from snapfs.cli.options import (
    SNAPSHOT,
    AbsolutePath,
    client_options,
    config_option,
    connect,
    json_option,
    resolve,
)
from snapfs.model import DataLoss, Unavailable

if TYPE_CHECKING:
    from snapfs.backup import Damaged, DamagedContent, Progress, Record
    from snapfs.snapshots import Verified

_root_option = click.option(
    "--root",
    type=AbsolutePath(),
    metavar="DIR",
    help="The root.  [default: the service's, or the configured one]",
)


@click.command()
@client_options
@json_option
@_root_option
@click.option("--verify", "only_verify", is_flag=True, help="Read a backup again, take none.")
@click.option("--recheck", is_flag=True, help="Read what is there too, copy the damaged anew.")
@click.argument("target", type=AbsolutePath())
def backup(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    root: Path | None,
    only_verify: bool,
    recheck: bool,
    target: Path,
) -> None:
    """Make the directory TARGET a backup of the root, or bring it up to date.

    The service may run. Metadata, committed snapshots and images are in it; of active snapshots
    only those that were committed. What is there already is not copied again, also after an
    interruption. Exit 1 when a snapshot or content is damaged: it is named, all else is backed
    up.

    \b
    Example:
      snapfs backup /srv/backup
      snapfs backup --verify /srv/backup
    """
    from snapfs import backup as room
    from snapfs.snapshots.faults import refusing

    with _progress() as report:
        if only_verify:
            record, copied = room.verify(target, report), (0, 0)
            left_out: tuple[str, ...] = ()
            damaged: tuple[Damaged, ...] = ()
            content: tuple[DamagedContent, ...] = ()
        else:
            with (
                _attached(_root(address, config_path, root)) as place,
                refusing(f"back up root {place} to {target}"),
            ):
                taken = room.take(place, target, recheck=recheck, report=report)
            record, left_out, damaged = taken.record, taken.left_out, taken.damaged
            content = taken.damaged_content
            copied = taken.copied_layers, taken.copied_blobs
    if as_json:
        output.print_json(
            {
                "revision": record.revision,
                "taken": output.iso(record.taken_ns),
                "layers": len(record.layers),
                "blobs": len(record.blobs),
                "copied_layers": copied[0],
                "copied_blobs": copied[1],
                "left_out": list(left_out),
                "damaged": [_damaged_shape(it) for it in damaged],
                "damaged_content": [_content_shape(it) for it in content],
            }
        )
        _refuse_damaged(damaged, content)
        return
    layers, blobs = (output.count(*it) for it in zip(copied, ("layer", "blob"), strict=True))
    done = "sound" if only_verify else f"{layers} and {blobs} copied now"
    click.echo(f"{target}: {_extent(record)}; {done}")
    _tell_left_out(left_out)
    _refuse_damaged(damaged, content)


def _extent(record: Record) -> str:
    layers, blobs = len(record.layers), len(record.blobs)
    return (
        f"{output.count(layers, 'layer')}, {output.count(blobs, 'blob')}, "
        f"revision {record.revision}"
    )


@click.command()
@config_option
@_root_option
@click.option(
    "--damaged",
    "as_damaged",
    is_flag=True,
    help="Restore all the same what was damaged in the first root: snapshots as they are, content "
    "without its bytes.",
)
@click.argument("source", type=AbsolutePath())
def restore(config_path: Path | None, root: Path | None, as_damaged: bool, source: Path) -> None:
    """Make a new root out of the backup SOURCE, verified by digest.

    The root must be empty, or not there yet: it is made, but not the directory above it, as the
    disk may not be mounted. A restore that was interrupted goes on when it is run again.

    \b
    Example:
      snapfs restore /srv/backup --root /var/lib/snapfs
    """
    from snapfs import backup as room
    from snapfs.snapshots.faults import refusing

    with (
        _attached(resolve(config_path, root=root).config.root) as place,
        refusing(f"restore {source} to root {place}"),
        _progress() as report,
    ):
        done = room.restore(source, place, as_damaged=as_damaged, report=report)
    click.echo(f"{place}: {_extent(done.record)} restored")
    _tell_left_out(done.left_out)
    for it in done.damaged:
        how = "" if it.is_copied else ", and has no files: they could not be read"
        click.echo(output.printable(f"as it was: {it}{how}"), err=True)
    for content in done.damaged_content:
        click.echo(output.printable(f"without its bytes: {content}; fetch it again"), err=True)


@click.command()
@client_options
@json_option
@_root_option
@click.option(
    "--since",
    "since_ns",
    type=MOMENT,
    metavar="TIME",
    help="Leave out layers that were found sound since then: a time, or an age such as 7d.",
)
@click.argument("names", nargs=-1, type=SNAPSHOT, metavar="[NAME...]")
def verify(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    root: Path | None,
    since_ns: int | None,
    names: tuple[str, ...],
) -> None:
    """Read committed layers from the disk and compare them with their digests.

    Exit 1 when one is damaged. Layers have digests where `seals` is set to `background`. A check
    that was interrupted goes on with `--since`.

    \b
    Example:
      snapfs snapshot verify
      snapfs snapshot verify --since 7d
    """
    from snapfs import snapshots
    from snapfs.snapshots import Verdict

    with _attached(_root(address, config_path, root)) as place:
        found = []
        for it in snapshots.verify(place, names, since_ns=since_ns):
            found.append(it)
            if not as_json:
                _print_verified(it)
    if as_json:
        output.print_json([_verified_shape(it) for it in found])
    if unsealed := sum(it.verdict is Verdict.UNSEALED for it in found):
        click.echo(
            f"{unsealed} of {len(found)} not checked: no digest; "
            'with `seals = "background"` in the configuration the service makes them',
            err=True,
        )
    if any(it.verdict is Verdict.DAMAGED for it in found):
        raise SystemExit(1)


def _print_verified(it: Verified) -> None:
    click.echo(output.printable(f"{it.verdict.value:8}  {output.fitted(it.name)}"))
    for damage in it.damages:
        where = os.fsdecode(damage.path) or "the layer"
        click.echo(output.printable(f"          {where}: {damage.what}"))


def _verified_shape(it: Verified) -> dict[str, Any]:
    return {
        "name": it.name,
        "id": it.id,
        "verdict": it.verdict.value,
        "damages": [
            {"path": os.fsdecode(damage.path), "what": damage.what} for damage in it.damages
        ],
    }


def _root(address: Path | None, config_path: Path | None, root: Path | None) -> Path:
    """Return the root that was named, else that of the service, else the configured one."""
    if root is None:
        try:
            with connect(address, config_path) as client:
                return client.status().root
        except Unavailable:
            pass  # not served: the configured one
    return resolve(config_path, root=root).config.root


@contextmanager
def _attached(root: Path) -> Iterator[Path]:
    """Mount the root's own file system for the block, if it has one that is not mounted."""
    from snapfs.snapshots import roots

    was_mounted = root.is_mount()
    if root.exists():
        roots.attach(root)
    try:
        yield root
    finally:
        if not was_mounted:
            roots.detach(root)


def _tell_left_out(keys: tuple[str, ...]) -> None:
    from snapfs.volumes.data import KEYS

    own = [output.fitted(key) for key in keys if not key.startswith(KEYS)]
    if own:
        said = f"left out, since they are active: {', '.join(own)}; commit what is to be kept"
        click.echo(output.printable(said), err=True)
    if copies := len(keys) - len(own):
        click.echo(
            f"left out: what {output.count(copies, 'volume')} may have changed since the last "
            "snapshot; `snapfs volume snapshot` takes one",
            err=True,
        )


def _damaged_shape(it: Damaged) -> dict[str, Any]:
    return {
        "name": it.name,
        "id": it.layer,
        "what": it.what,
        "copied": it.is_copied,
        "above": list(it.above),
    }


def _content_shape(it: DamagedContent) -> dict[str, Any]:
    return {
        "digest": it.digest,
        "what": it.what,
        "images": [{"namespace": namespace, "name": name} for namespace, name in it.images],
    }


def _refuse_damaged(damaged: tuple[Damaged, ...], content: tuple[DamagedContent, ...]) -> None:
    """Raise DataLoss that names what was damaged, when something was."""
    from snapfs.backup.damaged import listed

    ways = []
    if damaged:
        ways.append(
            "`snapfs snapshot verify` names the files: put them back as they were, or remove the "
            "snapshots and make them anew"
        )
    if content:
        ways.append(
            "Of content move the file away, if there is one, and push or import it again, or "
            "remove it"
        )
    if ways:
        named = listed((*damaged, *content), "; ")
        raise DataLoss(f"{named}. All else is backed up. {'. '.join(ways)}")


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a bar for each kind of work, on a terminal; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    known: dict[str, Any] = {}

    def report(step: Progress) -> None:
        if step.step not in known:
            known[step.step] = bars.add_task(step.step, total=step.total)
        bars.update(known[step.step], completed=step.done)

    with bars:
        yield report
