"""Inode numbers: unique in a lane, the same after copy-up, forget, remount and restart.

A number is (snapshot number) << 40 | low. The low part is 0 for the snapshot's root and otherwise
the real inode number of the file the node began as, so it needs no table: all layers normally lie
on one file system. Layers on other devices get the upper half of the low range, divided by device;
what fits nowhere gets numbers counted up from a last range, which hold until the tree is closed.

    0 .. 2^39-1                      inode numbers of the main device, or their lower 39 bits
    2^39 | device << 32 | inode      inode numbers below 2^32 of devices 0..126
    2^39 | 127 << 32 | counter       everything else

A main device may have bigger numbers: layers inside a snapshot have all the number of that snapshot
in their upper bits. The upper bits of a layer's root then stand for those of all.
"""

from __future__ import annotations

import errno

LOW_BITS = 40
LOW_MASK = (1 << LOW_BITS) - 1
LANE_ROOT = 1
"""Number of a lane's own root directory."""

_PREFIXES = (1 << 23) - 1
_MAIN_BITS = 39
_FOREIGN = 1 << _MAIN_BITS
_DEVICE_BITS = 32
_COUNTED = 127


def prefix(number: int) -> int:
    """What the numbers of snapshot `number` (from 1) have in their upper bits."""
    return ((number - 1) % _PREFIXES + 1) << LOW_BITS


def root(number: int) -> int:
    """The number of a snapshot's root directory."""
    return prefix(number)


def split(ino: int) -> tuple[int, int]:
    """Return (snapshot number, low part); snapshot 0 is the lane itself."""
    return ino >> LOW_BITS, ino & LOW_MASK


def lasts(low: int) -> bool:
    """Whether a low part is the same at the next opening: it is not one that was counted up."""
    return low >> _DEVICE_BITS != (_FOREIGN >> _DEVICE_BITS | _COUNTED)


class Numbers:
    """Gives each (device, inode number) of one tree its low part."""

    __slots__ = ("_counted", "_devices", "base", "main")

    def __init__(self, main_device: int, root_ino: int = 0) -> None:
        """`root_ino` is the inode number of a layer's root on the main device."""
        self.main = main_device
        self.base = root_ino >> _MAIN_BITS
        """Upper bits that the main device's numbers have in common."""
        self._devices: dict[int, int] = {main_device: 0}
        self._counted: dict[tuple[int, int], int] = {}

    def low(self, device: int, ino: int) -> int:
        """Return the low part for a real file; 0 and 1 are never given out."""
        if device == self.main and ino >> _MAIN_BITS == self.base and ino & (_FOREIGN - 1) > 1:
            return ino & (_FOREIGN - 1)
        slot = self._devices.setdefault(device, len(self._devices))
        if slot < _COUNTED and ino < 1 << _DEVICE_BITS:
            return _FOREIGN | slot << _DEVICE_BITS | ino
        return self._count(device, ino)

    def _count(self, device: int, ino: int) -> int:
        counter = self._counted.setdefault((device, ino), len(self._counted))
        if counter >= 1 << _DEVICE_BITS:
            raise OSError(errno.EOVERFLOW, "no inode numbers are left for foreign devices")
        return _FOREIGN | _COUNTED << _DEVICE_BITS | counter
