"""Block devices and file systems for a root of its own: what is there, mkfs, mount, umount.

Runs util-linux and mkfs tools from argument lists. A tool that fails is a FailedPrecondition with
what it said; one that is missing, with the package that has it.
"""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from pathlib import Path
from typing import Literal, TypeAlias, get_args

from snapfs.model import FailedPrecondition, InvalidArgument, NotFound

FileSystem: TypeAlias = Literal["ext4", "xfs", "btrfs"]
FILE_SYSTEMS: tuple[FileSystem, ...] = get_args(FileSystem)

TOOL_S = 600.0
"""Longest time that one tool may take."""

_MKFS: dict[FileSystem, tuple[str, ...]] = {
    "ext4": ("mkfs.ext4", "-q", "-F", "-m", "0"),
    "xfs": ("mkfs.xfs", "-q", "-f"),
    "btrfs": ("mkfs.btrfs", "-q", "-f"),
}
_SMALLEST_BYTES: dict[FileSystem, int] = {
    "ext4": 16 << 20,
    "xfs": 300 << 20,
    "btrfs": 128 << 20,
}
_PACKAGES = {"mkfs.ext4": "e2fsprogs", "mkfs.xfs": "xfsprogs", "mkfs.btrfs": "btrfs-progs"}
_MOUNT_OPTIONS = "noatime"
_LOOKED_AT_BYTES = 1 << 20
_NOTHING_FOUND = 2


def run(*command: str, accept: tuple[int, ...] = (0,)) -> str:
    """Run a tool and return what it printed; FailedPrecondition when it fails."""
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=TOOL_S, check=False, errors="replace"
        )
    except FileNotFoundError:
        package = _PACKAGES.get(command[0], "util-linux")
        raise FailedPrecondition(
            f"{command[0]} is not installed; install the package {package}"
        ) from None
    except subprocess.TimeoutExpired:
        raise FailedPrecondition(
            f"{' '.join(command)} did not end within {TOOL_S:g} s; look at the device"
        ) from None
    if done.returncode not in accept:
        said = " ".join((done.stderr or done.stdout).split()) or f"exit status {done.returncode}"
        raise FailedPrecondition(f"{' '.join(command)} failed: {said}")
    return done.stdout


def check_size(size_bytes: int, file_system: FileSystem) -> None:
    """Raise InvalidArgument when `file_system` cannot be made in `size_bytes`."""
    smallest = _SMALLEST_BYTES[file_system]
    if size_bytes < smallest:
        raise InvalidArgument(
            f"{size_bytes} bytes are too few for {file_system}; give at least {smallest >> 20}M"
        )


def contents(device: Path) -> str:
    """Say what a block device holds, in words; empty when it holds nothing.

    Raises InvalidArgument when it is not a block device, NotFound when it does not exist.
    """
    _check_block_device(device)
    if used := _use(device):
        return used
    found = _probe(device)
    if kind := found.get("TYPE") or found.get("PTTYPE"):
        named = f"{'an' if kind[0] in 'aeiox' else 'a'} {kind}"
        what = f"{named} file system" if found.get("USAGE") == "filesystem" else f"{kind} data"
        what = f"{named} partition table" if "TYPE" not in found else what
        marks = [f"{key.lower()} {found[key]}" for key in ("LABEL", "UUID") if key in found]
        return " ".join([what, *([f"({', '.join(marks)})"] if marks else [])])
    with device.open("rb") as file:
        if any(file.read(_LOOKED_AT_BYTES)):
            return "data of no known format"
    return ""


def _check_block_device(device: Path) -> None:
    try:
        mode = device.stat().st_mode
    except FileNotFoundError:
        raise NotFound(f"device {device} does not exist; see lsblk for those that do") from None
    if not stat.S_ISBLK(mode):
        raise InvalidArgument(
            f"{device} is not a block device; for a file system in a file use --image"
        )


def in_use(device: Path) -> bool:
    """Say whether the kernel holds the device: mounted, swap, or part of another device."""
    return bool(_use(device))


def _use(device: Path) -> str:
    number = device.stat().st_rdev
    wanted = f"{os.major(number)}:{os.minor(number)}"
    table = Path("/proc/self/mountinfo").read_bytes().decode(errors="replace")
    for line in table.rstrip("\n").split("\n"):
        fields = line.split()
        if fields[2] == wanted:
            return f"a file system mounted at {fields[4]}"
    try:
        os.close(os.open(device, os.O_RDONLY | os.O_EXCL))
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        return "something that the kernel uses (mounted elsewhere, swap, lvm, raid)"
    return ""


def _probe(device: Path) -> dict[str, str]:
    printed = run("blkid", "-p", "-o", "export", str(device), accept=(0, _NOTHING_FOUND))
    pairs = (line.partition("=") for line in printed.splitlines())
    return {key: value for key, _, value in pairs}


def uuid(device: Path) -> str:
    """Return the UUID of the file system in a device or image file, empty when there is none."""
    return _probe(device).get("UUID", "")


def find_by_uuid(wanted: str) -> Path | None:
    """Return the device that holds the file system of this UUID now."""
    printed = run("blkid", "-U", wanted, accept=(0, _NOTHING_FOUND)).strip()
    return Path(printed) if printed else None


def make_file_system(target: Path, file_system: FileSystem) -> None:
    """Format a device or an image file; what it held is gone."""
    run(*_MKFS[file_system], str(target))


def mount(source: Path, target: Path, file_system: FileSystem) -> None:
    """Mount a device, or an image file through a loop device, at `target`."""
    loop = "loop," if source.is_file() else ""
    run("mount", "-t", file_system, "-o", loop + _MOUNT_OPTIONS, str(source), str(target))


def unmount(target: Path) -> bool:
    """Unmount `target`; say whether it is gone, False when it is in use."""
    try:
        run("umount", str(target))
    except FailedPrecondition:
        if os.path.ismount(target):
            return False
    return True
