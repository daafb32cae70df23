"""`snapfs mount` and `snapfs umount`.

A view or an active snapshot made for a mount remembers its target in a label, so that `umount`
finds it again, in another process and after a crash. What was not made for the mount is left alone.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING

import click

from snapfs.cli import output
from snapfs.cli.options import (
    SNAPSHOT,
    AbsolutePath,
    client_options,
    connect,
    namespace_option,
)
from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    FailedPrecondition,
    NotFound,
    Snapshot,
    Unavailable,
    View,
)

if TYPE_CHECKING:
    from snapfs.service.client import Client
    from snapfs.service.records import Record

MOUNTED_AT = "snapfs.io/mounted-at"
"""Label of a snapshot that `snapfs mount` made: the target that it was made for."""


@click.command()
@client_options
@click.option("--writable", is_flag=True, help="Over a committed NAME, make a writable snapshot.")
@click.option("--key", help="Key of the snapshot that is made.  [default: mount:TARGET]")
@namespace_option
@click.argument("name", type=SNAPSHOT)
@click.argument("target", type=AbsolutePath())
def mount(
    address: Path | None,
    config_path: Path | None,
    namespace: str,
    writable: bool,
    key: str | None,
    name: str,
    target: Path,
) -> None:
    """Mount the snapshot or the image NAME at the directory TARGET.

    A committed one, or an image, is mounted through a view, which `snapfs umount` removes again,
    or with --writable through a new active snapshot, which stays with its changes. An active
    snapshot or a view is mounted as it is.

    \b
    Example:
      snapfs mount base /mnt
      snapfs mount base /mnt --writable --key work
      snapfs mount docker.io/library/debian:12 /mnt
    """
    place = _directory(target)
    with connect(address, config_path) as client:
        snapshot = _snapshot_or_image(client, namespace, name)
        name = snapshot.name
        match snapshot:
            case Committed():
                made = key or f"mount:{place}"
                _mount_committed(client, name, made, place, writable=writable)
            case View() if writable:
                raise FailedPrecondition(
                    f"{name!r} is a view, and views are read-only; "
                    f"mount its parent {snapshot.parent!r} with --writable"
                )
            case Active() | View():
                if key is not None:
                    raise click.UsageError(f"--key is for committed snapshots; {name!r} is none")
                _mount(client, name, place)


def mount_read_only(client: Client, name: str, target: Path) -> None:
    """Mount a committed snapshot at an existing directory, through a view that `umount` removes."""
    place = _directory(target)
    _mount_committed(client, name, f"mount:{place}", place, writable=False)


@click.command()
@client_options
@click.option("--lazy", is_flag=True, help="Detach a busy mount now, end it when it is let go.")
@click.argument("target", type=AbsolutePath())
def umount(address: Path | None, config_path: Path | None, lazy: bool, target: Path) -> None:
    """Unmount the snapshot at TARGET; a view made for it is removed.

    \b
    Example:
      snapfs umount /mnt
    """
    place = Path(os.path.realpath(target))
    with connect(address, config_path) as client:
        here = _found_at(client, place)
        if not here:
            raise NotFound(
                f"no snapshot is mounted at {place}; `snapfs snapshot tree` shows what is mounted"
            )
        if any(place in it.mounted_at for it in here):
            _unmount(place, lazy=lazy)
            here = _found_at(client, place)
        for it in here:
            _let_go(client, it, place)


def _snapshot_or_image(client: Client, namespace: str, name: str) -> Snapshot:
    """Return the snapshot of that name, or the one of the image of that name."""
    from snapfs.service.metadata_client import ImageClient

    try:
        return client.info(name).snapshot
    except NotFound:
        with ImageClient(client.address, namespace) as images:
            try:
                found = images.get(name)
            except NotFound:
                raise NotFound(
                    f"neither a snapshot nor an image is called {name!r}; "
                    "`snapfs snapshot list` and `snapfs image list` show those there are"
                ) from None
        if not found.snapshot:
            raise FailedPrecondition(
                f"image {name!r} is not unpacked here; import it again without --no-unpack"
            ) from None
        return client.info(found.snapshot).snapshot


def _mount_committed(client: Client, name: str, key: str, place: Path, *, writable: bool) -> None:
    make = client.prepare if writable else client.view
    labels = {MOUNTED_AT: str(place)}
    try:
        make(key, name, labels)
    except AlreadyExists:
        _clear_leftover(client, key, place)
        make(key, name, labels)
    try:
        _mount(client, key, place)
    except (OSError, FailedPrecondition, Unavailable):
        client.remove(key)
        raise
    click.echo(output.printable(key))


def _clear_leftover(client: Client, key: str, place: Path) -> None:
    """Remove the view of an earlier mount that ended without `umount`; refuse anything else."""
    old = client.info(key)
    if isinstance(old.snapshot, View) and _is_at(old, place) and not old.mounted_at:
        client.remove(key)
        return
    if isinstance(old.snapshot, Active):
        raise AlreadyExists(
            f"snapshot {key!r} exists and may hold changes; mount it with "
            f"`snapfs mount {key} {place}`, remove it, or choose another with --key"
        )
    raise AlreadyExists(f"snapshot {key!r} exists; unmount it, or choose another with --key")


def _mount(client: Client, key: str, place: Path) -> None:
    from snapfs.fuse.attach import attach
    from snapfs.fuse.lanemount import FS_TYPE
    from snapfs.fuse.mounts import mounted_at

    for it in client.mounts(key):
        try:
            attach(it, place)
        except FileNotFoundError as error:
            lane = Path(it.source).parent
            found = mounted_at(lane)
            if not found or found[-1].type != FS_TYPE:
                raise Unavailable(
                    f"lane {lane.name} is not mounted at {lane}; "
                    "`snapfs status` says why, and what to do"
                ) from error
            raise FailedPrecondition(
                f"the tree of snapshot {output.printable(key)} is not at {it.source}: "
                "a layer of it may be missing; run `snapfs fsck`"
            ) from error


def _unmount(place: Path, *, lazy: bool) -> None:
    from snapfs.fuse.attach import detach

    try:
        detach(place, lazy=lazy)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        raise FailedPrecondition(
            f"{place} is busy: programs use it (`fuser -vm {place}` names them); "
            "end them, or detach it with --lazy"
        ) from error


def _found_at(client: Client, place: Path) -> list[Record]:
    return [it for it in client.list() if _is_at(it, place)]


def _let_go(client: Client, it: Record, place: Path) -> None:
    """Undo what `mount` made for `place`, unless another mount was above it there."""
    if it.snapshot.labels.get(MOUNTED_AT) != str(place) or place in it.mounted_at:
        return
    name = it.snapshot.name
    if isinstance(it.snapshot, View):
        if not it.mounted_at:
            client.remove(name)
        return
    client.update(name, {}, [f"labels.{MOUNTED_AT}"])
    click.echo(
        f"{output.printable(name)} keeps the changes; commit it with "
        "`snapfs snapshot commit`, or drop them with `snapfs snapshot remove`",
        err=True,
    )


def _is_at(it: Record, place: Path) -> bool:
    return place in it.mounted_at or it.snapshot.labels.get(MOUNTED_AT) == str(place)


def _directory(target: Path) -> Path:
    """Return the real path of an existing directory, as mount tables name it."""
    place = Path(os.path.realpath(target))
    try:
        mode = place.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        raise NotFound(f"target {target} does not exist; create the directory first") from None
    except OSError as error:
        if error.errno != errno.ENOTCONN:
            raise
        raise FailedPrecondition(
            f"target {target}: a dead mount is there; unmount it first (`umount {place}`)"
        ) from error
    if not stat.S_ISDIR(mode):
        raise FailedPrecondition(f"target {target} is no directory; choose one")
    return place
