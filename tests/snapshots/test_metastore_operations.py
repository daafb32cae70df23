"""Checklist S1-S13 of containerd's `snapshots/storage`, and its order of refusals."""

import time

import pytest

from snapfs.model import (
    Active,
    AlreadyExists,
    Committed,
    FailedPrecondition,
    InvalidArgument,
    Kind,
    NotFound,
    Usage,
    View,
)
from snapfs.snapshots import MetaStore, Removed

USAGE = Usage(size_bytes=8192, inodes=3)


@pytest.fixture
def seven(metastore):
    """The reference's fixture: two chained committed, three active, two views."""
    metastore.create(Kind.ACTIVE, "c1-key", labels={"k1": "v1"})
    metastore.commit("c1-key", "committed-1", Usage(100, 1), {"k2": "v2"})
    metastore.create(Kind.ACTIVE, "c2-key", "committed-1")
    metastore.commit("c2-key", "committed-2", Usage(200, 2))
    made = {
        "active-1": metastore.create(Kind.ACTIVE, "active-1"),
        "active-2": metastore.create(Kind.ACTIVE, "active-2", "committed-1"),
        "active-3": metastore.create(Kind.ACTIVE, "active-3", "committed-2"),
        "view-1": metastore.create(Kind.VIEW, "view-1"),
        "view-2": metastore.create(Kind.VIEW, "view-2", "committed-2"),
    }
    return metastore, made


def test_s1_info_of_each_of_seven_is_what_was_made(seven):
    metastore, _ = seven
    expected = {
        "committed-1": (Committed, "", Usage(100, 1), {"k2": "v2"}),
        "committed-2": (Committed, "committed-1", Usage(200, 2), {}),
        "active-1": (Active, "", Usage(), {}),
        "active-2": (Active, "committed-1", Usage(), {}),
        "active-3": (Active, "committed-2", Usage(), {}),
        "view-1": (View, "", Usage(), {}),
        "view-2": (View, "committed-2", Usage(), {}),
    }
    for name, (state, parent, usage, labels) in expected.items():
        info = metastore.info(name)
        assert type(info) is state
        assert (info.name, info.parent, dict(info.labels)) == (name, parent, labels)
        assert metastore.usage(name) == usage
        assert info.created_ns == info.updated_ns
        assert abs(info.created_ns - time.time_ns()) < 30e9


def test_s2_info_of_unknown_is_not_found_also_in_an_empty_store(metastore):
    for key in ("somebody", "somebody else"):
        for ask in (metastore.info, metastore.usage, metastore.get, metastore.remove):
            with pytest.raises(NotFound, match="'nobody' does not exist"):
                ask("nobody")
        with pytest.raises(NotFound):
            metastore.update("nobody", {})
        metastore.create(Kind.ACTIVE, key)


def test_s3_walk_yields_each_of_seven_once(seven):
    metastore, _ = seven
    names = [snapshot.name for snapshot in metastore.walk()]
    assert len(names) == 7
    assert sorted(names) == sorted(set(names)) == sorted(metastore.id_map().values())


def test_s3_walk_of_an_empty_store_is_empty(metastore):
    assert list(metastore.walk()) == []
    assert metastore.id_map() == {}


def test_s4_get_equals_what_create_returned(seven):
    metastore, made = seven
    for key, snapshot in made.items():
        assert metastore.get(key) == snapshot == metastore.info(key)


def test_s5_get_of_committed_is_failed_precondition(seven):
    metastore, _ = seven
    with pytest.raises(FailedPrecondition, match="'committed-1' is committed"):
        metastore.get("committed-1")


def test_s6_commit_keeps_the_id_and_children_have_it_as_parent(metastore):
    active = metastore.create(Kind.ACTIVE, "a")
    view = metastore.create(Kind.VIEW, "v")
    assert (active.kind, view.kind, active.id != view.id) == (Kind.ACTIVE, Kind.VIEW, True)
    committed = metastore.commit("a", "base", USAGE)
    assert (committed.id, committed.usage) == (active.id, USAGE)
    child = metastore.create(Kind.ACTIVE, "b", "base")
    assert child.parent_ids == (active.id,)


def test_s7_create_refuses_bad_parents_and_taken_keys(seven):
    metastore, _ = seven
    with pytest.raises(NotFound, match="parent 'nobody'"):
        metastore.create(Kind.ACTIVE, "new", "nobody")
    with pytest.raises(InvalidArgument, match=r"'active-1' .* is not committed"):
        metastore.create(Kind.ACTIVE, "new", "active-1")
    with pytest.raises(InvalidArgument, match=r"'view-1' .* is not committed"):
        metastore.create(Kind.VIEW, "new", "view-1")
    for kind in (Kind.ACTIVE, Kind.VIEW):
        for taken in ("active-1", "view-1", "committed-1"):
            with pytest.raises(AlreadyExists, match=taken):
                metastore.create(kind, taken)
    with pytest.raises(InvalidArgument, match="only active and view"):
        metastore.create(Kind.COMMITTED, "new")


def test_create_checks_the_parent_before_the_key(seven):
    metastore, _ = seven
    with pytest.raises(NotFound):
        metastore.create(Kind.ACTIVE, "active-1", "nobody")
    with pytest.raises(InvalidArgument):
        metastore.create(Kind.ACTIVE, "active-1", "active-2")


def test_s8_commit_frees_the_key_and_refuses_what_is_not_active(seven):
    metastore, _ = seven
    metastore.commit("active-1", "committed-3", USAGE)
    with pytest.raises(NotFound):
        metastore.info("active-1")
    with pytest.raises(FailedPrecondition):
        metastore.get("committed-3")
    with pytest.raises(AlreadyExists):
        metastore.commit("active-2", "committed-3", USAGE)
    for key in ("committed-1", "view-1"):
        with pytest.raises(FailedPrecondition, match="only an active"):
            metastore.commit(key, "new", USAGE)
    with pytest.raises(NotFound):
        metastore.commit("nobody", "new", USAGE)


def test_commit_checks_the_name_before_the_key(seven):
    metastore, _ = seven
    with pytest.raises(AlreadyExists):
        metastore.commit("nobody", "committed-1", USAGE)
    with pytest.raises(AlreadyExists):
        metastore.commit("active-1", "active-1", USAGE)


def test_commit_replaces_labels_and_times(metastore):
    active = metastore.create(Kind.ACTIVE, "a", labels={"old": "1"})
    committed = metastore.commit("a", "base", USAGE, {"new": "2"})
    assert committed.labels == {"new": "2"}
    assert committed.created_ns == committed.updated_ns > active.created_ns


def test_s9_remove_returns_id_and_kind_of_each_kind(seven):
    metastore, made = seven
    for key in ("view-1", "view-2", "active-3"):
        assert metastore.remove(key) == Removed(made[key].id, made[key].kind)
        with pytest.raises(NotFound):
            metastore.remove(key)
    identity = metastore.info("committed-2").id
    assert metastore.remove("committed-2") == Removed(identity, Kind.COMMITTED)
    with pytest.raises(NotFound):
        metastore.remove("c2-key")


def test_s10_remove_of_a_parent_is_refused_twice_and_changes_nothing(seven):
    metastore, _ = seven
    before, revision = list(metastore.walk()), metastore.store.revision
    for _ in range(2):
        with pytest.raises(FailedPrecondition, match="cannot remove snapshot 'committed-1'"):
            metastore.remove("committed-1")
    assert (list(metastore.walk()), metastore.store.revision) == (before, revision)


def test_s11_chains_go_from_the_direct_parent_to_the_base(seven):
    metastore, _ = seven
    first, second = metastore.info("committed-1").id, metastore.info("committed-2").id
    chains = {snapshot.name: snapshot.parent_ids for snapshot in metastore.walk()}
    assert chains == {
        "committed-1": (),
        "committed-2": (first,),
        "active-1": (),
        "active-2": (first,),
        "active-3": (second, first),
        "view-1": (),
        "view-2": (second, first),
    }


class TestS12Rebase:
    """Giving a parentless active a parent at commit."""

    def test_none_to_committed_is_a_rebase(self, seven):
        metastore, made = seven
        committed = metastore.commit("active-1", "rebased", USAGE, parent="committed-2")
        chain = metastore.info("committed-2").id, metastore.info("committed-1").id
        assert (committed.id, committed.parent) == (made["active-1"].id, "committed-2")
        assert committed.parent_ids == chain
        view = metastore.create(Kind.VIEW, "look", "rebased")
        assert view.parent_ids == (committed.id, *chain)
        with pytest.raises(FailedPrecondition):
            metastore.remove("rebased")
        metastore.remove("look")
        metastore.remove("rebased")

    def test_the_new_parent_cannot_be_removed_before_its_child(self, seven):
        metastore, _ = seven
        metastore.commit("active-1", "base", USAGE)
        metastore.create(Kind.ACTIVE, "free")
        metastore.commit("free", "child", USAGE, parent="base")
        with pytest.raises(FailedPrecondition):
            metastore.remove("base")

    @pytest.mark.parametrize("parent", ["committed-1", ""])
    def test_the_same_parent_or_none_keeps_it(self, seven, parent):
        metastore, _ = seven
        assert metastore.commit("active-2", "n", USAGE, parent=parent).parent == "committed-1"

    @pytest.mark.parametrize(
        ("key", "parent", "error"),
        [
            ("active-1", "nobody", NotFound),
            ("active-1", "active-2", FailedPrecondition),
            ("active-1", "view-1", FailedPrecondition),
            ("active-1", "active-1", FailedPrecondition),
            ("active-1", "name", NotFound),
            ("active-2", "committed-2", InvalidArgument),
            ("active-2", "nobody", InvalidArgument),
        ],
    )
    def test_other_parents_are_refused_and_the_snapshot_stays_active(
        self, seven, key, parent, error
    ):
        metastore, made = seven
        with pytest.raises(error):
            metastore.commit(key, "name", USAGE, parent=parent)
        assert metastore.get(key) == made[key]


def test_ids_are_never_used_again(metastore, tmp_path):
    first = metastore.create(Kind.ACTIVE, "a")
    metastore.remove("a")
    assert metastore.create(Kind.ACTIVE, "a").id > first.id == 1
    last = metastore.create(Kind.VIEW, "v").id
    metastore.remove("v")
    metastore.close()
    with MetaStore(tmp_path / "metadata") as opened:
        assert opened.create(Kind.VIEW, "v").id > last


def test_a_removed_key_can_be_used_for_any_kind_again(metastore):
    metastore.create(Kind.ACTIVE, "k")
    metastore.commit("k", "n", USAGE)
    metastore.remove("n")
    metastore.create(Kind.VIEW, "k")
    metastore.remove("k")
    metastore.create(Kind.ACTIVE, "k")
    assert metastore.commit("k", "n", USAGE).name == "n"


def test_everything_is_there_after_reopening(seven, tmp_path):
    metastore, _ = seven
    before = list(metastore.walk())
    metastore.close()
    metastore.close()
    with MetaStore(tmp_path / "metadata") as opened:
        assert list(opened.walk()) == before
        assert opened.store.check() == []


def test_times_are_those_of_the_clock_given_and_keep_nanoseconds(tmp_path):
    now = iter(range(1_700_000_000_123_456_789, 1_800_000_000_000_000_000))
    with MetaStore(tmp_path / "metadata", clock_ns=lambda: next(now)) as metastore:
        made = metastore.create(Kind.ACTIVE, "a")
        changed = metastore.update("a", {"k": "v"})
    assert made.created_ns // 1000 == 1_700_000_000_123_456
    assert changed.created_ns == made.created_ns < changed.updated_ns
