"""The options of `snapfs-overlay -o`: those of fuse-overlayfs, with its defaults.

Options are separated by commas; a backslash makes the next character plain, also a colon between
layers (as the kernel's overlayfs has it), and `\\ooo` is a byte in octal (as mount(8) writes it).
`optionnames` says what becomes of which; what is in no list there is refused, never guessed.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from snapfs.fuse import mounts, optionnames
from snapfs.fuse.attributes import FOREVER_S
from snapfs.fuse.awake import Awake
from snapfs.model import InvalidArgument, NotImplementedYet
from snapfs.overlay import Atime

_T = TypeVar("_T")

_ESCAPE = re.compile(r"\\([0-7]{3}|.)", re.DOTALL)
_CHARACTER = re.compile(r'\\.|(?<=context=)"[^"]*"|.', re.DOTALL)
"""One character or what counts as one: an escape, a security context in quotes."""
_SELINUX = Path("/sys/fs/selinux/enforce")

_MOUNT_FLAGS = {
    "ro": (mounts.MS_RDONLY, True),
    "rw": (mounts.MS_RDONLY, False),
    "nosuid": (mounts.MS_NOSUID, True),
    "suid": (mounts.MS_NOSUID, False),
    "nodev": (mounts.MS_NODEV, True),
    "dev": (mounts.MS_NODEV, False),
    "noexec": (mounts.MS_NOEXEC, True),
    "exec": (mounts.MS_NOEXEC, False),
    "nodiratime": (mounts.MS_NODIRATIME, True),
    "diratime": (mounts.MS_NODIRATIME, False),
    "sync": (mounts.MS_SYNCHRONOUS, True),
    "async": (mounts.MS_SYNCHRONOUS, False),
    "dirsync": (mounts.MS_DIRSYNC, True),
}

_ATIMES = {
    "noatime": (mounts.MS_NOATIME, Atime.NOATIME),
    "atime": (0, Atime.RELATIME),
    "relatime": (mounts.MS_RELATIME, Atime.RELATIME),
    "strictatime": (mounts.MS_STRICTATIME, Atime.STRICTATIME),
}
_ANY_ATIME = mounts.MS_NOATIME | mounts.MS_RELATIME | mounts.MS_STRICTATIME


@dataclass(frozen=True, slots=True)
class IdRange:
    """`length` owners from `stored` in the layers are shown from `shown` on."""

    stored: int
    shown: int
    length: int


@dataclass(frozen=True, slots=True)
class OverlayOptions:
    """What a plain overlay is made of and how it behaves."""

    lowers: tuple[Path, ...] = ()
    upper: Path | None = None
    work: Path | None = None
    mount_flags: int = mounts.MS_NODEV | mounts.MS_NOATIME
    """As fuse-overlayfs mounts."""
    source: str = "snapfs-overlay"
    subtype: str = "snapfs-overlay"
    allows_others: bool = True
    security: tuple[str, ...] = ()
    """Options for the kernel's security modules, handed on to mount(2)."""
    atime: Atime | None = None
    """When reads change times of access; None: as where the upper directory is mounted."""
    timeout_s: float = FOREVER_S
    uid_ranges: tuple[IdRange, ...] = ()
    gid_ranges: tuple[IdRange, ...] = ()
    squash_uid: int | None = None
    squash_gid: int | None = None
    static_nlink: bool = False
    durable: bool = True
    """Off, no fsync reaches the disk (`volatile`, `fsync=0`)."""
    redirects: bool = False
    """Directories of lower layers can be renamed; off, EXDEV: diff tools may not know redirects."""
    metacopy: bool = False
    """A change of attributes copies no data; at the end of the mount none is left below."""
    awake: Awake = Awake.AUTO
    acl: bool = True
    xattrs: bool = True
    debug: bool = False


def parse(
    texts: Iterable[str], *, sloppy: bool = False, source: str | None = None
) -> OverlayOptions:
    """Read the arguments of `-o`; InvalidArgument names the option and the way out.

    `sloppy` leaves out names that are not known. `source` is what the mount shows unless `fsname`
    says otherwise.
    """
    options = OverlayOptions() if source is None else OverlayOptions(source=source)
    for text in texts:
        for option in filter(None, _cut(text, ",")):
            options = _apply(options, option, sloppy=sloppy)
    if not options.lowers:
        raise InvalidArgument("lowerdir is missing; give -o lowerdir=DIR[:DIR...]")
    if options.upper is not None and options.work is None:
        raise InvalidArgument("workdir is missing; an upperdir needs -o workdir=DIR beside it")
    if options.upper is not None and options.work is not None:
        _check_apart(options.upper.resolve(), options.work.resolve(), options.lowers)
    if options.upper is None:
        options = replace(options, mount_flags=options.mount_flags | mounts.MS_RDONLY)
    return options


def _check_apart(upper: Path, work: Path, lowers: Iterable[Path]) -> None:
    """Refuse directories of which one would show or change another, as the kernel does."""
    if upper.is_relative_to(work) or work.is_relative_to(upper):
        raise InvalidArgument(
            f"upperdir {os.fspath(upper)!r} and workdir {os.fspath(work)!r} lie in each other; "
            "put them side by side"
        )
    if any(lower.resolve() == upper for lower in lowers):
        raise InvalidArgument(f"upperdir {os.fspath(upper)!r} is a lowerdir too; take another one")


def _apply(options: OverlayOptions, option: str, *, sloppy: bool) -> OverlayOptions:
    name, given, value = option.partition("=")
    if name in _MOUNT_FLAGS:
        bit, on = _MOUNT_FLAGS[name]
        return replace(
            options, mount_flags=options.mount_flags | bit if on else options.mount_flags & ~bit
        )
    if name in _ATIMES:
        bit, atime = _ATIMES[name]
        flags = options.mount_flags & ~_ANY_ATIME | bit
        return replace(options, mount_flags=flags, atime=atime)
    if name in optionnames.TAKEN:
        return replace(options, **_changes(options, name, value if given else None))
    if name in optionnames.CONTEXTS:
        taken = (option,) if _SELINUX.exists() else ()
        return replace(options, security=options.security + taken)
    if name in optionnames.REFUSED:
        harmless, reason = optionnames.REFUSED[name]
        if not given or value not in harmless:
            raise NotImplementedYet(f"{name}: {reason}")
        return options
    if name in optionnames.IGNORED or name.startswith(("x-", "X-", "comment=")) or sloppy:
        return options
    raise InvalidArgument(f"option {name!r} is not known{_nearest(name)}")


def _changes(options: OverlayOptions, name: str, value: str | None) -> dict[str, Any]:
    match name:
        case "lowerdir":
            return {"lowers": _directories(value)}
        case "upperdir":
            return {"upper": _directory(name, value)}
        case "workdir":
            return {"work": _directory(name, value)}
        case "redirect_dir":
            return {
                "redirects": _choice(
                    name, value, {"on": True, "off": False, "follow": False, "nofollow": False}
                )
            }
        case "metacopy":
            return {"metacopy": _choice(name, value, {"on": True, "off": False})}
        case "awake":
            return {"awake": _choice(name, value, {it.value: it for it in Awake})}
        case "uidmapping":
            return {"uid_ranges": _ranges(name, value)}
        case "gidmapping":
            return {"gid_ranges": _ranges(name, value)}
        case "squash_to_root":
            return {
                "squash_uid": options.squash_uid if options.squash_uid is not None else 0,
                "squash_gid": options.squash_gid if options.squash_gid is not None else 0,
            }
        case "squash_to_uid":
            return {"squash_uid": _number(name, value)}
        case "squash_to_gid":
            return {"squash_gid": _number(name, value)}
        case "static_nlink":
            return {"static_nlink": True}
        case "timeout":
            return {"timeout_s": _seconds(name, value)}
        case "fsync":
            return {"durable": _switch(name, value)}
        case "volatile":
            return {"durable": False}
        case "noacl":
            return {"acl": False}
        case "noxattrs":
            return {"xattrs": not _switch(name, value)}
        case "debug":
            return {"debug": True}
        case "fsname":
            return {"source": _plain(value or "")}
        case "subtype":
            return {"subtype": _plain(value or "")}
        case "allow_other" | "allow_root":
            return {"allows_others": name == "allow_other"}  # who mounts is root
        case _:
            raise AssertionError(name)


def _cut(text: str, separator: str) -> list[str]:
    """Split at separators that no backslash precedes; escapes are kept."""
    parts = [""]
    for found in _CHARACTER.finditer(text):
        if found[0] == separator:
            parts.append("")
        else:
            parts[-1] += found[0]
    return parts


def _directories(value: str | None) -> tuple[Path, ...]:
    parts = _cut(value or "", ":")
    if not all(parts):
        raise InvalidArgument(
            f"lowerdir {value!r} has an empty path; put one colon between two, \\: in a name"
        )
    return tuple(_directory("lowerdir", part) for part in parts)


def _directory(name: str, value: str | None) -> Path:
    path = Path(_plain(value or "")).absolute()
    if not value:
        raise InvalidArgument(f"{name} is empty; give a directory")
    if not path.is_dir():
        raise InvalidArgument(f"{name} {os.fspath(path)!r} is not a directory; make it first")
    return path


def _ranges(name: str, value: str | None) -> tuple[IdRange, ...]:
    """Read `STORED:SHOWN:LENGTH`, several joined by colons or commas, as fuse-overlayfs does.

    Empty words do not count: podman begins with a colon.
    """
    words = [word for word in re.split(r"[:,]", (value or "").replace("\\,", ",")) if word]
    if not words or not all(word.isdigit() for word in words) or len(words) % 3:
        raise InvalidArgument(f"{name} {value!r} is not ID:MAPPED-ID:LENGTH, repeated with colons")
    numbers = [int(word) for word in words]
    return tuple(
        IdRange(stored=numbers[at], shown=numbers[at + 1], length=numbers[at + 2])
        for at in range(0, len(numbers), 3)
    )


def _number(name: str, value: str | None) -> int:
    if value is None or not value.isdigit():
        raise InvalidArgument(f"{name} {value!r} is not a number; give an id")
    return int(value)


def _seconds(name: str, value: str | None) -> float:
    try:
        seconds = float(value or "")
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds < float("inf"):
        raise InvalidArgument(f"{name} {value!r} is not a number of seconds")
    return seconds


def _switch(name: str, value: str | None) -> bool:
    return bool(_choice(name, value, {"0": False, "1": True}))


def _choice(name: str, value: str | None, choices: Mapping[str, _T]) -> _T:
    try:
        return choices[value or ""]
    except KeyError:
        raise InvalidArgument(f"{name} {value!r}: choose one of {', '.join(choices)}") from None


def _plain(text: str) -> str:
    """Take escapes out of a value."""
    return _ESCAPE.sub(lambda found: _escaped(found[1]), text)


def _escaped(what: str) -> str:
    return os.fsdecode(bytes([int(what, 8) & 0xFF])) if len(what) == 3 else what


def _nearest(name: str) -> str:
    known = sorted(optionnames.known() | _MOUNT_FLAGS.keys() | _ATIMES.keys())
    close = difflib.get_close_matches(name, known, 1)
    return f"; did you mean {close[0]!r}?" if close else "; see snapfs-overlay --help"
