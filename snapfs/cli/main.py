"""The `snapfs` command: nouns, then verbs.

Adapters only: options become calls of the service's client, answers become tables, trees or
JSON. Modules import click and nothing heavy, so that `snapfs --help` and completion are quick;
what a command needs is imported when it runs. Exit 0: done; 1: refused, with the reason on
standard error; 2: wrong usage.
"""

from __future__ import annotations

import os
from typing import Any

import click

from snapfs import __version__
from snapfs.cli.admin import fsck, init, status
from snapfs.cli.anchor import anchor
from snapfs.cli.backup import backup, restore, verify
from snapfs.cli.branch import branch
from snapfs.cli.container import container, sandbox
from snapfs.cli.content import content
from snapfs.cli.image import image
from snapfs.cli.keeping import gc, lease, namespace
from snapfs.cli.mount import mount, umount
from snapfs.cli.plugin import plugin
from snapfs.cli.remote import remote, remote_serve
from snapfs.cli.serve import serve
from snapfs.cli.settings import completion, config, version
from snapfs.cli.snapshot import snapshot
from snapfs.cli.sync import conflict, pull, push, sync
from snapfs.cli.upgrade import upgrade
from snapfs.cli.volume import volume
from snapfs.cli.watch import watch
from snapfs.model import SnapfsError


class Refusal(click.ClickException):
    """A refusal, shown as `snapfs: what, why, way out`."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"snapfs: {self.message}", file=file, err=file is None)


class _Root(click.Group):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except SnapfsError as error:
            raise Refusal(str(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            what = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            raise Refusal(f"{what}{error.strerror or error}") from error


@click.group(cls=_Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(
    __version__, "-V", "--version", prog_name="snapfs", message="%(prog)s %(version)s"
)
def cli() -> None:
    """Writable, versioned filesystems for containers and operators.

    \b
    Example:
      snapfs serve &
      snapfs snapshot prepare work
      snapfs mount work /mnt
    """


for _command in (
    serve,
    init,
    mount,
    umount,
    snapshot,
    volume,
    branch,
    remote,
    push,
    pull,
    sync,
    conflict,
    image,
    anchor,
    lease,
    content,
    container,
    sandbox,
    namespace,
    gc,
    watch,
    fsck,
    backup,
    restore,
    status,
    upgrade,
    config,
    plugin,
    completion,
    version,
    remote_serve,
):
    cli.add_command(_command)
snapshot.add_command(verify)


def main() -> None:
    """Run the command line; the console script's entry."""
    cli.main(prog_name="snapfs")
