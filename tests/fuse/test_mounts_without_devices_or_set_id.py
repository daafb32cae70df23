"""Devices on `nodev` mounts are inert, and set-id programs on `nosuid` ones run as their caller.

What a container runtime binds, and what it mounts by `snapfs-overlay`; without the options both
work, as images need.
"""

from __future__ import annotations

import os
import shutil
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import bind_mount, house
from tests.support.overlay.kernel import unmount

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain, pytest.mark.timeout(120)]

SOMEBODY = 12345
INERT = ("nodev", "nosuid")


def set_up(layer: Path) -> None:
    """A device and a set-id program, of which some are in the lower layer."""
    layer.chmod(0o755)
    os.mknod(layer / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    (layer / "zero").chmod(0o666)
    shutil.copy(Path("/usr/bin/id").resolve(), layer / "id")
    (layer / "id").chmod(0o4755)


def read_device(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY)
    try:
        return os.read(fd, 4)
    finally:
        os.close(fd)


def runs_as(program: Path) -> int:
    """Return the effective user of a program that somebody starts."""
    done = subprocess.run(
        [program, "-u"], user=SOMEBODY, group=SOMEBODY, extra_groups=[], capture_output=True,
        check=True, timeout=30,
    )  # fmt: skip
    return int(done.stdout)


def check(place: Path, *, are_inert: bool) -> None:
    assert stat.S_ISCHR((place / "zero").stat().st_mode)
    assert (place / "id").stat().st_mode & stat.S_ISUID
    if are_inert:
        with pytest.raises(PermissionError):
            read_device(place / "zero")
        assert runs_as(place / "id") == SOMEBODY
    else:
        assert read_device(place / "zero") == bytes(4)
        assert runs_as(place / "id") == 0


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that somebody may pass through, unlike pytest's own."""
    made = Path("/var/tmp") / f"snapfs-inert-{os.getpid()}"
    made.mkdir(mode=0o755)
    yield made
    shutil.rmtree(made)


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_what_is_bound_without_devices_and_set_id_has_none(base: Path, mode: Mode) -> None:
    with house(base / "house", mode=mode) as made:
        lower, upper = made.active(set_up), made.active()
        set_up(upper.path)
        copied = made.active(set_up)
        (copied / "id").chmod(0o4711)  # copies it up
        for tree in (lower, upper, copied):
            with bind_mount(tree.path, base / "bound") as bound:
                check(bound, are_inert=False)
                options = ",".join(("remount", "bind", *INERT))
                subprocess.run(["mount", "-o", options, bound], check=True)
                check(bound, are_inert=True)
                os.mknod(bound / "made", stat.S_IFCHR | 0o666, os.makedev(1, 5))
                with pytest.raises(PermissionError):
                    read_device(bound / "made")


@contextmanager
def overlay(base: Path, *options: str) -> Iterator[Path]:
    place = base / "merged"
    for name in ("upper", "work", "merged"):
        (base / name).mkdir(exist_ok=True)
    layers = (
        f"lowerdir={base / 'lower'}",
        f"upperdir={base / 'upper'}",
        f"workdir={base / 'work'}",
    )
    command = [Path(sys.executable).with_name("snapfs-overlay"), place]
    subprocess.run([*command, "-o", ",".join((*layers, *options))], check=True, timeout=60)
    try:
        yield place
    finally:
        unmount(place)


@pytest.mark.parametrize("options", [(), INERT])
def test_the_options_of_the_overlay_command_are_honoured(
    base: Path, options: tuple[str, ...]
) -> None:
    (base / "lower").mkdir()
    set_up(base / "lower")
    with overlay(base, *(options or ("dev", "suid"))) as place:
        check(place, are_inert=bool(options))
