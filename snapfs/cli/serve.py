"""`snapfs serve`."""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.options import AbsolutePath, config_option, resolve
from snapfs.config import DURABILITIES, LOG_FORMATS, LOG_LEVELS, UNPACK_MODES


@click.command()
@config_option
@click.option("--root", type=AbsolutePath(), metavar="DIR", help="Metadata and layers.")
@click.option("--state", type=AbsolutePath(), metavar="DIR", help="Mount points and lock.")
@click.option("--address", type=AbsolutePath(), metavar="SOCKET", help="Where to listen.")
@click.option("--unpack", type=click.Choice(UNPACK_MODES), help="Mounts that unpack gets.")
@click.option("--durability", type=click.Choice(DURABILITIES), help="What a commit waits for.")
@click.option("--log-level", type=click.Choice(LOG_LEVELS), help="Least level that is logged.")
@click.option("--log-format", type=click.Choice(LOG_FORMATS), help="Form of a log line.")
def serve(config_path: Path | None, **flags: object) -> None:
    """Run the service in the foreground.

    Needs no configuration: it serves /var/lib/snapfs, with its state in /run/snapfs. Ends in
    order on SIGTERM or SIGINT; a second signal ends calls in flight at once.

    \b
    Example:
      snapfs serve --root /srv/snapfs --log-level debug
    """
    settings = resolve(config_path, **flags).config

    from snapfs.loading import quickly

    with quickly():
        from snapfs import daemon, logs

    logs.configure(settings.log_level, settings.log_format)
    daemon.serve(settings)
