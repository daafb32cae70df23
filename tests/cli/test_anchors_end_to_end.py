"""`snapfs anchor` against a real service."""

from __future__ import annotations

import json

import pytest

from tests.support.daemon import RunningDaemon

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def test_name_is_put_got_at_a_time_listed_and_deleted(daemon: RunningDaemon) -> None:
    first = daemon.json("anchor", "put", "-m", "one", "e2e/a", "snapshot:a-1")
    daemon.run("anchor", "put", "--author", "ann", "e2e/a", "snapshot:a-2")
    daemon.run("anchor", "put", "e2e/b", "digest:sha256:00")
    assert daemon.run("anchor", "get", "e2e/a").stdout == "snapshot:a-2\n"
    assert daemon.run("anchor", "get", "e2e/a", "--at", first["at"]).stdout == "snapshot:a-1\n"
    assert [it["name"] for it in daemon.json("anchor", "list", "e2e/")] == ["e2e/a", "e2e/b"]
    assert "e2e/b" in daemon.run("anchor", "list", "e2e/").stdout
    daemon.run("anchor", "delete", "-m", "gone", "e2e/a")
    newest, second, oldest = daemon.json("anchor", "history", "e2e/a")
    assert (newest["reference"], newest["reason"]) == (None, "gone")
    assert second["author"] == "ann"
    assert oldest == first
    assert "@" in first["author"]
    assert [it["name"] for it in daemon.json("anchor", "list", "e2e/")] == ["e2e/b"]


def test_stale_expectation_is_refused_with_the_way_out(daemon: RunningDaemon) -> None:
    daemon.run("anchor", "put", "e2e/cas", "t:a")
    refused = daemon.run("anchor", "put", "--expect", "0", "e2e/cas", "t:b", check=False)
    assert refused.exit_code == 1
    assert "get it again and repeat the change" in refused.stderr


def test_old_entries_expire_but_for_the_one_in_force(daemon: RunningDaemon) -> None:
    for day in (1, 2, 3):
        daemon.run("anchor", "put", "--at", f"2020-01-0{day}", "e2e/old", f"t:{day}")
    done = json.loads(
        daemon.run("anchor", "expire", "--json", "--before", "2020-01-02 12:00", "e2e/old").stdout
    )
    assert done == {"anchors": 1, "entries": 1}
    assert daemon.run("anchor", "get", "e2e/old", "--at", "2020-01-02").stdout == "t:2\n"


def test_check_of_the_root_is_clean_with_anchors(daemon: RunningDaemon) -> None:
    daemon.run("anchor", "put", "e2e/check", "t:a")
    assert daemon.json("fsck") == []
