"""Kernel overlayfs as the reference: mounts made with mount(2), without a process each."""

from __future__ import annotations

import ctypes
import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.support.loops import mount_image

REFERENCE_OPTIONS = "redirect_dir=on,index=on,metacopy=off,xino=off"

_libc = ctypes.CDLL(None, use_errno=True)
_MNT_DETACH = 2
BUSY_S = 20.0


def _check(result: int, what: object) -> None:
    if result:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(what))


def mount(kind: str, target: Path, options: str = "", flags: int = 0) -> None:
    """Mount a file system of type `kind` at `target`."""
    arguments = (kind.encode(), bytes(target), kind.encode(), flags, options.encode())
    _check(_libc.mount(*arguments), target)


def unmount(target: Path) -> None:
    """Unmount, lazily when something still holds the mount."""
    if _libc.umount2(bytes(target), 0):
        _check(_libc.umount2(bytes(target), _MNT_DETACH), target)


def _mount_when_free(target: Path, options: str) -> None:
    """Mount; a container that starts just now may hold an earlier mount a little longer."""
    deadline = time.monotonic() + BUSY_S
    while True:
        try:
            mount("overlay", target, options)
            return
        except OSError as error:
            if error.errno != errno.EBUSY or time.monotonic() > deadline:
                raise
        time.sleep(0.05)


@contextmanager
def overlay(
    target: Path,
    lowers: Sequence[Path],
    upper: Path | None = None,
    work: Path | None = None,
    *,
    options: str = REFERENCE_OPTIONS,
) -> Iterator[Path]:
    """Mount layers (direct parent first) with kernel overlayfs; yields `target`.

    Layers are named relative to the current directory meanwhile, so that many fit one page of
    options.
    """
    target.mkdir(exist_ok=True)
    base = Path(os.path.commonpath([*lowers, target]))
    names = ":".join(os.path.relpath(lower, base) for lower in lowers)
    parts = [f"lowerdir={names}"]
    if upper is not None and work is not None:
        work.mkdir(exist_ok=True)
        parts += [f"upperdir={upper}", f"workdir={work}"]
    if options:
        parts.append(options)
    here = Path.cwd()
    os.chdir(base)
    try:
        _mount_when_free(target, ",".join(parts))
    finally:
        os.chdir(here)
    try:
        yield target
    finally:
        unmount(target)


@contextmanager
def tmpfs(target: Path, options: str = "size=512m") -> Iterator[Path]:
    """Mount an empty tmpfs; yields `target`."""
    target.mkdir(exist_ok=True)
    mount("tmpfs", target, options)
    try:
        yield target
    finally:
        unmount(target)


@contextmanager
def image_fs(base: Path, kind: str, size_bytes: int = 400 << 20) -> Iterator[Path]:
    """Make and mount a small file system of type `kind`; yields its root."""
    image, target = base / f"{kind}.image", base / kind
    with image.open("wb") as file:
        file.truncate(size_bytes)
    subprocess.run([f"mkfs.{kind}", "-q", image], check=True)
    target.mkdir()
    mount_image(image, target)
    try:
        yield target
    finally:
        unmount(target)
