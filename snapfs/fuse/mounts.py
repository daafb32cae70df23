"""mount(2) and umount2(2), and what /proc and /sys tell about a mount.

Nothing here asks the mounted file system anything: a worker that is dead must not stall its
supervisor.
"""

from __future__ import annotations

import ctypes
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from snapfs import processes

MS_RDONLY = 1
MS_NOSUID = 2
MS_NODEV = 4
MS_NOEXEC = 8
MS_SYNCHRONOUS = 16
MS_DIRSYNC = 128
MS_NOATIME = 1024
MS_NODIRATIME = 2048
MS_RELATIME = 1 << 21
MS_STRICTATIME = 1 << 24

MNT_FORCE = 1
MNT_DETACH = 2
UMOUNT_NOFOLLOW = 8

_libc = ctypes.CDLL(None, use_errno=True)
_OCTAL = re.compile(r"\\([0-7]{3})")


@dataclass(frozen=True, slots=True)
class MountPoint:
    """One line of /proc/self/mountinfo."""

    device: str
    """`major:minor` of the super block; for FUSE the minor is the number of the connection."""
    root: str
    """Directory of the file system that is the mount's root; not `/` for a bind mount of one."""
    path: str
    type: str
    source: str
    number: int
    """Of the mount, as descriptors on it tell."""


def mount(source: str, target: Path, kind: str, flags: int, data: str) -> None:
    """Call mount(2); an OSError carries the target."""
    if _libc.mount(
        os.fsencode(source),
        os.fsencode(target),
        kind.encode(),
        ctypes.c_ulong(flags),
        data.encode(),
    ):
        _raise(target)


def unmount(target: Path, flags: int = 0) -> None:
    """Call umount2(2), not through a symbolic link; may block while dirty pages are written."""
    if _libc.umount2(os.fsencode(target), flags | UMOUNT_NOFOLLOW):
        _raise(target)


def mounted_at(target: Path) -> list[MountPoint]:
    """Return the mounts stacked on `target`, lowest first; `target` must be absolute and real."""
    wanted = str(target)
    return [found for found in mount_table() if found.path == wanted]


def mount_table(process: str = "self") -> list[MountPoint]:
    """Return the mounts of a process's mount name space (proc(5), mountinfo)."""
    table = f"/proc/{process}/mountinfo"
    # Of what ends lines elsewhere the kernel escapes the newline only.
    with open(table, encoding="utf-8", errors="surrogateescape", newline="\n") as lines:
        return [_parse(line) for line in lines]


def clones_of(lane: Path) -> Path:
    """Return the directory below which the idmapped clones of a lane are mounted."""
    return lane.with_name(lane.name + ".idmap")


def uses(device: str, lane: Path) -> list[str]:
    """Return where a file system is mounted beside its lane, in every mount name space.

    Its idmapped clones go with it and are no use of it; so do the copies of both that other name
    spaces have. What only another name space has comes with a process of it.
    """
    own = str(lane), str(clones_of(lane))
    found = {
        it.path
        for it in mount_table()
        if it.device == device and not it.path.startswith(f"{own[1]}/") and it.path != own[0]
    }
    elsewhere: dict[str, str] = {}
    for pid in _one_of_each_name_space():
        try:
            table = mount_table(str(pid))
        except OSError:
            continue  # it has ended since
        for it in table:
            if it.device == device and it.root != "/" and it.path not in found:
                elsewhere.setdefault(it.path, f"{it.path} of {processes.described(pid)}")
    return [*sorted(found), *sorted(elsewhere.values())]


def _one_of_each_name_space() -> Iterator[int]:
    """Yield a process of each mount name space but our own."""
    seen = {os.stat("/proc/self/ns/mnt").st_ino}
    for pid in processes.running():
        try:
            name_space = os.stat(f"/proc/{pid}/ns/mnt").st_ino
        except OSError:
            continue  # it has ended since, or is a zombie
        if name_space not in seen:
            seen.add(name_space)
            yield pid


def is_in_memory(device: int) -> bool:
    """Say whether a file system (st_dev) keeps its files in memory, so that reads never wait."""
    number = f"{os.major(device)}:{os.minor(device)}"
    return any(it.device == number and it.type in ("tmpfs", "ramfs") for it in mount_table())


READ_AHEAD_KIB = 4096
"""A few of the longest requests at once."""
DIRTY_PERCENT = 40
"""Of the memory for dirty pages; the kernel lets a FUSE mount have 1, strictly, lest the process
behind it does not write. Ours does, and shared mappings are slow with so little."""


def tune(device: str) -> bool:
    """Set what the kernel keeps of a super block in memory; False where /sys does not allow it.

    `strict_limit` came with Linux 6.2 and is left alone before.
    """
    wanted = {"read_ahead_kb": READ_AHEAD_KIB, "max_ratio": DIRTY_PERCENT, "strict_limit": 0}
    known = Path(f"/sys/class/bdi/{device}")
    try:
        for name, value in wanted.items():
            if (known / name).exists():
                (known / name).write_text(str(value))
    except OSError:
        return False
    return known.exists()


def _parse(line: str) -> MountPoint:
    before, _, after = line.rstrip("\n").partition(" - ")
    fields = before.split(" ")
    kind, source = after.split(" ")[:2]
    root, path = _plain(fields[3]), _plain(fields[4])
    return MountPoint(fields[2], root, path, kind, _plain(source), int(fields[0]))


def _plain(escaped: str) -> str:
    return _OCTAL.sub(lambda found: chr(int(found[1], 8)), escaped)


def _raise(target: Path) -> None:
    number = ctypes.get_errno()
    raise OSError(number, os.strerror(number), str(target))
