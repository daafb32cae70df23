"""The `snapfs` command: nouns, then verbs.

Adapters only: options become calls of the service's client, answers become tables, trees or
JSON. A command's module is imported when it is named (lazily.py). It imports click and nothing
heavy, so that help and completion are quick; what the command needs is imported when it runs.
Exit 0: done; 1: refused, with the reason on standard error; 2: wrong usage.
"""

from __future__ import annotations

import os
from typing import Any

import click

from snapfs import __version__
from snapfs.cli.lazily import LazyCommands, LazyGroup
from snapfs.model import NotFound, SnapfsError


class Refusal(click.ClickException):
    """A refusal, shown as `snapfs: what, why, way out`."""

    exit_code = 1

    def show(self, file: Any = None) -> None:
        click.echo(f"snapfs: {self.message}", file=file, err=file is None)


COMMANDS = {
    "serve": ("serve", "Run the service in the foreground."),
    "init": ("admin", "Prepare ROOT, if wanted with a file system of its own."),
    "mount": ("mount", "Mount the snapshot or the image NAME at the directory TARGET."),
    "umount": ("mount", "Unmount the snapshot at TARGET; a view made for it is removed."),
    "snapshot": ("snapshot", "Make, commit, look at and remove snapshots."),
    "volume": ("volume", "Volumes: writable filesystems with history."),
    "branch": ("branch", "Branches: lines of a volume's history, each known by where it ends."),
    "remote": ("remote", "Other hosts that volumes are pushed to, pulled from and synced with."),
    "push": ("sync", "Send what SET has here to REMOTE; nothing changes here."),
    "pull": ("sync", "Fetch what SET has at REMOTE; nothing changes there."),
    "sync": ("sync", "Bring SET to the same state here and at REMOTE."),
    "conflict": ("sync", "What was changed on both sides, and who won."),
    "image": ("image", "Images: archives of layers, imported into snapshots that can be mounted."),
    "anchor": ("anchor", "Names with a time history: what a name stands for, and stood for."),
    "lease": (
        "keeping",
        "Leases: what they hold is not collected until they are removed or expire.",
    ),
    "content": ("content", "Content: the bytes of images, by digest."),
    "container": (
        "container",
        "Containers: what runs or shall run, and the image and snapshot that it keeps.",
    ),
    "sandbox": ("container", "Sandboxes: what containers share, and what it keeps."),
    "namespace": (
        "keeping",
        "Namespaces: each has images, leases and content of its own; bytes are shared.",
    ),
    "gc": ("keeping", "Collect garbage now: images' layers and content that nothing keeps."),
    "watch": ("watch", "Print what happens to objects, a line each, until interrupted."),
    "fsck": (
        "admin",
        "Compare metadata with layers and content; exit 0 when they agree, 1 when something was "
        "found.",
    ),
    "backup": ("backup", "Make the directory TARGET a backup of the root, or bring it up to date."),
    "restore": ("backup", "Make a new root out of the backup SOURCE, verified by digest."),
    "status": ("admin", "Say how the service and its workers are."),
    "upgrade": ("upgrade", "Let the running service go on with the release that is installed now."),
    "config": ("settings", "Show and check the configuration."),
    "plugin": ("plugin", "Make other programs use snapfs."),
    "completion": ("settings", "Print the completion script for a shell."),
    "version": ("settings", "Print the version."),
    "remote-serve": (
        "remote",
        "Let another host sync with the service here, or that of ROOT; ssh runs this.",
    ),
}
"""Each command's module, of this package, and the first line of its help."""


class _Root(LazyGroup):
    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except NotFound as error:
            raise Refusal(f"{error}{self._way_out(str(error))}") from error
        except SnapfsError as error:
            raise Refusal(str(error)) from error
        except BrokenPipeError:
            raise
        except OSError as error:
            what = f"{os.fsdecode(error.filename)}: " if error.filename else ""
            raise Refusal(f"{what}{error.strerror or error}") from error

    def _way_out(self, said: str) -> str:
        """Name the list of what is missing, unless the refusal says itself where to look."""
        kind = said.partition(" ")[0]
        group = self.commands.get(kind)
        if ";" in said or not isinstance(group, click.Group) or "list" not in group.commands:
            return ""
        return f"; `snapfs {kind} list` shows what there is"


@click.group(
    cls=_Root,
    commands=LazyCommands(COMMANDS),
    context_settings={"help_option_names": ["-h", "--help"]},
)
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


def main() -> None:
    """Run the command line; the console script's entry."""
    cli.main(prog_name="snapfs")
