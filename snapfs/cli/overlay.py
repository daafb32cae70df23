"""`snapfs-overlay`: mount a plain overlay, with the arguments of fuse-overlayfs.

    snapfs-overlay -o lowerdir=A:B,upperdir=U,workdir=W MOUNTPOINT
    mount -t fuse.snapfs-overlay -o lowerdir=A:B overlay MOUNTPOINT

Returns when the overlay is usable; a process of its own serves it until it is unmounted.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import NoReturn

import click

from snapfs import __version__, logs
from snapfs.fuse import options, standalone
from snapfs.fuse.worker import raise_descriptor_limit
from snapfs.model import InvalidArgument, SnapfsError

EPILOG = """\b
Options after -o, besides those of mount(8) and fuse-overlayfs's own for tuning:
  lowerdir=A:B       directories to merge, the topmost first
  upperdir=U         where changes go; without it the mount is read-only
  workdir=W          an empty directory on the file system of U
  redirect_dir=on    rename lower directories without EXDEV
  uidmapping=A:B:N, gidmapping=A:B:N, squash_to_root, squash_to_uid=N, squash_to_gid=N
                     owners as they are shown
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
    help="Mount directories merged at MOUNTPOINT. A first SOURCE, as mount(8) gives, is ignored.",
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
        chosen = options.parse(texts)
        mountpoint = _mountpoint(paths)
    except InvalidArgument as error:
        raise click.UsageError(str(error)) from error
    except SnapfsError as error:
        _refuse(error)
    debug = debug or chosen.debug
    logs.configure("debug" if debug else "warning")
    announce = _announce_nothing if foreground or debug else _into_background()
    try:
        raise_descriptor_limit()
        os.umask(0)
        standalone.serve(chosen, mountpoint, ready=announce)
    except (SnapfsError, OSError) as error:
        _refuse(error)


def _mountpoint(paths: tuple[str, ...]) -> Path:
    if len(paths) > 2:
        raise InvalidArgument(f"{paths[2]!r} is one argument too many; give one mount point")
    path = Path(paths[-1])
    if not path.is_dir():
        raise InvalidArgument(f"mount point {paths[-1]!r} is not a directory; make it first")
    return path.resolve()


def _refuse(error: Exception) -> NoReturn:
    click.echo(f"snapfs-overlay: {error}", err=True)
    sys.exit(1)


def _announce_nothing() -> None:
    """In the foreground nobody waits to be told."""


def _into_background() -> Callable[[], None]:
    """Fork; the parent leaves when the child calls what is returned, or with 1 if it never does."""
    reader, writer = os.pipe()
    if os.fork():
        os.close(writer)
        with open(reader, "rb") as pipe:
            os._exit(0 if pipe.read() else 1)
    os.close(reader)
    os.setsid()
    os.chdir("/")

    def announce() -> None:
        null = os.open(os.devnull, os.O_RDWR)
        for standard in (0, 1, 2):
            os.dup2(null, standard)
        os.close(null)
        os.write(writer, b"1")
        os.close(writer)

    return announce


if __name__ == "__main__":
    main()
