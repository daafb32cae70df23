"""`snapfs status`, `snapfs fsck` and `snapfs init`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Literal

import click

from snapfs.cli import output, shapes
from snapfs.cli.options import (
    AbsolutePath,
    client_options,
    config_option,
    connect,
    json_option,
    resolve,
)
from snapfs.model import NotFound, Unavailable

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from snapfs.service.records import DaemonRecord, LaneRecord
    from snapfs.service.snapshotter import FoundProblem

MOST_SHOWN = 4
"""Operations of a lane that `snapfs status` names."""


@click.command()
@client_options
@json_option
def status(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Say how the service and its workers are.

    \b
    Example:
      snapfs status
    """
    with connect(address, config_path) as client:
        it = client.status()
    if as_json:
        output.print_json(shapes.daemon(it))
    else:
        output.pairs(_status_lines(it))


def _status_lines(it: DaemonRecord) -> list[tuple[str, str]]:
    lines = [
        ("version", it.version),
        ("pid", str(it.pid)),
        ("started", output.when(it.started_ns)),
        ("root", str(it.root)),
        ("state", str(it.state)),
        ("unpack", it.unpack),
        ("snapshots", f"{it.active} active, {it.views} views, {it.committed} committed"),
        ("removals to come", str(it.pending_removals)),
    ]
    for lane in it.lanes:
        worker = f"worker {lane.worker_pid}" if lane.worker_pid else "no worker"
        lines.append(
            (
                f"lane {lane.name}",
                f"{lane.mode}, {lane.state}, {worker}, restarted {lane.restarts} times",
            )
        )
        lines += feature_lines(lane)
        if lane.requests:
            lines.append(("  requests", _requests_words(lane)))
    lines += [("warning", warning) for warning in it.warnings]
    return lines


def _requests_words(lane: LaneRecord) -> str:
    """Say how many requests there were, and which of them most often took the slow way."""
    fast = sum(it.fast for it in lane.requests.values())
    python = sum(it.python for it in lane.requests.values())
    often = sorted(lane.requests.items(), key=lambda it: it[1].python, reverse=True)[:MOST_SHOWN]
    named = ", ".join(f"{name.lower()} {it.python}" for name, it in often if it.python)
    return f"{fast} in the fast lane, {python} in Python" + (f" ({named})" if named else "")


def feature_lines(lane: LaneRecord) -> Iterator[tuple[str, str]]:
    """Yield the lines of `snapfs status` about what a lane can do, and what not, and why."""
    from snapfs.fuse.modes import GOES_WITHOUT

    features = sorted(lane.features.items(), key=lambda it: it[0].casefold())
    on = [name for name, reason in features if not reason]
    if on:
        yield "  can", ", ".join(on)
    off = [name for name, reason in features if reason == GOES_WITHOUT]
    if off:
        yield "  not in this mode", ", ".join(off)
    for name, reason in features:
        if reason and name not in off:
            yield "  cannot", f"{name}: {reason}"


@click.command()
@client_options
@json_option
@click.option(
    "--root",
    type=AbsolutePath(),
    metavar="DIR",
    help="Root to check.  [default: the service's, or the configured one]",
)
@click.option("--repair", is_flag=True, help="Mend what is found; without it nothing changes.")
def fsck(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    root: Path | None,
    repair: bool,
) -> None:
    """Compare metadata with layers and content; exit 0 when they agree, 1 when something was found.

    Asks the service when it runs, else reads the root itself.

    \b
    Example:
      snapfs fsck
      snapfs fsck --repair
    """
    problems = _check(address, config_path, root, repair=repair)
    if as_json:
        output.print_json([shapes.problem(it) for it in problems])
    else:
        _print_problems(problems, repair=repair)
    if problems:
        raise SystemExit(1)


def _check(
    address: Path | None, config_path: Path | None, root: Path | None, *, repair: bool
) -> Sequence[FoundProblem]:
    try:
        with connect(address, config_path) as client:
            if root in (None, client.status().root):
                return client.fsck(repair=repair)
    except Unavailable:
        pass  # not served: look for ourselves
    return _check_offline(resolve(config_path, root=root).config.root, repair=repair)


def _check_offline(root: Path, *, repair: bool) -> Sequence[FoundProblem]:
    """Mount the root's own file system if it has one, check, and leave it as it was."""
    from snapfs import tables
    from snapfs.snapshots import fsck, roots

    was_mounted = root.is_mount()
    roots.attach(root)
    try:
        if not (root / "metadata").exists():
            raise NotFound(
                f"root {root} holds no snapshots, and no service answers for it; "
                "name another root with --root, or start the service"
            )
        report = fsck(root, tables=tables.TABLES, checks=tables.CHECKS, repair=repair)
        return report.problems
    finally:
        if not was_mounted:
            roots.detach(root)


def _print_problems(problems: Sequence[FoundProblem], *, repair: bool) -> None:
    if not problems:
        click.echo("clean: metadata and layers agree")
        return
    rows = [
        (it.kind, output.fitted(it.subject), it.message, "yes" if it.repaired else "no")
        for it in problems
    ]
    output.table(("KIND", "OBJECT", "PROBLEM", "REPAIRED"), rows)
    left = sum(not it.repaired for it in problems)
    if left and not repair:
        click.echo("nothing was changed; `snapfs fsck --repair` mends what can be mended", err=True)


@click.command()
@config_option
@click.argument("root", type=AbsolutePath(), required=False)
@click.option("--image", metavar="SIZE", help="Keep layers in an image file of SIZE, as 20G.")
@click.option("--device", type=AbsolutePath(), metavar="DEV", help="Keep layers on a device.")
@click.option(
    "--fs",
    type=click.Choice(("ext4", "xfs", "btrfs")),
    help="File system to make.  [default: ext4]",
)
@click.option("--force", is_flag=True, help="Format a device even when it holds something.")
def init(
    config_path: Path | None,
    root: Path | None,
    image: str | None,
    device: Path | None,
    fs: Literal["ext4", "xfs", "btrfs"] | None,
    force: bool,
) -> None:
    """Prepare ROOT, if wanted with a file system of its own.

    Formats an image file beside ROOT, or a device, records and mounts it. `snapfs serve` mounts it
    by that record from then on, and unmounts it when it ends. A root that is a plain directory
    needs no preparation. ROOT is the configured one if left out.

    \b
    Example:
      snapfs init /var/lib/snapfs --image 20G --fs xfs
    """
    from snapfs.snapshots import roots

    if image is not None and device is not None:
        raise click.UsageError("give --image or --device, not both")
    if fs and image is None and device is None:
        raise click.UsageError("--fs needs something to format; give --image or --device too")
    if force and device is None:
        raise click.UsageError("--force is for --device; an image is always a new file")
    place = resolve(config_path, root=root).config.root
    made = roots.init(
        place,
        image_bytes=None if image is None else roots.parse_size(image),
        device=device,
        file_system=fs or "ext4",
        force=force,
    )
    what = "a directory" if made is None else f"{made.file_system} on {made.source}, mounted there"
    click.echo(f"{place} is ready: {what}")
