"""Power cuts at hundreds of moments: what was acknowledged is there, and nothing half made is seen.

The root is on a disk that records writes and flushes. For each cut the disk is made again as it may
have been: all that was written up to a flush, and any part of what came after it.
"""

from __future__ import annotations

import random
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.crash import acts, acts_of_attributes, acts_of_leases, acts_of_syncs, acts_of_volumes
from tests.support.loops import mount_image
from tests.support.recorded_disk import Flush, Recorded, Write, attached, rebuild, recorded

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(7200)]

MIB = 1 << 20
SIZES = {"ext4": 96 * MIB, "xfs": 320 * MIB}
SECTOR_BYTES = 512
MOST_FAILURES = 20
TORN = frozenset({"ext4"})
"""File systems that outlive a torn block. xfs does not: a block of a directory with a new head and
an old tail is not mended from its log, which goes by the head (Metadata CRC error, no mount)."""
KEPT = (0.0, 0.1, 0.5, 0.9, 1.0)
"""How much of what was not flushed reaches the disk."""


def run(*command: str | Path) -> None:
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}: {done.stderr}"


Check = Callable[[Path, int], None]
"""Looks at a disk, mounted at a place, that was cut at a moment."""


def work_on_snapshots(place: Path, now: acts.Moment) -> Check:
    done = acts.work(place, now, acts.layout(place.with_name("layout")))
    return lambda place, moment: acts.check(place, done, moment)


WORKS: dict[str, Callable[[Path, acts.Moment], Check]] = {
    "snapshots": work_on_snapshots,
    "volumes": acts_of_volumes.work,
    "leases": acts_of_leases.work,
    "syncs": acts_of_syncs.work,
    "attributes": acts_of_attributes.work,
}
"""What is done on a disk: each does something, and returns what looks at what a cut left of it."""


@contextmanager
def mounted(source: Path, target: Path) -> Iterator[None]:
    """Mount an image for the block."""
    mount_image(source, target, "noatime", *(["nouuid"] if source.suffix == ".xfs" else []))
    try:
        yield
    finally:
        run("umount", target)


def cuts(entries: list[Recorded], count: int, chance: random.Random) -> Iterator[tuple[int, int]]:
    """Yield pairs of an entry after which the power goes and of the last flush before it."""
    flushes = [index for index, it in enumerate(entries) if isinstance(it.what, Flush)]
    for index in sorted(chance.sample(range(flushes[0], len(entries)), min(count, len(entries)))):
        yield index, max(it for it in flushes if it <= index)


def some(writes: list[Write], chance: random.Random, *, torn: bool) -> list[Write]:
    """Return a part of the writes; of one that is `torn`, only the first sectors are there."""
    share = chance.choice(KEPT)
    kept = []
    for write in writes:
        for at in range(0, len(write.data), 8 * SECTOR_BYTES):
            piece = write.data[at : at + 8 * SECTOR_BYTES]
            if chance.random() < share:
                sectors = len(piece) // SECTOR_BYTES
                whole = not torn or chance.random() < 0.9
                length = len(piece) if whole else chance.randint(0, sectors) * SECTOR_BYTES
                kept.append(Write(write.offset + at, piece[:length]))
    return kept


@pytest.mark.parametrize("file_system", SIZES)
@pytest.mark.parametrize("work", WORKS)
def test_what_was_acknowledged_outlives_a_power_cut_at_any_moment(
    work: str, file_system: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    count = request.config.getoption("--power-cuts") // len(WORKS)
    seed = request.config.getoption("--power-cut-seed")
    start, durable = tmp_path / "start.img", tmp_path / f"durable.{file_system}"
    copy, place = tmp_path / f"copy.{file_system}", tmp_path / "place"
    place.mkdir()
    with start.open("wb") as file:
        file.truncate(SIZES[file_system])
    run(f"mkfs.{file_system}", "-q", start)
    run("cp", "--sparse=always", start, durable)
    with attached(start, tmp_path) as disk:
        run("mount", "-o", "noatime", disk.device, place)
        try:
            check = WORKS[work](place, lambda: disk.now)
        finally:
            run("umount", place)
    entries, reached = list(recorded(tmp_path / "log")), 0
    checked, failures = 0, []
    end_s = time.monotonic() + request.config.getoption("--power-cut-seconds") / len(WORKS)
    chance = random.Random(f"{work} {file_system} {seed}")
    for index, flush in cuts(entries, count, chance):
        if time.monotonic() > end_s or len(failures) >= MOST_FAILURES:
            break
        rebuild(durable, [it.what for it in entries[reached:flush] if isinstance(it.what, Write)])
        reached = max(reached, flush)
        copy.unlink(missing_ok=True)  # whoever looks at all loop devices may still hold the last
        run("cp", "--sparse=always", durable, copy)
        loose = [it.what for it in entries[flush : index + 1] if isinstance(it.what, Write)]
        rebuild(copy, some(loose, chance, torn=file_system in TORN))
        try:
            with mounted(copy, place):
                check(place, entries[index].end)
        except Exception as error:  # noqa: BLE001  # whatever it is, the next cuts are checked, too
            told = "".join(traceback.format_exception(error))
            failures.append(f"cut {index} of {len(entries)}, seed {seed}: {told}")
        checked += 1
    print(f"\n| power cuts, {work}, {file_system} | {checked} | failed: {len(failures)} |")
    assert not failures, "\n\n".join(failures)
