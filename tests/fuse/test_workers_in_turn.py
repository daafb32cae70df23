"""Which of the workers that share a lane gets a new snapshot."""

from __future__ import annotations

import time
from collections import Counter
from pathlib import Path

import pytest

from snapfs.fuse.lanes import RETRY_S, Lanes
from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import Lane
from snapfs.model import MAIN_LANE, FailedPrecondition, Kind, LaneName, Unavailable
from snapfs.snapshots import LANE_LABEL, Placement
from snapfs.snapshots.placement import workers_of

VIEWS = LaneName("views")
STATES = [it for it in LaneState if it not in (LaneState.SERVING, LaneState.STOPPED)]


class Told(Lane):
    """A lane that is never started, and is as it is told."""

    told = LaneState.SERVING

    @property
    def state(self) -> LaneState:
        return self.told


def lanes(base: Path, workers: int) -> tuple[Lanes, dict[str, Told]]:
    """Return two lanes of four workers each, of which some get new snapshots."""
    made = [
        Told(name, base / "mnt" / name, base / "root", door=base / f"{name}.sock")
        for lane in (MAIN_LANE, VIEWS)
        for name in workers_of(lane, 4)
    ]
    placement = Placement({MAIN_LANE: True, VIEWS: False}, active=MAIN_LANE, view=VIEWS)
    opened = Lanes(made, placement, start_timeout_s=1, stop_timeout_s=1, workers=workers)
    return opened, {it.name: it for it in made}


def test_each_worker_of_a_lane_is_taken_once_in_a_round(tmp_path: Path) -> None:
    opened, _ = lanes(tmp_path, 3)
    kinds = [Kind.ACTIVE, Kind.VIEW] * 6  # a turn of one lane is none of the other
    placed = [opened.place(kind, None) for kind in kinds]
    for mains, views in ((placed[:6:2], placed[1:6:2]), (placed[6::2], placed[7::2])):
        assert sorted(mains) == ["main", "main-2", "main-3"]
        assert sorted(views) == ["views", "views-2", "views-3"]
    assert opened.place(Kind.VIEW, {LANE_LABEL: "main"}) == "main"


@pytest.mark.parametrize("workers", [2, 3, 4])
@pytest.mark.parametrize("rhythm", [2, 3, 4])
def test_what_comes_in_a_rhythm_is_spread_too(tmp_path: Path, workers: int, rhythm: int) -> None:
    """A pod's sandbox, which does nothing, is followed by its container."""
    opened, _ = lanes(tmp_path, workers)
    pods = 60 * workers
    placed = [opened.place(Kind.ACTIVE, None) for _ in range(pods * rhythm)]
    for place in range(rhythm):
        fewest = min(Counter(placed[place::rhythm])[it] for it in workers_of(MAIN_LANE, workers))
        assert fewest > pods / workers / 2


def test_one_worker_has_all(tmp_path: Path) -> None:
    opened, _ = lanes(tmp_path, 1)
    assert {opened.place(Kind.ACTIVE, None) for _ in range(4)} == {"main"}


def test_a_worker_that_cannot_be_started_is_passed_over_for_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened, made = lanes(tmp_path, 2)
    made["main-2"].told = LaneState.STOPPED
    (tmp_path / "mnt").mkdir()
    (tmp_path / "mnt" / "main-2").write_text("nothing can be mounted here")
    with pytest.raises(Unavailable, match="main-2"):
        opened.serve(LaneName("main-2"))
    assert {opened.place(Kind.ACTIVE, None) for _ in range(6)} == {"main"}
    later_s = time.monotonic() + RETRY_S
    monkeypatch.setattr("snapfs.fuse.lanes.time.monotonic", lambda: later_s)
    assert {opened.place(Kind.ACTIVE, None) for _ in range(6)} == {"main", "main-2"}


@pytest.mark.parametrize("state", STATES)
def test_a_worker_that_is_not_well_is_passed_over(tmp_path: Path, state: LaneState) -> None:
    opened, made = lanes(tmp_path, 3)
    made["main-2"].told = state
    assert {opened.place(Kind.ACTIVE, None) for _ in range(6)} == {"main", "main-3"}
    made["main"].told = made["main-3"].told = state
    assert {opened.place(Kind.ACTIVE, None) for _ in range(6)} == {"main", "main-2", "main-3"}
    made["main-2"].told = LaneState.STOPPED
    assert {opened.place(Kind.ACTIVE, None) for _ in range(6)} == {"main-2"}


def test_an_unknown_lane_is_told_what_people_may_name(tmp_path: Path) -> None:
    opened, made = lanes(tmp_path, 2)
    assert opened.lane(LaneName("main-4")) is made["main-4"]
    with pytest.raises(FailedPrecondition, match="'main-5' is not one of main, views;"):
        opened.lane(LaneName("main-5"))
