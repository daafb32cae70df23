"""`snapfs volume history`: where a volume or a branch was, in words for people."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output, volume_shapes
from snapfs.cli.anchor import connect as connect_anchors
from snapfs.cli.volume_options import VOLUME, connect, reading
from snapfs.model import NotFound

if TYPE_CHECKING:
    from snapfs.anchors import Entry
    from snapfs.service.anchor_client import AnchorClient
    from snapfs.service.volumes_client import VolumesClient
    from snapfs.volumes import VolumeSnapshot


@click.command()
@reading
@click.option("-n", "--count", type=click.IntRange(min=1), help="At most so many entries.")
@click.argument("name", type=VOLUME)
@click.argument("branch", default="")
def history(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    count: int | None,
    name: str,
    branch: str,
) -> None:
    """Show where the volume NAME stood, or where its branch BRANCH ended: since when, by whom, why.

    The newest first. A discarded snapshot is found here until its entry expires.

    \b
    Example:
      snapfs volume history db
      snapfs volume history db main
    """
    with connect(address, config_path) as client:
        anchor = _anchor(client, name, branch)
        found = client.log(name, everything=True)
        snapshots: dict[str, VolumeSnapshot] = {it.id: it for it in found}
    with connect_anchors(address, config_path) as anchors:
        entries = _entries(anchors, anchor, count)
    if as_json:
        output.print_json([_shape(entry, snapshots) for entry in entries])
        return
    rows = [_row(entry, snapshots) for entry in entries]
    output.table(("SINCE", "SNAPSHOT", "MESSAGE", "BY", "WHY"), rows)


def _anchor(client: VolumesClient, name: str, branch: str) -> str:
    """Return the anchor that a volume, or a branch of it, writes."""
    from snapfs.volumes.errors import BranchNotFound
    from snapfs.volumes.history import branch_anchor, volume_anchor

    if not branch:
        return volume_anchor(client.describe(name).volume.id)
    known = {it.name or it.id: it for it in client.branches(name)}
    if branch not in known:
        names = ", ".join(sorted(known)) or "none"
        raise BranchNotFound(f"branch {branch!r} does not exist; there are: {names}")
    return branch_anchor(known[branch].set_id, known[branch].id)


def _entries(anchors: AnchorClient, anchor: str, count: int | None) -> list[Entry]:
    try:
        return list(anchors.history(anchor, count=count))
    except NotFound:  # it has no snapshot yet
        return []


def _shape(entry: Entry, snapshots: Mapping[str, VolumeSnapshot]) -> dict[str, Any]:
    found = snapshots.get(entry.ref.value) if entry.ref else None
    return {
        "at": output.iso(entry.at_ns),
        "snapshot": entry.ref and entry.ref.value,
        "message": found and found.description,
        "author": entry.author,
        "reason": entry.reason,
        "revision": entry.revision,
    }


def _row(entry: Entry, snapshots: Mapping[str, VolumeSnapshot]) -> tuple[str, ...]:
    found = snapshots.get(entry.ref.value) if entry.ref else None
    return (
        output.when(entry.at_ns),
        volume_shapes.short(entry.ref.value) if entry.ref else "-",
        found.description.partition("\n")[0] if found else "-",
        entry.author or "-",
        entry.reason or "-",
    )
