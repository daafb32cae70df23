"""Power cuts of a recorded disk: the disk as it may be after each, mounted and looked at.

For each cut the disk is made again as it may have been: all that was written up to a flush, and any
part of what came after it.
"""

from __future__ import annotations

import random
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.loops import mount_image
from tests.support.recorded_disk import Flush, Recorded, Write, attached, rebuild, recorded

MIB = 1 << 20
SECTOR_BYTES = 512
MOST_FAILURES = 20
TORN = frozenset({"ext4"})
"""File systems that outlive a torn block. xfs does not: a block of a directory with a new head and
an old tail is not mended from its log, which goes by the head (Metadata CRC error, no mount). Nor
is ext4's superblock, in the disk's first block, which a mount changes before it has a journal."""
KEPT = (0.0, 0.1, 0.5, 0.9, 1.0)
"""How much of what was not flushed reaches the disk."""

Moment = Callable[[], int]
"""Tells the present moment in the life of a disk."""
Check = Callable[[Path, int], None]
"""Looks at a disk, mounted at a place, that was cut at a moment."""
Work = Callable[[Path, Moment], Check]
"""Does something on a mounted disk, and returns what looks at what a cut left of it."""


@dataclass(frozen=True)
class Disk:
    """A disk to be cut."""

    file_system: str
    size_bytes: int
    making: tuple[str, ...] = ()
    """Arguments of mkfs."""
    mounting: str = "noatime"
    """Options of the mount that is cut, and of those that look at what is left."""

    @property
    def looking(self) -> list[str]:
        """Options of a mount that looks."""
        return [self.mounting, *(["nouuid"] if self.file_system == "xfs" else [])]


@dataclass(frozen=True)
class Chosen:
    """Which moments are cut."""

    count: int
    seed: int
    seconds: float

    @classmethod
    def of(cls, request: pytest.FixtureRequest, share: int) -> Chosen:
        """What the command line wants, of which each of `share` tests does its part."""
        option = request.config.getoption
        return cls(
            option("--power-cuts") // share,
            option("--power-cut-seed"),
            option("--power-cut-seconds") / share,
        )


def run(*command: str | Path) -> None:
    """Run a command; AssertionError has what it said."""
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"


def outlive(
    work: Work, name: str, disk: Disk, chosen: Chosen, base: Path, *, most: int = MOST_FAILURES
) -> list[str]:
    """Do work on a disk that is made below `base`, and look at it after each chosen cut; return
    what was found, at most so much of it."""
    start, place = base / "start.img", base / "place"
    durable, copy = base / "durable.img", base / "copy.img"
    place.mkdir()
    with start.open("wb") as file:
        file.truncate(disk.size_bytes)
    run(f"mkfs.{disk.file_system}", "-q", *disk.making, start)
    run("cp", start, durable)
    with attached(start, base) as recording:
        run("mount", "-o", disk.mounting, recording.device, place)
        try:
            check = work(place, lambda: recording.now)
        finally:
            run("umount", place)
    entries, reached = list(recorded(base / "log")), 0
    checked, failures = 0, []
    end_s = time.monotonic() + chosen.seconds
    chance = random.Random(f"{name} {chosen.seed}")
    for index, flush in _cuts(entries, chosen.count, chance):
        if time.monotonic() > end_s or len(failures) >= most:
            break
        rebuild(durable, [it.what for it in entries[reached:flush] if isinstance(it.what, Write)])
        reached = max(reached, flush)
        copy.unlink(missing_ok=True)  # whoever looks at all loop devices may still hold the last
        run("cp", durable, copy)
        loose = [it.what for it in entries[flush : index + 1] if isinstance(it.what, Write)]
        rebuild(copy, _some(loose, chance, torn=disk.file_system in TORN))
        try:
            with _mounted(copy, place, disk):
                check(place, entries[index].end)
        except Exception as error:  # noqa: BLE001  # whatever it is, the next cuts are checked, too
            told = "".join(traceback.format_exception(error))
            failures.append(f"cut {index} of {len(entries)}, seed {chosen.seed}: {told}")
            print(f"{name}, cut {index}: {error}", flush=True)
        checked += 1
    print(f"\n| power cuts, {name} | {checked} | failed: {len(failures)} |")
    assert checked or not chosen.count, f"{name}: no cut was looked at within {chosen.seconds} s"
    return failures


@contextmanager
def _mounted(source: Path, target: Path, disk: Disk) -> Iterator[None]:
    """Mount an image for the block."""
    mount_image(source, target, *disk.looking)
    try:
        yield
    finally:
        run("umount", target)


def _cuts(entries: list[Recorded], count: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Yield pairs of an entry after which the power goes and of the last flush before it."""
    flushes = [index for index, it in enumerate(entries) if isinstance(it.what, Flush)]
    moments = range(flushes[0], len(entries))
    for index in sorted(chance.sample(moments, min(count, len(moments)))):
        yield index, max(it for it in flushes if it <= index)


def _some(writes: list[Write], chance: random.Random, *, torn: bool) -> list[Write]:
    """Return a part of the writes; of one that is `torn`, only the first sectors are there."""
    share = chance.choice(KEPT)
    kept = []
    for write in writes:
        for at in range(0, len(write.data), 8 * SECTOR_BYTES):
            piece = write.data[at : at + 8 * SECTOR_BYTES]
            if chance.random() < share:
                sectors = len(piece) // SECTOR_BYTES
                whole = not torn or not write.offset + at or chance.random() < 0.9
                length = len(piece) if whole else chance.randint(0, sectors) * SECTOR_BYTES
                kept.append(Write(write.offset + at, piece[:length]))
    return kept
