"""Three hosts, random edits, random syncs, broken connections: in the end all have the same."""

from __future__ import annotations

import contextlib
import tempfile
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, Phase, example, given, settings
from hypothesis import strategies as st

from snapfs.model import FailedPrecondition, NotFound, SnapfsError, Unavailable
from snapfs.sync.conflicts import Kept
from snapfs.sync.planning import Direction
from snapfs.sync.threeway import Policy
from snapfs.volumes.ids import VolumeSetId
from tests.sync.kit import Breaking, Host

hosts = st.integers(0, 2)
branch_names = st.sampled_from(["main", "side", "third"])
words = st.sampled_from(["x", "y", "z"])

steps = st.one_of(
    st.tuples(st.just("describe"), hosts, words),
    st.tuples(st.just("attribute"), hosts, words, words),
    st.tuples(st.just("message"), hosts, branch_names, words),
    st.tuples(st.just("extend"), hosts, branch_names),
    st.tuples(st.just("fork"), hosts, branch_names, branch_names),
    st.tuples(st.just("rename"), hosts, branch_names, branch_names),
    st.tuples(st.just("remove"), hosts, branch_names),
    st.tuples(st.just("reset"), hosts, branch_names),
    st.tuples(st.just("crash"), hosts),
    st.tuples(
        st.just("sync"),
        hosts,
        st.integers(1, 2),
        st.sampled_from(Direction),
        st.sampled_from(Policy),
        st.one_of(st.none(), st.tuples(st.integers(0, 12), st.booleans())),
    ),
)


def _edit(host: Host, set_id: VolumeSetId, kind: str, *args: Any) -> None:
    match kind, args:
        case "describe", (word,):
            host.edit_set(set_id, description=word)
        case "attribute", (key, word):
            known = dict(host.set(set_id).attributes)
            host.edit_set(set_id, attributes={**known, key: word})
        case "message", (name, word):
            host.edit_snapshot(set_id, host.tips(set_id).get(name, ""), description=word)
        case "extend", (name,):
            host.extend(set_id, name)
        case "fork", (name, new):
            host.fork(set_id, new, host.tips(set_id).get(name))
        case "rename", (name, new):
            host.rename(set_id, name, new)
        case "remove", (name,):
            host.remove(set_id, name)
        case "crash", ():
            host.restart()
        case "delete", ():
            host.delete_set(set_id)
        case "reset", (name,):
            first = host.history(set_id, name)[0]
            host.reset(set_id, name, first or "")


def _step(all_hosts: list[Host], set_id: VolumeSetId, step: tuple[Any, ...]) -> None:
    kind, number, *args = step
    host = all_hosts[number]
    try:
        if kind != "sync":
            _edit(host, set_id, kind, *args)
            return
        distance, direction, policy, broken = args
        other = all_hosts[(number + distance) % 3]
        through: Any = (
            (lambda peer: Breaking(peer, broken[0], is_done=broken[1])) if broken else lambda it: it
        )
        host.sync(other, set_id, direction, policy, through)
    except Unavailable:
        return
    except SnapfsError:
        if kind == "sync":
            raise  # only edits may be refused: of what is not there, or to a name that is taken


def _settle(all_hosts: list[Host], set_id: VolumeSetId) -> None:
    """Sync until all is quiet, as people would: choose where the branches have diverged."""
    for _ in range(12):
        well = True
        for number, host in enumerate(all_hosts):
            other = all_hosts[(number + 1) % 3]
            report = host.sync(other, set_id)
            for row in host.conflicts():
                well = well and bool(row.winner)
                side = Policy.OURS if (row.ours or "") > (row.theirs or "") else Policy.THEIRS
                try:
                    host.settle(row.number, side)
                except (FailedPrecondition, NotFound):  # not here yet, changed since, or gone
                    well = False
                    _leave_decided(host, row)
            for branch in report.branches:
                if branch.fate == "name taken":
                    well = False
                    _rename_away(host, set_id, branch.name)
        one, other, third = ((it.contents(set_id), it.histories(set_id)) for it in all_hosts)
        if well and one == other == third:
            return
    raise AssertionError([it.contents(set_id) for it in all_hosts])


def _leave_decided(host: Host, row: Kept) -> None:
    """Let it be as the sync decided: what has grown since is not deleted for an old conflict."""
    if row.winner:
        with contextlib.suppress(FailedPrecondition, NotFound):
            host.settle(row.number, Policy(row.winner))


def _rename_away(host: Host, set_id: VolumeSetId, name: str) -> None:
    try:
        host.rename(set_id, name, f"{name}-of-{host.name}")
    except SnapfsError:
        return


SETTINGS = settings(
    max_examples=25,
    deadline=None,
    phases=(Phase.explicit, Phase.reuse, Phase.generate),  # to shrink takes many minutes
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)


@SETTINGS
@given(st.lists(steps, min_size=8, max_size=24))
@example(
    [
        ("remove", 2, "side"),
        ("rename", 2, "third", "main"),
        ("reset", 1, "main"),
        ("extend", 0, "third"),
        ("remove", 0, "main"),
        ("extend", 2, "main"),
        ("fork", 2, "side", "side"),
        ("sync", 0, 1, Direction.PULL, Policy.FAIL, (11, True)),
        ("extend", 2, "main"),
        ("sync", 0, 2, Direction.SYNC, Policy.THEIRS, None),
        ("extend", 0, "main"),
    ]
)
def test_any_edits_and_syncs_converge(found: list[tuple[Any, ...]]) -> None:
    converge(found)


@SETTINGS
@given(
    st.lists(steps, max_size=8),
    hosts,
    st.lists(steps, min_size=4, max_size=12),
)
def test_any_edits_and_syncs_around_a_deletion_converge(
    before: list[tuple[Any, ...]], deletes: int, after: list[tuple[Any, ...]]
) -> None:
    converge([*before, ("delete", deletes), *after])


def converge(found: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as directory:
        made = [Host(name, Path(directory) / name) for name in ("ann", "bob", "eve")]
        try:
            set_id = made[0].new_set()
            made[0].fork(set_id, "main")
            made[0].sync(made[1], set_id)
            made[1].sync(made[2], set_id)
            for step in found:
                _step(made, set_id, step)
            _settle(made, set_id)
        finally:
            for host in made:
                host.close()
