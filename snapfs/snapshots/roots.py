"""A root: a plain directory, or the place where a file system of its own is mounted.

`init` formats an image file or a device and leaves a record, `<root>/snapfs.json`, in the
directory under the mount and in the file system itself. `attach` mounts by that record, and is
what a server calls first; `detach` is its last. A directory without a record is a plain root.

An image lies beside its root, `<root>.img`, sparse, so that the mount does not hide it.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import msgspec

from snapfs.model import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
    SnapfsError,
)
from snapfs.snapshots import devices
from snapfs.snapshots.devices import FILE_SYSTEMS, FileSystem
from snapfs.snapshots.faults import refusing
from snapfs.snapshots.layers import PRIVATE_MODE, sync_directory

RECORD = "snapfs.json"
RESTORING = "restoring.json"
"""In a root that is being made out of a backup, until it is whole (snapfs.backup)."""
BACKUP = "backup.json"
"""In a directory that is a backup (snapfs.backup)."""
BACKUP_BEGUN = "unfinished.json"
"""In one that a first backup was begun in."""
FORMAT = 1

PROBE = ".snapfs-probe-"
"""Begins the name of the directory in which `snapfs serve` tries what a root can hold."""
_DRAFT = f".{RECORD}.new"
_BEGINNINGS = {
    _DRAFT,
    "metadata",
    "layers",
    "empty",
    "content",
    "manifests",
    "packing",
    "lost+found",
}
"""What a root holds whose first start was cut short, or whose metadata is lost."""

_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class _AnyRecord(msgspec.Struct, frozen=True):
    """What a record of whatever format says first."""

    format: int = 1


class RootRecord(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a root with a file system of its own is made of."""

    format: int = FORMAT
    source: str
    """The image file or the device, as an absolute path."""
    file_system: FileSystem
    uuid: str
    """Of the file system: what is mounted must have it, under whatever device name."""


def parse_size(text: str) -> int:
    """Return the bytes in "20G", "512M" or "1048576"; K, M, G and T are powers of 1024."""
    number, unit = text.strip().lower().removesuffix("b").removesuffix("i"), ""
    if number and number[-1] in _UNITS:
        number, unit = number[:-1], number[-1]
    if not (number.isascii() and number.isdigit() and int(number)):
        raise InvalidArgument(f"size {text!r} is not understood; write it as 20G or 512M")
    return int(number) * _UNITS[unit]


def init(
    root: Path,
    *,
    image_bytes: int | None = None,
    device: Path | None = None,
    file_system: FileSystem = "ext4",
    force: bool = False,
) -> RootRecord | None:
    """Prepare `root`; with an image or a device, format, record and mount it.

    Without either nothing but a directory is made, and None returned; doing so again is no error.
    Raises AlreadyExists when the root has a file system or snapshots, FailedPrecondition when the
    device holds anything (unless `force`, which never takes one that is in use), naming what.
    """
    if file_system not in FILE_SYSTEMS:
        raise InvalidArgument(f"file system {file_system!r}: use one of {', '.join(FILE_SYSTEMS)}")
    if image_bytes is not None and device is not None:
        raise InvalidArgument("give an image size or a device, not both")
    root = root.absolute()
    with refusing(f"prepare root {root}"):
        if image_bytes is None and device is None:
            check_place(root)
            root.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
            return read_record(root)
        check_no_backup(root)
        with _made(root):
            _check_unused(root)
            if device is not None:
                _check_device(device, force=force)
                return _establish(root, device.resolve(), file_system)
            devices.check_size(image_bytes or 0, file_system)
            return _establish(root, _make_image(root, image_bytes or 0), file_system)


@contextmanager
def _made(root: Path) -> Iterator[None]:
    """Make `root` and what is missing above it; when the block raises, take them away again."""
    missing = [it for it in (root, *root.parents) if not it.exists()]
    try:
        root.mkdir(mode=PRIVATE_MODE, parents=True, exist_ok=True)
        yield
    except (SnapfsError, OSError):
        for each in missing:
            with suppress(OSError):  # not made, or somebody put something there meanwhile
                each.rmdir()
        raise


def _check_unused(root: Path) -> None:
    if read_record(root) is not None or os.path.ismount(root):
        raise AlreadyExists(
            f"root {root} has a file system of its own already; unmount it and delete "
            f"{root / RECORD} to begin anew"
        )
    if held := sorted(os.listdir(root)):
        raise AlreadyExists(
            f"root {root} is not empty ({', '.join(held[:3])}) and a mount would hide it; "
            "name another root"
        )


def _check_device(device: Path, *, force: bool) -> None:
    held = devices.contents(device)
    if held and devices.in_use(device):
        raise FailedPrecondition(f"device {device} holds {held}; release it first")
    if held and not force:
        raise FailedPrecondition(f"device {device} holds {held}; --force destroys it")


def _make_image(root: Path, size_bytes: int) -> Path:
    image = root.with_name(root.name + ".img")
    try:
        fd = os.open(image, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    except FileExistsError:
        raise AlreadyExists(f"image {image} exists; delete it, or name another root") from None
    try:
        os.truncate(fd, size_bytes)
    except OSError as error:
        image.unlink()
        if error.errno not in (errno.EFBIG, errno.EINVAL):
            raise
        raise InvalidArgument(
            f"image {image} of {size_bytes} bytes is larger than a file can be here; "
            "give a smaller size"
        ) from error
    finally:
        os.close(fd)
    return image


def _establish(root: Path, source: Path, file_system: FileSystem) -> RootRecord:
    """Format `source`, record it under and in the mount, and mount it."""
    is_image = source.is_file()
    try:
        devices.make_file_system(source, file_system)
        found = devices.uuid(source)
        record = RootRecord(source=str(source), file_system=file_system, uuid=found)
        _write_record(root, record)
        devices.mount(source, root, file_system)
    except SnapfsError:
        with suppress(FileNotFoundError):
            (root / RECORD).unlink()
        if is_image:
            source.unlink()
        raise
    root.chmod(PRIVATE_MODE)
    _write_record(root, record)
    return record


def check_place(root: Path) -> None:
    """Raise FailedPrecondition for what can be no root: `/`, a file, a directory of other things.

    One that is not there can become a root. Changes nothing.
    """
    if root.resolve() == Path("/"):
        raise FailedPrecondition(
            "root /: that is the system's own; name a directory for snapfs alone with --root"
        )
    check_no_backup(root)
    try:
        held = set(os.listdir(root))
    except FileNotFoundError:
        return
    if held & {RECORD, RESTORING} or (root / "metadata" / "data.mdb").exists():
        return
    others = sorted(it for it in held - _BEGINNINGS if not it.startswith(PROBE))
    if others:
        raise FailedPrecondition(
            f"root {root} holds other things ({', '.join(others[:3])}) and no snapshots; "
            "name an empty or a new directory with --root"
        )


def read_record(root: Path) -> RootRecord | None:
    """Return the record of a root, None for a plain directory; DataLoss when it is damaged."""
    path = root / RECORD
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        written = msgspec.json.decode(raw, type=_AnyRecord).format
        record = msgspec.json.decode(raw, type=RootRecord) if written <= FORMAT else None
    except (msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise DataLoss(f"{path} is not what `snapfs init` wrote ({error}); restore it") from error
    if record is None:
        raise FailedPrecondition(
            f"{path} has format {written}, newer than {FORMAT}; use a newer snapfs"
        )
    return record


def _write_record(root: Path, record: RootRecord) -> None:
    path, draft = root / RECORD, root / _DRAFT
    with draft.open("wb") as file:
        file.write(msgspec.json.format(msgspec.json.encode(record), indent=2) + b"\n")
        file.flush()
        os.fsync(file.fileno())
    draft.rename(path)
    sync_directory(root)


def check_whole(root: Path) -> None:
    """Raise FailedPrecondition for a root that a restore has not finished.

    The mark of one that ended but for its own removal goes: a root that was used is not to be
    taken for the one that was restored.
    """
    if (root / "metadata").exists():
        with suppress(OSError):  # a root that cannot be written is refused elsewhere
            (root / RESTORING).unlink()
    elif (root / RESTORING).exists():
        raise FailedPrecondition(
            f"root {root} is restored in part only; let `snapfs restore` finish, or empty it"
        )


def check_no_backup(root: Path) -> None:
    """Raise FailedPrecondition for a file, and for a backup: what opens a root changes it."""
    if root.exists() and not root.is_dir():
        raise FailedPrecondition(f"root {root} is no directory; name another one with --root")
    if any((root / name).exists() for name in (BACKUP, BACKUP_BEGUN)):
        raise FailedPrecondition(
            f"{root} is a backup, not a root; `snapfs restore {root} --root NEW` makes a root of it"
        )


def attach(root: Path) -> RootRecord | None:
    """Mount what the root's record says unless it is mounted; None for a plain directory.

    Raises NotFound when image or device are gone, FailedPrecondition when it cannot be mounted, is
    a backup, or no directory.
    """
    with refusing(f"open root {root}"):
        check_no_backup(root)
        record = read_record(root)
        if record is None or os.path.ismount(root):
            return record
        devices.mount(_source(root, record), root, record.file_system)
        if read_record(root) != record:
            devices.unmount(root)
            raise FailedPrecondition(
                f"{record.source} does not hold the file system that root {root} was made with; "
                "put the right one there"
            )
        return record


def _source(root: Path, record: RootRecord) -> Path:
    """Return where the file system is now: where it was, or under another device name."""
    recorded = Path(record.source)
    if recorded.exists() and devices.uuid(recorded) == record.uuid:
        return recorded
    moved = devices.find_by_uuid(record.uuid)
    if moved is None:
        raise NotFound(
            f"root {root}: neither {recorded} nor any device holds its file system "
            f"{record.uuid}; attach it, or restore the image"
        )
    return moved


def detach(root: Path) -> bool:
    """Unmount a root's own file system; False when it is in use and stays mounted.

    A plain directory, or one that is not mounted, is detached already.
    """
    with refusing(f"close root {root}"):
        if not os.path.ismount(root) or read_record(root) is None:
            return True
        return devices.unmount(root)
