"""Walks: filters, batches, and what may happen meanwhile."""

import threading

import pytest

from snapfs.model import InvalidArgument, Kind, Usage
from snapfs.snapshots.metastore import WALK_BATCH


@pytest.fixture
def stocked(metastore):
    metastore.create(Kind.ACTIVE, "a1", labels={"x": "1"})
    metastore.commit("a1", "base", Usage(), {"containerd.io/snapshot.ref": "X"})
    metastore.create(Kind.ACTIVE, "top", "base", {"x": "1", "a/b.c": "y"})
    metastore.create(Kind.VIEW, "look", "base", {"x": "2"})
    return metastore


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], {"base", "top", "look"}),
        ([""], {"base", "top", "look"}),
        (["kind==active"], {"top"}),
        (["kind==view"], {"look"}),
        (["kind==committed"], {"base"}),
        (["kind!=committed"], {"top", "look"}),
        (["name==base", "name==look"], {"base", "look"}),
        (["name~=^(top|look)$"], {"top", "look"}),
        (["name~=/^(top|look)$/"], {"top", "look"}),
        (["parent==base"], {"top", "look"}),
        (['parent!=""'], {"top", "look"}),
        (['parent==""'], {"base"}),
        (["parent"], {"base", "top", "look"}),
        (["labels.x"], {"top", "look"}),
        (["labels.x==1"], {"top"}),
        (["labels.x!=1"], {"base", "look"}),
        (['labels."a/b.c"==y'], {"top"}),
        (['labels."containerd.io/snapshot.ref"==X,parent==""'], {"base"}),
        (["kind==active,parent==base,labels.x==1"], {"top"}),
        (["nonsense"], set()),
        (["nonsense!=x"], {"base", "top", "look"}),
    ],
)
def test_filters_select_by_kind_name_parent_and_label(stocked, filters, expected):
    assert {snapshot.name for snapshot in stocked.walk(filters)} == expected


def test_a_bad_filter_is_refused_before_the_first_snapshot(metastore):
    with pytest.raises(InvalidArgument, match="name==a,"):
        metastore.walk(["name==a,"])


def test_a_walk_over_several_batches_yields_each_once_in_order(metastore):
    names = sorted(f"k{number:04}" for number in range(2 * WALK_BATCH + 1))
    for name in names:
        metastore.create(Kind.ACTIVE, name)
    assert [snapshot.name for snapshot in metastore.walk()] == names


def test_calls_inside_a_walk_work_and_removal_of_each_does_not_disturb_it(metastore):
    for number in range(WALK_BATCH + 50):
        metastore.create(Kind.VIEW, f"k{number:04}")
    walked = 0
    for snapshot in metastore.walk():
        assert metastore.info(snapshot.name) == snapshot
        metastore.remove(snapshot.name)
        walked += 1
    assert walked == WALK_BATCH + 50
    assert list(metastore.walk()) == []


def test_a_paused_walk_holds_up_neither_writers_nor_growth(metastore):
    for number in range(WALK_BATCH + 1):
        metastore.create(Kind.VIEW, f"k{number:04}")
    walk = metastore.walk()
    next(walk)
    metastore.create(Kind.ACTIVE, "zzz", labels={"k": "v" * 4000})
    assert [snapshot.name for snapshot in walk][-1] == "zzz"


def test_many_threads_create_at_once_and_each_gets_an_id_of_its_own(metastore):
    made = []

    def create(number):
        made.append(metastore.create(Kind.ACTIVE, f"k{number}").id)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(64)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert sorted(made) == list(range(1, 65))
