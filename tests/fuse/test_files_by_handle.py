"""Who may open files by handle opens none of a lane's: one super block has all its snapshots."""

from __future__ import annotations

import ctypes
import errno
import os
import struct
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.overlay import identity
from tests.support.lanes import House, bind_mount

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

FUSE_HANDLE = 0x81
"""FILEID_INO64_GEN: number of the node, 64 bits in two words, and its generation."""
_libc = ctypes.CDLL(None, use_errno=True)


def open_by_handle(mounted: Path, nodeid: int) -> int:
    handle = struct.pack("<IiIII", 12, FUSE_HANDLE, nodeid >> 32, nodeid & 0xFFFFFFFF, 0)
    beside = os.open(mounted, os.O_RDONLY | os.O_DIRECTORY)
    try:
        found = _libc.open_by_handle_at(beside, handle, os.O_RDONLY)
        if found < 0:
            raise OSError(ctypes.get_errno(), "open_by_handle_at")
        return int(found)
    finally:
        os.close(beside)


def fill(layer: Path) -> None:
    (layer / "secret").write_text("theirs")


def test_no_snapshot_is_opened_by_handle(house: House, tmp_path: Path) -> None:
    ours, theirs = house.active(fill), house.active(fill)
    with bind_mount(house.lane.mountpoint(ours.id), tmp_path / "ours") as mounted:
        secret = (house.lane.mountpoint(theirs.id) / "secret").stat().st_ino
        for nodeid in (
            identity.LANE_ROOT,
            identity.root(theirs.id),
            secret,
            identity.root(ours.id),
        ):
            with pytest.raises(OSError) as caught:
                os.close(open_by_handle(mounted, nodeid))
            assert caught.value.errno in (errno.ESTALE, errno.EOPNOTSUPP)
