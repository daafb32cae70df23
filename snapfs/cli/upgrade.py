"""`snapfs upgrade`: let the running service go on with the release that is installed now."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapfs.cli import output, shapes
from snapfs.cli.options import client_options, connect, json_option
from snapfs.model import DeadlineExceeded, PermissionDenied, SnapfsError

if TYPE_CHECKING:
    from snapfs.service.records import DaemonRecord

ASK_EVERY_S = 0.05
UPGRADE_TIMEOUT_S = 120.0


@click.command()
@client_options
@json_option
def upgrade(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Let the running service go on with the release that is installed now.

    Checks first that this release reads the root's formats; if not, nothing changes. Then the
    service begins anew in its own process, and the workers are replaced under their mounts.
    Containers keep running.

    \b
    Example:
      snapfs upgrade
    """
    from snapfs import preflight

    with connect(address, config_path) as client:
        before = client.status()
    preflight.check_formats(before.root)
    try:
        os.kill(before.pid, signal.SIGUSR2)
    except PermissionError as error:
        raise PermissionDenied("only root may upgrade the service; use sudo") from error
    after = _successor(address, config_path, before)
    if as_json:
        output.print_json(shapes.daemon(after))
    else:
        lanes = ", ".join(f"{it.name} {it.state}" for it in after.lanes)
        click.echo(f"version {before.version} -> {after.version}, pid {after.pid}; lanes: {lanes}")


def _successor(
    address: Path | None, config_path: Path | None, before: DaemonRecord
) -> DaemonRecord:
    """Return what the service says of itself once it has begun anew."""
    end_s = time.monotonic() + UPGRADE_TIMEOUT_S
    while time.monotonic() < end_s:
        try:
            with connect(address, config_path) as client:
                found = client.status()
        except SnapfsError:  # between the two nobody listens
            found = before
        if found.started_ns != before.started_ns:
            return found
        time.sleep(ASK_EVERY_S)
    raise DeadlineExceeded(
        f"the service does not answer {UPGRADE_TIMEOUT_S:.0f} s after it was told to begin anew; "
        "see its log"
    )
