"""`snapfs push`, `pull`, `sync`: volume sets and a remote; `snapfs conflict`: list, resolve.

Exit 0 when both sides have the same of all that was asked; 1 when a branch has diverged, a conflict
is open or something was refused, each with its line, or when the remote does not answer.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from snapfs.cli import output, volume_shapes
from snapfs.cli.options import client_options, json_option
from snapfs.cli.people import me
from snapfs.cli.remote import connect

if TYPE_CHECKING:
    from rich.progress import TaskID

    from snapfs.service.remote_wire import SetReport
    from snapfs.sync.conflicts import Kept
    from snapfs.sync.engine import Progress

F = TypeVar("F", bound=Callable[..., Any])

POLICIES = ("theirs", "ours", "fail")


def _sync_options(command: F) -> F:
    options = (
        client_options,
        json_option,
        click.option(
            "--policy",
            type=click.Choice(POLICIES),
            default="theirs",
            show_default=True,
            help="Who wins when both sides changed a field; with fail nobody does.",
        ),
        click.argument("set_name", metavar="[SET]", default=""),
        click.argument("remote", metavar="[REMOTE]", default=""),
    )
    for option in reversed(options):
        command = option(command)
    return command


@click.command()
@_sync_options
def push(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    policy: str,
    set_name: str,
    remote: str,
) -> None:
    """Send what SET has here to REMOTE; nothing changes here.

    SET is a volume set by its path or id, by default all; REMOTE may be left out if there is one.

    \b
    Example:
      snapfs push db backup
    """
    _run(address, config_path, set_name, remote, "push", policy, as_json=as_json)


@click.command()
@_sync_options
def pull(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    policy: str,
    set_name: str,
    remote: str,
) -> None:
    """Fetch what SET has at REMOTE; nothing changes there.

    \b
    Example:
      snapfs pull db backup
    """
    _run(address, config_path, set_name, remote, "pull", policy, as_json=as_json)


@click.command()
@_sync_options
def sync(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    policy: str,
    set_name: str,
    remote: str,
) -> None:
    """Bring SET to the same state here and at REMOTE.

    A branch that went on apart on both sides is kept here as REMOTE/BRANCH; choose with `snapfs
    conflict resolve`, or reset to it and go on from there.

    \b
    Example:
      snapfs sync db backup
    """
    _run(address, config_path, set_name, remote, "sync", policy, as_json=as_json)


@click.group()
def conflict() -> None:
    """What was changed on both sides, and who won.

    \b
    Example:
      snapfs conflict list db
      snapfs conflict resolve 3 --ours
    """


@conflict.command("list")
@client_options
@json_option
@click.argument("set_name", metavar="[SET]", default="")
def list_(address: Path | None, config_path: Path | None, as_json: bool, set_name: str) -> None:
    """List conflicts of SET, or of all sets.

    \b
    Example:
      snapfs conflict list db
    """
    with connect(address, config_path) as client:
        found = client.conflicts(set_name)
    if as_json:
        output.print_json([_conflict_shape(it) for it in found])
        return
    rows = [
        (
            str(it.number),
            it.remote,
            _item(it),
            it.field,
            _value(it.ours, it.field),
            _value(it.theirs, it.field),
            it.winner or "(open)",
            output.when(it.since_ns),
        )
        for it in found
    ]
    output.table(("NUMBER", "REMOTE", "OF", "FIELD", "OURS", "THEIRS", "WINNER", "SINCE"), rows)


@conflict.command()
@client_options
@json_option
@click.option("--ours", "side", flag_value="ours", help="What was here wins.")
@click.option("--theirs", "side", flag_value="theirs", help="What was at the remote wins.")
@click.argument("number", type=click.IntRange(min=1))
def resolve(
    address: Path | None, config_path: Path | None, as_json: bool, side: str | None, number: int
) -> None:
    """Let a side win conflict NUMBER; the next sync carries that everywhere.

    \b
    Example:
      snapfs conflict resolve 12 --ours
    """
    if side is None:
        raise click.UsageError("say who wins: --ours or --theirs")
    from snapfs.sync.threeway import Policy

    with connect(address, config_path) as client:
        settled = client.resolve(number, Policy(side), author=me())
    if as_json:
        output.print_json(_conflict_shape(settled))
    else:
        value = settled.ours if side == "ours" else settled.theirs
        shown = f"{_item(settled)}: {settled.field} is {_value(value, settled.field)}"
        click.echo(output.printable(shown))


def _run(
    address: Path | None,
    config_path: Path | None,
    set_name: str,
    remote: str,
    direction: str,
    policy: str,
    *,
    as_json: bool,
) -> None:
    from snapfs.service.remote_wire import SetReport
    from snapfs.sync.planning import Direction
    from snapfs.sync.threeway import Policy

    reports: list[SetReport] = []
    with connect(address, config_path) as client, _progress() as show:
        for said in client.sync(
            set_name, remote, Direction(direction), Policy(policy), author=me()
        ):
            if isinstance(said, SetReport):
                reports.append(said)
            else:
                show(said)
    if as_json:
        output.print_json([_shape(it) for it in reports])
    else:
        for report in reports:
            _print(report)
    if not all(it.is_well for it in reports):
        raise click.exceptions.Exit(1)


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show on a terminal which layer is moved, how fast and for how long; elsewhere nothing."""
    from rich.console import Console
    from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
    from rich.progress import Progress as Bars

    console = Console(stderr=True)
    bars = Bars(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TextColumn("{task.fields[sent]}"),
        TimeRemainingColumn(),
        console=console,
        transient=True,
        disable=not console.is_terminal,
    )
    waiting = bars.add_task("reading and comparing", total=None, sent="")
    tasks: dict[tuple[str, int, bool], TaskID] = {}
    began: dict[tuple[str, int, bool], float] = {}

    def show(progress: Progress) -> None:
        key = (progress.branch, progress.layer, progress.to_here)
        if key not in tasks:
            tasks[key] = bars.add_task(_what(progress), total=None, sent="")
            began[key] = time.monotonic()
        is_done = progress.chunks == progress.chunks_wanted
        bars.update(
            tasks[key],
            completed=progress.chunks,
            total=progress.chunks_wanted,
            sent=_how(progress, time.monotonic() - began[key]),
            visible=not is_done,
        )
        bars.update(waiting, visible=is_done)

    with bars:
        yield show


def _what(progress: Progress) -> str:
    arrow = "<-" if progress.to_here else "->"
    name = output.printable(progress.branch or "(unnamed)")
    return f"{arrow} {name}, snapshot {progress.layer} of {progress.layers}"


def _how(progress: Progress, elapsed_s: float) -> str:
    rate = output.size(int(progress.sent_bytes / max(elapsed_s, 0.001)))
    chunks = f"{progress.chunks:,} of {progress.chunks_wanted:,} chunks"
    return f"{chunks}, {output.size(progress.sent_bytes)} at {rate}/s"


def _print(report: SetReport) -> None:
    name = output.printable(report.path or report.set_id)
    if report.error:
        click.echo(f"snapfs: {name}: {output.printable(report.error)}", err=True)
        return
    moved = f"{output.count(report.layers, 'snapshot')}, {output.size(report.sent_bytes)} sent, "
    moved += f"{output.size(report.received_bytes)} received"
    click.echo(f"{name} with {report.remote}: {moved}")
    for change in report.changes:
        click.echo(f"  {output.printable(change)}")
    for branch in report.branches:
        shown = output.printable(branch.name or f"(unnamed {branch.id[:8]})")
        message = f": {output.printable(branch.message)}" if branch.message else ""
        click.echo(f"  {shown}  {branch.fate}{message}")
    for message in report.refused:
        click.echo(f"  refused: {output.printable(message)}")
    if report.conflicts:
        found = output.count(report.conflicts, "conflict")
        click.echo(f"  {found}: snapfs conflict list")


def _shape(report: SetReport) -> dict[str, Any]:
    return {
        "set": report.set_id,
        "path": report.path,
        "remote": report.remote,
        "ok": report.is_well,
        "error": report.error or None,
        "branches": [
            {"id": it.id, "name": it.name, "fate": it.fate, "message": it.message, "ok": it.is_well}
            for it in report.branches
        ],
        "refused": list(report.refused),
        "changes": list(report.changes),
        "conflicts": report.conflicts,
        "snapshots": report.layers,
        "sent_bytes": report.sent_bytes,
        "received_bytes": report.received_bytes,
    }


def _conflict_shape(it: Kept) -> dict[str, Any]:
    return {
        "number": it.number,
        "set": it.set_id,
        "remote": it.remote,
        "kind": it.kind,
        "item": it.item,
        "called": it.called or None,
        "field": it.field,
        "ours": it.ours,
        "theirs": it.theirs,
        "last": it.last,
        "winner": it.winner or None,
        "since": output.iso(it.since_ns),
    }


def _item(it: Kept) -> str:
    """Return what a conflict is about, as people call it."""
    return f"{it.kind} {it.called or volume_shapes.short(it.item)}"


def _value(value: str | None, field: str) -> str:
    """Return a field's value for people; one of a deletion says what became of the item."""
    match field, value:
        case "gone", None:
            return "kept"
        case "gone", _:
            return "deleted"
        case _, None:
            return "(absent)"
        case "tip", str(snapshot):
            return volume_shapes.short(snapshot)
        case _, str(text):
            return text
    raise AssertionError("unreachable")
