"""`mount.fuse.snapfs-overlay`: what mount(8) runs for the type fuse.snapfs-overlay.

    mount.fuse.snapfs-overlay SOURCE MOUNTPOINT [-sfnvrw] [-o OPTIONS] [-t TYPE]

The same as `snapfs-overlay`, with the options and exit statuses of a mount helper (mount(8),
EXTERNAL HELPERS), some of which mean something else there. SOURCE is what the mount shows, by which
`mount -a` knows that a line of fstab is mounted.
"""

from __future__ import annotations

import sys

import click

from snapfs.cli.overlay import mountpoint, serve
from snapfs.fuse import options
from snapfs.model import SnapfsError

PROGRAM = "mount.fuse.snapfs-overlay"
WRONG_USE = 1
FAILED = 32


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("-o", "texts", multiple=True, metavar="OPTIONS", help="Comma-separated options.")
@click.option("-t", "_type", metavar="TYPE", help="Ignored: there is one.")
@click.option("-s", "sloppy", is_flag=True, help="Leave out options that are not known.")
@click.option("-f", "fake", is_flag=True, help="Look at the arguments only.")
@click.option("-r", "read_only", is_flag=True, help="As -o ro.")
@click.option("-w", "_read_write", is_flag=True, help="Ignored: so it is anyway.")
@click.option("-n", "_no_mtab", is_flag=True, help="Ignored: nothing is noted down.")
@click.option("-v", "_verbose", is_flag=True, help="Ignored.")
@click.argument("paths", nargs=-1, required=True, metavar="SOURCE MOUNTPOINT")
def main(
    texts: tuple[str, ...],
    sloppy: bool,
    fake: bool,
    read_only: bool,
    paths: tuple[str, ...],
    **_ignored: object,
) -> None:
    """Mount directories merged at MOUNTPOINT, as mount(8) asks for it.

    Example: mount -t fuse.snapfs-overlay -o lowerdir=/base,upperdir=/up,workdir=/work none /mnt
    """
    try:
        target = mountpoint(paths)
        source = paths[0] if len(paths) > 1 else None
        chosen = options.parse((*texts, "ro") if read_only else texts, sloppy=sloppy, source=source)
    except SnapfsError as error:
        click.echo(f"{PROGRAM}: {error}", err=True)
        sys.exit(WRONG_USE)
    if fake:
        return
    sys.exit(serve(chosen, target, foreground=False, debug=False, failure=FAILED))


if __name__ == "__main__":
    main()
