"""Power cuts at hundreds of moments: what was acknowledged is there, and nothing half made is seen.

The root is on a disk that records writes and flushes (cutting.py).
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.crash import acts, acts_of_attributes, acts_of_leases, acts_of_syncs, acts_of_volumes
from tests.crash.cutting import MIB, Check, Chosen, Disk, Work, outlive

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.slow, pytest.mark.timeout(7200)]

DISKS = {"ext4": Disk("ext4", 96 * MIB), "xfs": Disk("xfs", 320 * MIB)}


def work_on_snapshots(place: Path, now: acts.Moment) -> Check:
    done = acts.work(place, now, acts.layout(place.with_name("layout")))
    return lambda place, moment: acts.check(place, done, moment)


WORKS: dict[str, Work] = {
    "snapshots": work_on_snapshots,
    "volumes": acts_of_volumes.work,
    "leases": acts_of_leases.work,
    "syncs": acts_of_syncs.work,
    "attributes": acts_of_attributes.work,
}
"""What is done on a disk."""


@pytest.mark.parametrize("file_system", DISKS)
@pytest.mark.parametrize("work", WORKS)
def test_what_was_acknowledged_outlives_a_power_cut_at_any_moment(
    work: str, file_system: str, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    name, chosen = f"{work}, {file_system}", Chosen.of(request, len(WORKS))
    failures = outlive(WORKS[work], name, DISKS[file_system], chosen, tmp_path)
    assert not failures, "\n\n".join(failures)
