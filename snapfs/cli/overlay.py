"""`snapfs-overlay`: mount a plain overlay, with the arguments of fuse-overlayfs.

    snapfs-overlay -o lowerdir=A:B,upperdir=U,workdir=W MOUNTPOINT
    mount -t fuse.snapfs-overlay -o lowerdir=A:B overlay MOUNTPOINT

Returns when the overlay is usable; a process of its own serves it until it is unmounted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import click
import structlog

from snapfs import __version__, logs
from snapfs.cli.background import Background, Foreground
from snapfs.fuse import options, standalone
from snapfs.fuse.options import OverlayOptions
from snapfs.fuse.worker import raise_descriptor_limit
from snapfs.model import InvalidArgument, SnapfsError

PROGRAM = "snapfs-overlay"

log = structlog.get_logger(__name__)

EPILOG = """\b
Options after -o, besides those of mount(8) and fuse-overlayfs's own for tuning:
  lowerdir=A:B       directories to merge, the topmost first
  upperdir=U         where changes go; without it the mount is read-only
  workdir=W          an empty directory on the file system of U
  redirect_dir=on    rename lower directories without EXDEV
  metacopy=on        copy no data for a change of owner, mode or times
  awake=auto|on|off  keep processors of a virtual machine from halting
                     while requests follow each other
  uidmapping=A:B:N, gidmapping=A:B:N
                     N owners from A on in the layers are shown from B on
  squash_to_root, squash_to_uid=N, squash_to_gid=N
                     one owner shown for all
  timeout=S          how long the kernel may keep names and attributes
  volatile, fsync=0  leave syncing to the kernel
  noacl, noxattrs, static_nlink, fsname=NAME

\b
Examples:
  snapfs-overlay -o lowerdir=/base,upperdir=/up,workdir=/work /mnt
  snapfs-overlay -o lowerdir=/two:/one /mnt          (read-only)
  fusermount3 -u /mnt
"""


@click.command(
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog=EPILOG,
    help="Mount directories merged at MOUNTPOINT. A first SOURCE, as mount(8) gives, is what the "
    "mount shows, unless fsname says otherwise.",
)
@click.option("-o", "texts", multiple=True, metavar="OPTIONS", help="Comma-separated options.")
@click.option("-f", "foreground", is_flag=True, help="Stay in the foreground.")
@click.option("-d", "--debug", is_flag=True, help="Log what happens; implies -f.")
@click.option("-s", "single", is_flag=True, help="Ignored: for fuse-overlayfs's users.")
@click.version_option(__version__, "-V", "--version", prog_name="snapfs-overlay")
@click.argument("paths", nargs=-1, required=True, metavar="[SOURCE] MOUNTPOINT")
def main(
    texts: tuple[str, ...], foreground: bool, debug: bool, single: bool, paths: tuple[str, ...]
) -> None:
    try:
        target = mountpoint(paths)
        chosen = options.parse(texts, source=paths[0] if len(paths) > 1 else None)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    except SnapfsError as error:
        Foreground().tell(PROGRAM, error)
        sys.exit(1)
    sys.exit(serve(chosen, target, foreground=foreground, debug=debug))


def mountpoint(paths: Sequence[str]) -> Path:
    """Return the last of the arguments, [SOURCE] MOUNTPOINT; InvalidArgument if it is no place."""
    if len(paths) > 2:
        raise InvalidArgument(f"{paths[2]!r} is one argument too many; give one mount point")
    path = Path(paths[-1])
    try:
        is_place = path.is_dir()
    except OSError as error:
        raise InvalidArgument(
            f"mount point {paths[-1]!r}: {error.strerror}; unmount what is there first"
        ) from error
    if not is_place:
        raise InvalidArgument(f"mount point {paths[-1]!r} is not a directory; make it first")
    return path.resolve()


def serve(
    chosen: OverlayOptions, target: Path, *, foreground: bool, debug: bool, failure: int = 1
) -> int:
    """Mount, leave the foreground, serve to the end; return the exit status."""
    debug = debug or chosen.debug
    logs.configure("debug" if debug else "warning")
    place = Foreground() if foreground or debug else Background(PROGRAM, failure)
    try:
        raise_descriptor_limit()
        os.umask(0)
        standalone.serve(chosen, target, ready=place.announce)
    except (SnapfsError, OSError) as error:
        place.tell(PROGRAM, error)
        return failure
    except Exception:
        log.exception("overlay.failed", mountpoint=str(target))
        return failure
    return 0


if __name__ == "__main__":
    main()
