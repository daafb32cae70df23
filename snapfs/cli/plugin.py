"""`snapfs plugin`: what other programs need to use snapfs.

Plugins are found by entry point (group "snapfs.plugins"), so the command knows none of them.
"""

from __future__ import annotations

from pathlib import Path

import click

from snapfs.cli.options import AbsolutePath, config_option, resolve
from snapfs.model import NotFound

GROUP = "snapfs.plugins"


@click.group()
def plugin() -> None:
    """Make other programs use snapfs.

    \b
    Example:
      snapfs plugin install
      systemctl restart containerd
    """


@plugin.command()
@config_option
@click.option("--address", type=AbsolutePath(), metavar="SOCKET", help="Socket of the service.")
@click.option(
    "--containerd-config",
    type=AbsolutePath(),
    default="/etc/containerd/config.toml",
    show_default=True,
    metavar="PATH",
    help="containerd's configuration file.",
)
@click.option(
    "--differ",
    is_flag=True,
    help="Let snapfs make layers too; for containerd 1.7 and later, see docs/containerd.md.",
)
def install(
    config_path: Path | None, address: Path | None, containerd_config: Path, differ: bool
) -> None:
    """Add snapfs to containerd's configuration as a proxy snapshotter.

    Keeps a backup beside the file and says what to restart. Twice is fine.

    \b
    Example:
      snapfs plugin install --containerd-config /etc/containerd/config.toml
    """
    from importlib.metadata import entry_points

    settings = resolve(config_path, address=address).config
    found = entry_points(group=GROUP, name="containerd")
    if not found:
        raise NotFound("the containerd plugin is not installed; install snapfs_containerd")
    (entry,) = found
    said = entry.load()(containerd_config, settings.address, root=settings.root, differ=differ)
    click.echo(said)
    if differ and not settings.diff.containerd.name:
        click.echo(
            "the service must know containerd's socket for this: set diff.containerd in its "
            "configuration",
            err=True,
        )
