"""Which lane a snapshot is shown in, and that it stays there."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.model import (
    MAIN_LANE,
    Active,
    FailedPrecondition,
    InvalidArgument,
    Kind,
    Labels,
    LaneName,
    Unavailable,
    View,
)
from snapfs.snapshots import LANE_LABEL, LayerReader, NoTrees, Placement, Snapshotter

VIEWS = LaneName("views")
QUICK = LaneName("quick")
PLACEMENT = Placement({MAIN_LANE: True, VIEWS: False, QUICK: True}, active=MAIN_LANE, view=VIEWS)


class NotedLanes:
    """Lanes whose trees are nothing; notes which were asked to serve."""

    def __init__(self, base: Path) -> None:
        self._base = base
        self.served: list[LaneName] = []
        self.broken: set[LaneName] = set()

    def place(self, kind: Kind, labels: Labels | None, /) -> LaneName:
        return PLACEMENT.choose(kind, labels)

    def lane(self, name: LaneName, /) -> NoTrees:
        if name not in PLACEMENT.writable:
            raise FailedPrecondition(f"lane {name!r} is not known")
        return NoTrees(self._base / name)

    def serve(self, name: LaneName, /) -> None:
        if name in self.broken:
            raise Unavailable(f"lane {name} does not start")
        self.served.append(name)


@pytest.fixture
def lanes(tmp_path: Path) -> NotedLanes:
    return NotedLanes(tmp_path / "mnt")


@pytest.fixture
def placed(tmp_path: Path, lanes: NotedLanes) -> Iterator[Snapshotter]:
    with Snapshotter(tmp_path / "root", trees=lanes) as opened:
        opened.prepare("base-key")
        opened.commit("base-key", "base")
        lanes.served.clear()
        yield opened


def source(mounts: list) -> str:
    (mount,) = mounts
    return str(Path(mount.source).parent.name)


@pytest.mark.parametrize(
    ("kind", "label", "lane"),
    [
        (Kind.ACTIVE, None, MAIN_LANE),
        (Kind.VIEW, None, VIEWS),
        (Kind.ACTIVE, "", MAIN_LANE),
        (Kind.ACTIVE, "quick", QUICK),
        (Kind.VIEW, "quick", QUICK),
        (Kind.VIEW, "main", MAIN_LANE),
    ],
)
def test_a_label_decides_and_else_the_kind(kind: Kind, label: str | None, lane: LaneName) -> None:
    assert PLACEMENT.choose(kind, None if label is None else {LANE_LABEL: label}) == lane


@pytest.mark.parametrize(
    ("kind", "label", "words"),
    [
        (Kind.ACTIVE, "fast", "lane 'fast' does not exist; .* active are main, quick$"),
        (Kind.VIEW, "fast", "lanes for a new view are main, views, quick$"),
        (Kind.ACTIVE, "views", "lane 'views' is read-only; .* main, quick$"),
    ],
)
def test_a_label_that_cannot_be_followed_names_those_that_can(
    kind: Kind, label: str, words: str
) -> None:
    with pytest.raises(InvalidArgument, match=words):
        PLACEMENT.choose(kind, {LANE_LABEL: label})


def test_mounts_are_of_the_snapshots_lane_which_serves_by_then(
    placed: Snapshotter, lanes: NotedLanes
) -> None:
    assert source(placed.prepare("a", "base")) == "main"
    assert source(placed.prepare("b", "base", {LANE_LABEL: "quick"})) == "quick"
    assert source(placed.view("c", "base")) == "views"
    assert set(lanes.served) == {"main", "quick", "views"}
    assert placed.lanes_in_use() == {"main", "quick", "views"}


def test_a_snapshot_stays_in_its_lane_whatever_its_label_becomes(placed: Snapshotter) -> None:
    placed.prepare("work", "base", {LANE_LABEL: "quick"})
    placed.update("work", {LANE_LABEL: "main"})
    assert source(placed.mounts("work")) == "quick"
    placed.update("work", {})
    found = placed.stat("work")
    assert isinstance(found, Active)
    assert found.lane == "quick"


def test_what_is_made_on_it_goes_where_its_own_label_says(placed: Snapshotter) -> None:
    placed.prepare("work", "base", {LANE_LABEL: "quick"})
    placed.commit("work", "done")
    assert source(placed.prepare("next", "done")) == "main"


def test_a_refused_label_makes_nothing(placed: Snapshotter) -> None:
    with pytest.raises(InvalidArgument):
        placed.prepare("work", "base", {LANE_LABEL: "none"})
    assert [it.name for it in placed.walk()] == ["base"]


def test_a_lane_that_does_not_start_makes_nothing(placed: Snapshotter, lanes: NotedLanes) -> None:
    lanes.broken.add(VIEWS)
    with pytest.raises(Unavailable):
        placed.view("look", "base")
    assert [it.name for it in placed.walk()] == ["base"]


def test_an_unpack_beside_the_trees_needs_no_lane(placed: Snapshotter, lanes: NotedLanes) -> None:
    lanes.broken.add(MAIN_LANE)
    (mount,) = placed.prepare("default/1/extract-2", "base")
    assert mount.type == "overlay"


def test_a_worker_sees_the_snapshots_of_its_lane_only(placed: Snapshotter) -> None:
    placed.prepare("a", "base")
    placed.view("c", "base")
    active, view = placed.stat("a"), placed.stat("c")
    assert isinstance(view, View)
    with (
        LayerReader.open(placed.root, MAIN_LANE) as main,
        LayerReader.open(placed.root, VIEWS) as views,
        LayerReader.open(placed.root) as everything,
    ):
        assert (main.ids(), views.ids()) == ([active.id], [view.id])
        assert everything.ids() == [active.id, view.id]
        assert main.layers(view.id) is None
        assert views.layers(view.id) is not None
