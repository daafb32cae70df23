"""What a person with two hosts sees of a sync: fields, branches, conflicts, defects of others."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from pathlib import Path

import msgspec
import pytest

from snapfs.anchors import Anchors, Fact, History, Ref
from snapfs.model import FailedPrecondition, NotFound, Unavailable
from snapfs.service import exchange_server, grpc_server, ways
from snapfs.service.exchange_client import ExchangePeer
from snapfs.service.grpc_server import MAX_MESSAGE_BYTES
from snapfs.service.ways import Identity
from snapfs.sync import replica
from snapfs.sync.items import Tree
from snapfs.sync.peer import Peer
from snapfs.sync.planning import Direction
from snapfs.sync.remotes import Unix
from snapfs.sync.threeway import Policy
from snapfs.volumes import branches
from snapfs.volumes.errors import VolumeSetNotFound
from snapfs.volumes.history import branch_anchor
from snapfs.volumes.ids import BranchId, VolumeSetId
from tests.sync.kit import Breaking, Host, new_id

MakeHost = Callable[[str], Host]


def fates(report: object) -> dict[str, str]:
    return {it.name: it.fate for it in report.branches}  # type: ignore[attr-defined]


def pair(host: MakeHost) -> tuple[Host, Host, VolumeSetId]:
    """Return two hosts that have the same set with a branch of three snapshots."""
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    ann.fork(set_id, "main")
    ann.extend(set_id, "main", 2)
    ann.sync(bob, set_id)
    assert ann.contents(set_id) == bob.contents(set_id)
    return ann, bob, set_id


def test_a_new_set_is_pushed_whole(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set("db")
    first = ann.fork(set_id, "main")
    ann.extend(set_id, "main", 3)
    ann.fork(set_id, "side", first)
    report = ann.push(bob, set_id)
    assert report.is_well
    assert fates(report) == {"main": "pushed", "side": "pushed"}
    assert bob.contents(set_id) == ann.contents(set_id)
    assert bob.history(set_id, "main") == ann.history(set_id, "main")


def test_a_new_set_is_pulled_whole(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set("db")
    ann.fork(set_id, "main")
    report = bob.pull(ann, set_id)
    assert fates(report) == {"main": "pulled"}
    assert bob.contents(set_id) == ann.contents(set_id)


def test_what_neither_side_has_is_an_error(host: MakeHost) -> None:
    ann, bob = host("ann"), host("bob")
    with pytest.raises(VolumeSetNotFound):
        ann.sync(bob, VolumeSetId(new_id()))


def test_syncing_again_changes_nothing(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.sync(bob, set_id)
    before = ann.store.revision, bob.store.revision
    for _ in range(2):
        report = ann.sync(bob, set_id)
        assert report.is_well
        assert fates(report) == {"main": "up to date"}
    # A number for the decisions of each sync is all that is written.
    assert (ann.store.revision - before[0], bob.store.revision - before[1]) == (2, 0)


def test_a_branch_that_is_behind_comes_forward_on_either_side(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    tip = bob.extend(set_id, "main", 30)
    assert fates(ann.push(bob, set_id)) == {"main": "behind"}
    assert fates(ann.pull(bob, set_id)) == {"main": "pulled"}
    assert ann.tips(set_id) == {"main": tip}
    tip = ann.extend(set_id, "main", 30)
    assert fates(ann.pull(bob, set_id)) == {"main": "ahead"}
    assert fates(ann.push(bob, set_id)) == {"main": "pushed"}
    assert bob.tips(set_id) == {"main": tip}


def test_fields_changed_on_either_side_are_merged_each_by_itself(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="of ann", attributes={"a": "1"})
    bob.edit_set(set_id, owner="bob", attributes={"b": "2"})
    tip = ann.tips(set_id)["main"]
    ann.edit_snapshot(set_id, tip, name="release")
    bob.edit_snapshot(set_id, tip, attributes={"tested": "yes"})
    report = ann.sync(bob, set_id)
    assert report.conflicts == []
    for each in (ann, bob):
        found = each.set(set_id)
        assert (found.description, found.owner) == ("of ann", "bob")
        assert found.attributes == {"a": "1", "b": "2"}
        shown = each.show(set_id, tip)
        assert (shown.name, shown.attributes) == ("release", {"tested": "yes"})


def test_an_attribute_taken_away_stays_away(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, attributes={"a": "1", "b": "2"})
    ann.sync(bob, set_id)
    bob.edit_set(set_id, attributes={"b": "2"})
    ann.sync(bob, set_id)
    assert ann.set(set_id).attributes == {"b": "2"}


@pytest.mark.parametrize(
    ("policy", "wins"), [(Policy.THEIRS, "bob's"), (Policy.OURS, "ann's"), (Policy.FAIL, None)]
)
def test_a_conflict_is_decided_by_policy_and_kept_as_a_row(
    host: MakeHost, policy: Policy, wins: str | None
) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="ann's", owner="ann2")
    bob.edit_set(set_id, description="bob's")
    report = ann.sync(bob, set_id, policy=policy)
    assert ann.set(set_id).description == (wins or "ann's")
    assert bob.set(set_id).description == (wins or "bob's")
    assert bob.set(set_id).owner == "ann2"
    (row,) = ann.conflicts()
    assert (row.field, row.ours, row.theirs, row.last) == ("description", "ann's", "bob's", "")
    assert report.is_well is (wins is not None)
    again = ann.sync(bob, set_id, policy=policy)
    assert (again.conflicts == []) is (wins is not None)
    assert len(ann.conflicts()) == 1


def test_what_lost_is_kept_when_the_field_is_in_conflict_again(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    policies = (Policy.THEIRS, Policy.THEIRS, Policy.FAIL)
    for number, policy in enumerate(policies, 1):
        ann.edit_set(set_id, description=f"of ann {number}")
        bob.edit_set(set_id, description=f"of bob {number}")
        ann.sync(bob, set_id, policy=policy)
    ann.sync(bob, set_id, policy=Policy.FAIL)
    found = sorted((it.ours or "", it.winner) for it in ann.conflicts())
    assert found == [("of ann 1", "theirs"), ("of ann 2", "theirs"), ("of ann 3", "")]
    bob.edit_set(set_id, description="of ann 3")
    assert ann.sync(bob, set_id).is_well
    (one, _) = sorted(ann.conflicts(), key=lambda it: it.ours or "")
    ann.settle(one.number, Policy.OURS)
    ann.sync(bob, set_id)
    assert bob.set(set_id).description == "of ann 1"


@pytest.mark.parametrize("policy", [Policy.OURS, Policy.THEIRS])
def test_what_lost_is_kept_wherever_a_sync_is_cut_short(host: MakeHost, policy: Policy) -> None:
    ann, bob, set_id = pair(host)
    wins = {Policy.OURS: "ann's", Policy.THEIRS: "bob's"}[policy]
    breaks = 0
    for at in range(100):
        last = ann.set(set_id).description
        ann.edit_set(set_id, description=f"ann's {at}")
        bob.edit_set(set_id, description=f"bob's {at}")
        ann.extend(set_id, "main")

        def break_it(peer: Peer, at: int = at) -> Peer:
            return Breaking(peer, at, is_done=True)  # type: ignore[return-value]

        try:
            ann.sync(bob, set_id, policy=policy, through=break_it)
        except Unavailable:
            breaks += 1
        else:
            break
        ann.sync(bob, set_id, policy=policy)
        assert ann.set(set_id).description == bob.set(set_id).description == f"{wins} {at}"
        *earlier, row = sorted(ann.conflicts(), key=lambda it: it.number)
        assert len(earlier) == at
        assert (row.ours, row.theirs, row.last) == (f"ann's {at}", f"bob's {at}", last)
        assert row.winner == policy.value
    assert breaks > 4


def test_what_earlier_rounds_did_is_reported(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.branch_at(set_id, "a", ann.tips(set_id)["main"])
    ann.branch_at(set_id, "b", ann.tips(set_id)["main"])
    ann.sync(bob, set_id)
    for name in ("a", "b", "main"):
        ann.extend(set_id, name)
    ann.edit_set(set_id, description="ann's")
    bob.edit_set(set_id, description="bob's")
    calls: list[str] = []

    class Moving:
        def __getattr__(self, name: str) -> object:
            calls.append(name)
            if calls.count("apply") == 4 and name == "apply":  # the set, and two branches, are done
                ours, theirs = ann.tips(set_id), bob.tips(set_id)
                bob.extend(set_id, next(it for it in ours if ours[it] != theirs[it]))
            return getattr(bob.replica, name)

    report = ann.sync(bob, set_id, through=lambda _peer: Moving())  # type: ignore[arg-type,return-value]
    found = [(it.field, it.winner) for it in report.conflicts]
    assert found == [("description", "theirs"), ("tip", "")]
    assert sorted(fates(report).values()) == ["diverged", "pushed", "pushed"]


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("side", [Policy.OURS, Policy.THEIRS])
def test_a_conflict_is_settled_by_command_and_stays_settled(
    host: MakeHost, policy: Policy, side: Policy
) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="ann's")
    bob.edit_set(set_id, description="bob's")
    ann.sync(bob, set_id, policy=policy)
    (row,) = ann.conflicts()
    ann.settle(row.number, side)
    assert ann.conflicts() == []
    report = bob.sync(ann, set_id, policy=Policy.FAIL)
    assert report.conflicts == []
    expected = "ann's" if side is Policy.OURS else "bob's"
    assert ann.set(set_id).description == bob.set(set_id).description == expected


def test_the_same_change_on_both_sides_is_no_conflict(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="same")
    bob.edit_set(set_id, description="same")
    assert ann.sync(bob, set_id).conflicts == []


def test_a_diverged_branch_is_kept_beside_ours_and_reported_alone(host: MakeHost) -> None:
    """D5: one diverged branch does not stop the others."""
    ann, bob, set_id = pair(host)
    ann.branch_at(set_id, "other", ann.tips(set_id)["main"])
    ann.sync(bob, set_id)
    ours, theirs = ann.extend(set_id, "main"), bob.extend(set_id, "main", 2)
    other = bob.extend(set_id, "other")
    report = ann.sync(bob, set_id)
    assert fates(report) == {"main": "diverged", "other": "pulled"}
    assert not report.is_well
    assert ann.tips(set_id) == {"main": ours, "bob/main": theirs, "other": other}
    assert bob.tips(set_id) == {"main": theirs, "other": other}
    assert fates(ann.sync(bob, set_id)) == {"main": "diverged", "other": "up to date"}


@pytest.mark.parametrize("side", [Policy.OURS, Policy.THEIRS])
def test_a_diverged_branch_is_settled_by_choosing(host: MakeHost, side: Policy) -> None:
    ann, bob, set_id = pair(host)
    ours, theirs = ann.extend(set_id, "main"), bob.extend(set_id, "main")
    ann.sync(bob, set_id)
    (row,) = ann.conflicts()
    assert (row.kind, row.field, row.winner) == ("branch", "tip", "")
    ann.settle(row.number, side)
    assert ann.sync(bob, set_id).is_well
    expected = ours if side is Policy.OURS else theirs
    assert ann.tips(set_id) == bob.tips(set_id) == {"main": expected}


def test_a_diverged_branch_is_settled_by_going_on_from_theirs(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    bob.extend(set_id, "main")
    ann.sync(bob, set_id)
    ann.reset(set_id, "main", ann.tips(set_id)["bob/main"])
    tip = ann.extend(set_id, "main")
    assert ann.sync(bob, set_id).is_well
    assert ann.tips(set_id) == bob.tips(set_id) == {"main": tip}
    assert ann.conflicts() == []


def test_a_reset_travels(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    first = ann.history(set_id, "main")[0]
    assert first is not None
    ann.reset(set_id, "main", first)
    assert fates(ann.sync(bob, set_id)) == {"main": "pushed"}
    assert bob.tips(set_id) == {"main": first}


def test_renames_and_deletions_of_branches_travel(host: MakeHost) -> None:
    """D3: branch rename and delete never synced."""
    ann, bob, set_id = pair(host)
    tip = ann.tips(set_id)["main"]
    ann.branch_at(set_id, "short-lived", tip)
    ann.sync(bob, set_id)
    ann.rename(set_id, "main", "trunk")
    bob.remove(set_id, "short-lived")
    report = ann.sync(bob, set_id)
    assert fates(report) == {"trunk": "pushed", "short-lived": "deleted"}
    assert ann.tips(set_id) == bob.tips(set_id) == {"trunk": tip}
    assert fates(bob.sync(ann, set_id)) == {"trunk": "up to date", "short-lived": "up to date"}


@pytest.mark.parametrize("way", ["sync", "push", "pull"])
@pytest.mark.parametrize("change", ["remove", "rename"])
def test_a_name_that_one_branch_lets_go_is_free_for_another(
    host: MakeHost, change: str, way: str
) -> None:
    """For a while the name is one branch's here and another's there, in whatever order of ids."""
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    first = ann.fork(set_id, "main")
    ann.sync(bob, set_id)
    for _ in range(4):
        if change == "remove":
            ann.remove(set_id, "main")
        else:
            ann.rename(set_id, "main", f"old-{len(ann.tips(set_id))}")
        ann.branch_at(set_id, "main", first)
        ann.extend(set_id, "main")
        report = bob.pull(ann, set_id) if way == "pull" else getattr(ann, way)(bob, set_id)
        assert report.is_well, report
        assert ann.tips(set_id) == bob.tips(set_id)
        assert ann.contents(set_id) == bob.contents(set_id)


@pytest.mark.parametrize(("policy", "is_there"), [(Policy.THEIRS, False), (Policy.OURS, True)])
def test_a_deletion_that_had_not_seen_a_change_is_a_conflict(
    host: MakeHost, policy: Policy, is_there: bool
) -> None:
    ann, bob, set_id = pair(host)
    tip = ann.extend(set_id, "main")
    bob.remove(set_id, "main")
    report = ann.sync(bob, set_id, policy=policy)
    assert [it.field for it in report.conflicts] == ["gone"]
    assert ann.tips(set_id) == bob.tips(set_id) == ({"main": tip} if is_there else {})


def test_the_deletion_of_a_set_travels(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    bob.delete_set(set_id)
    ann.sync(bob, set_id)
    assert ann.contents(set_id) is None
    ann.sync(bob, set_id)
    assert ann.contents(set_id) is None


@pytest.mark.parametrize("policy", Policy)
@pytest.mark.parametrize("grow", ["extend", "edit"])
def test_a_set_deleted_there_and_grown_here_is_not_lost(
    host: MakeHost, policy: Policy, grow: str
) -> None:
    ann, bob, set_id = pair(host)
    if grow == "extend":
        ann.extend(set_id, "main")
    else:
        ann.edit_set(set_id, description="of ann")
    bob.delete_set(set_id)
    before = ann.contents(set_id)
    for _ in range(2):
        report = ann.sync(bob, set_id, policy=policy)
        assert [(it.field, it.winner) for it in report.conflicts] == [("gone", "")]
        assert not report.is_well
        assert ann.contents(set_id) == before
    (row,) = ann.conflicts()
    ann.settle(row.number, Policy.OURS)
    for _ in range(2):  # branches that are as bob had seen them come with the second
        assert ann.sync(bob, set_id, policy=policy).is_well
    assert bob.contents(set_id) == ann.contents(set_id) == before


@pytest.mark.parametrize("policy", Policy)
def test_a_set_that_grew_is_deleted_by_a_person_alone(host: MakeHost, policy: Policy) -> None:
    ann, bob, set_id = pair(host)
    bob.extend(set_id, "main")
    ann.delete_set(set_id)
    ann.sync(bob, set_id, policy=policy)
    assert bob.contents(set_id) is not None
    bob.sync(ann, set_id, policy=policy)
    (row,) = bob.conflicts()
    bob.settle(row.number, Policy.THEIRS)
    assert ann.sync(bob, set_id, policy=policy).is_well
    assert ann.contents(set_id) is bob.contents(set_id) is None
    assert ann.conflicts() == []


GROWTHS: dict[str, Callable[[Host, VolumeSetId], object]] = {
    "extend": lambda host, set_id: host.extend(set_id, "main"),
    "fork": lambda host, set_id: host.fork(set_id, "more", host.tips(set_id)["main"]),
    "rename": lambda host, set_id: host.rename(set_id, "main", "trunk"),
    "edit": lambda host, set_id: host.edit_set(set_id, description="meanwhile"),
}


def after_looking(host: Host, grow: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> None:
    """Do something once, when a sync that `host` begins has looked at both sides."""
    look, done = host.replica.describe, []

    def describe(set_id: VolumeSetId) -> Tree:
        tree = look(set_id)
        if not done:
            done.append(grow())
        return tree

    monkeypatch.setattr(host.replica, "describe", describe)


@pytest.mark.parametrize("growth", GROWTHS)
@pytest.mark.parametrize("grows_here", [True, False])
def test_what_grows_between_the_look_and_the_deletion_of_its_set_is_not_lost(
    host: MakeHost, monkeypatch: pytest.MonkeyPatch, growth: str, grows_here: bool
) -> None:
    ann, bob, set_id = pair(host)
    grows, deletes = (ann, bob) if grows_here else (bob, ann)
    deletes.delete_set(set_id)
    after_looking(ann, lambda: GROWTHS[growth](grows, set_id), monkeypatch)
    report = ann.sync(bob, set_id)
    assert [(it.field, it.winner) for it in report.conflicts] == [("gone", "")]
    assert grows.contents(set_id) is not None


@pytest.mark.parametrize("growth", ["extend", "rename"])
@pytest.mark.parametrize("grows_here", [True, False])
def test_a_branch_that_grows_between_the_look_and_its_deletion_is_not_lost(
    host: MakeHost, monkeypatch: pytest.MonkeyPatch, growth: str, grows_here: bool
) -> None:
    ann, bob, set_id = pair(host)
    grows, deletes = (ann, bob) if grows_here else (bob, ann)
    deletes.remove(set_id, "main")
    after_looking(ann, lambda: GROWTHS[growth](grows, set_id), monkeypatch)
    report = ann.sync(bob, set_id, policy=Policy.FAIL)
    assert [(it.kind, it.field, it.winner) for it in report.conflicts] == [("branch", "gone", "")]
    assert len(grows.tips(set_id)) == 1


def test_a_person_does_not_delete_what_grew_after_the_conflict_was_found(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    bob.delete_set(set_id)
    ann.sync(bob, set_id)
    ann.fork(set_id, "more", ann.tips(set_id)["main"])
    before = ann.contents(set_id)
    with pytest.raises(FailedPrecondition, match="sync again"):
        ann.settle(ann.conflicts()[0].number, Policy.THEIRS)
    assert ann.contents(set_id) == before
    ann.sync(bob, set_id)
    ann.settle(ann.conflicts()[0].number, Policy.THEIRS)
    assert ann.contents(set_id) is None


def test_conflicts_of_a_set_go_with_it(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    bob.extend(set_id, "main")
    ann.sync(bob, set_id)
    (row,) = ann.conflicts()
    ann.delete_set(set_id)
    assert ann.conflicts() == []
    with pytest.raises(NotFound, match=f"conflict {row.number} does not exist"):
        ann.settle(row.number, Policy.THEIRS)
    ann.sync(bob, set_id)
    assert [(it.kind, it.field) for it in ann.conflicts()] == [("set", "gone")]


def test_a_tip_that_is_not_here_yet_is_not_chosen(host: MakeHost) -> None:
    """A push tells of a branch that diverged, and fetches nothing."""
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    theirs = bob.extend(set_id, "main")
    ann.push(bob, set_id)
    with pytest.raises(FailedPrecondition, match="pull from bob, then decide"):
        ann.settle(ann.conflicts()[0].number, Policy.THEIRS)
    ann.pull(bob, set_id)
    ann.settle(ann.conflicts()[0].number, Policy.THEIRS)
    assert ann.tips(set_id)["main"] == theirs


@pytest.mark.parametrize("what", ["set", "branch"])
def test_who_deleted_may_insist_on_it_until_it_grows_again(host: MakeHost, what: str) -> None:
    ann, bob, set_id = pair(host)

    def disagree() -> None:
        report = ann.sync(bob, set_id, policy=Policy.FAIL)
        assert [(it.kind, it.field, it.winner) for it in report.conflicts] == [(what, "gone", "")]

    bob.extend(set_id, "main")
    if what == "set":
        ann.delete_set(set_id)
    else:
        ann.remove(set_id, "main")
    disagree()
    ann.settle(ann.conflicts()[0].number, Policy.OURS)
    bob.extend(set_id, "main")
    disagree()
    (row,) = ann.conflicts()
    ann.settle(row.number, Policy.OURS)
    assert ann.sync(bob, set_id, policy=Policy.FAIL).is_well
    assert ann.contents(set_id) == bob.contents(set_id)
    assert bob.contents(set_id) is None or bob.tips(set_id) == {}
    assert ann.conflicts() == []


def test_a_pull_does_not_forget_what_was_changed_here(host: MakeHost) -> None:
    """D1: after a pull alone, a local edit was overwritten silently by the next full sync."""
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="ann's work")
    ann.pull(bob, set_id)
    report = ann.sync(bob, set_id)
    assert report.conflicts == []
    assert ann.set(set_id).description == bob.set(set_id).description == "ann's work"


def test_a_branch_whose_tip_is_there_already_is_made_there(host: MakeHost) -> None:
    """D2: a branch whose tip the target already has was never created there."""
    ann, bob, set_id = pair(host)
    tip = ann.tips(set_id)["main"]
    ann.branch_at(set_id, "second", tip)
    ann.sync(bob, set_id)
    assert bob.tips(set_id) == {"main": tip, "second": tip}


def test_the_same_name_given_twice_is_reported_for_that_branch(host: MakeHost) -> None:
    """D4: one name made on two hosts ended the sync with an error of the database."""
    ann, bob, set_id = pair(host)
    tip = ann.tips(set_id)["main"]
    ours, theirs = ann.fork(set_id, "fix", tip), bob.fork(set_id, "fix", tip)
    main = bob.extend(set_id, "main")
    report = ann.sync(bob, set_id)
    assert sorted((it.name, it.fate) for it in report.branches) == [
        ("fix", "name taken"),
        ("fix", "name taken"),
        ("main", "pulled"),
    ]
    assert ann.tips(set_id) == {"main": main, "fix": ours, "bob/fix": theirs}
    ann.rename(set_id, "fix", "fix-of-ann")
    assert ann.sync(bob, set_id).is_well
    expected = {"main": main, "fix-of-ann": ours, "fix": theirs}
    assert ann.tips(set_id) == bob.tips(set_id) == expected


def test_a_tip_that_moves_during_a_sync_is_looked_at_again(host: MakeHost) -> None:
    """D6: retries went on with what was read before the first."""
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    moved: list[str] = []

    class Moving:
        def __getattr__(self, name: str) -> object:
            if name == "apply" and not moved:
                moved.append(bob.extend(set_id, "main"))
            return getattr(bob.replica, name)

    report = ann.sync(bob, set_id, through=lambda _peer: Moving())  # type: ignore[arg-type,return-value]
    assert fates(report) == {"main": "diverged"}
    assert ann.tips(set_id)["bob/main"] == moved[0]


def test_a_common_point_is_found_however_far_away(host: MakeHost) -> None:
    """D9: only twenty ancestors were looked at."""
    ann, bob, set_id = pair(host)
    tip = bob.extend(set_id, "main", 250)
    assert fates(ann.sync(bob, set_id)) == {"main": "pulled"}
    assert ann.tips(set_id) == {"main": tip}
    fork = ann.fork(set_id, "old", ann.history(set_id, "main")[0])
    ann.sync(bob, set_id)
    assert bob.tips(set_id)["old"] == fork


def test_a_third_host_hears_of_all_through_the_second(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    eve = host("eve")
    ann.edit_set(set_id, description="said by ann")
    ann.sync(bob, set_id)
    eve.pull(bob, set_id)
    assert eve.set(set_id).description == "said by ann"
    report = eve.sync(ann, set_id)
    assert report.conflicts == []
    assert fates(report) == {"main": "up to date"}


def test_an_edit_made_twice_over_is_newer_than_what_it_was_made_from(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    eve = host("eve")
    eve.pull(bob, set_id)
    for number, (one, other) in enumerate([(ann, bob), (bob, eve), (eve, ann), (ann, eve)]):
        one.edit_set(set_id, description=f"edit {number}")
        assert one.sync(other, set_id).conflicts == []
        assert other.set(set_id).description == f"edit {number}"


def test_a_remote_that_became_another_store_is_refused(host: MakeHost) -> None:
    ann, _bob, set_id = pair(host)
    eve = host("eve")
    eve.pull(ann, set_id)
    eve.name = "bob"
    with pytest.raises(FailedPrecondition, match="another store"):
        ann.sync(eve, set_id)
    ann.name = "itself"
    with pytest.raises(FailedPrecondition, match="itself"):
        ann.sync(ann, set_id)


def test_a_push_leaves_this_side_alone_and_a_pull_that(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.edit_set(set_id, description="here")
    bob.edit_set(set_id, owner="there")
    bob.extend(set_id, "main")
    before = ann.contents(set_id)
    ann.push(bob, set_id)
    assert ann.contents(set_id) == before
    assert bob.set(set_id).description == "here"
    before = bob.contents(set_id)
    ann.pull(bob, set_id)
    assert bob.contents(set_id) == before
    assert ann.contents(set_id) == before


def test_histories_of_branches_travel_as_facts(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    tips = [ann.history(set_id, "main")[-1], bob.extend(set_id, "main")]
    ann.sync(bob, set_id, Direction.SYNC)
    tips.append(ann.extend(set_id, "main"))
    ann.sync(bob, set_id, Direction.SYNC)
    assert ann.history(set_id, "main") == bob.history(set_id, "main")
    assert ann.history(set_id, "main")[-3:] == tips


def test_a_long_history_has_room_in_messages(
    host: MakeHost, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An eighth of what messages hold, and of what is sent at once."""
    monkeypatch.setattr(grpc_server, "MAX_MESSAGE_BYTES", MAX_MESSAGE_BYTES // 8)
    monkeypatch.setattr(replica, "FACTS_AT_ONCE", replica.FACTS_AT_ONCE // 8)
    ann, bob = host("ann"), host("bob")
    set_id = ann.new_set()
    tip = ann.fork(set_id, "main")
    ann.sync(bob, set_id)
    with ann.store.view() as tx:
        anchor = branch_anchor(set_id, BranchId(branches.resolve(tx, set_id, "main").name))
    ref = Ref("volume-snapshot", tip)
    facts = tuple(Fact(at, 0, ref, reason="x" * 4096) for at in range(1, 600))
    Anchors(ann.store).merge(History(anchor, facts))
    assert len(msgspec.msgpack.encode(facts)) > MAX_MESSAGE_BYTES // 8
    listening = partial(exchange_server.register, replica=bob.replica)
    server = grpc_server.build(tmp_path / "sock", services=[listening], max_workers=2)
    way = ways.connect(Unix(str(tmp_path / "sock")), Identity(Path(), Path(), Path()))
    try:
        with ExchangePeer("bob", way, timeout_s=30) as peer:
            assert ann.sync(bob, set_id, through=lambda _: peer).is_well
            assert len(peer.facts(set_id, [BranchId(anchor.split("/")[2])])) > 1
    finally:
        server.stop(grace_s=0)
    assert Anchors(bob.store).export(anchor) == Anchors(ann.store).export(anchor)


def test_each_host_keeps_histories_for_as_long_as_it_likes(host: MakeHost) -> None:
    ann, bob, set_id = pair(host)
    ann.extend(set_id, "main")
    ann.sync(bob, set_id)
    before = ann.history(set_id, "main")
    assert len(before) > 1
    bob.prune()
    ann.extend(set_id, "main")
    for one, other in ((ann, bob), (bob, ann)):
        one.sync(other, set_id)
    assert ann.history(set_id, "main") == [*before, ann.tips(set_id)["main"]]
    assert bob.history(set_id, "main") == ann.history(set_id, "main")[-2:]
    ann.prune()
    ann.sync(bob, set_id)
    assert ann.history(set_id, "main") == [ann.tips(set_id)["main"]]
