"""The service forgets by itself what is older than it is told to keep."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, eventually, running

pytestmark = [pytest.mark.fuse, pytest.mark.root]

A_MOMENT = {"SNAPFS_HISTORY_KEEP_DAYS": "0.000003", "SNAPFS_HISTORY_EVERY_S": "0.2"}


def messages(daemon: RunningDaemon) -> list[str]:
    return [it["message"] for it in daemon.json("volume", "log", "db", "--all")]


def fill(daemon: RunningDaemon) -> None:
    """Let a volume, a name of an image and somebody's anchor stand elsewhere than before."""
    daemon.run("volume", "create", "db")
    for message in ("one", "two"):
        daemon.run("volume", "snapshot", "db", "-m", message)
        daemon.run("anchor", "put", "image/default/web", f"digest:{message}")
        daemon.run("anchor", "put", "mine", f"digest:{message}")
    daemon.run("volume", "reset", "--hard", "db", "HEAD^")


def entries(daemon: RunningDaemon, name: str) -> int:
    return len(daemon.json("anchor", "history", name))


def test_what_is_older_goes_with_what_it_kept(tmp_path: Path) -> None:
    with running(tmp_path, environ=A_MOMENT) as daemon:
        fill(daemon)
        eventually(lambda: messages(daemon) == ["one"], what="the end of a discarded snapshot")
        eventually(lambda: entries(daemon, "image/default/web") == 1, what="the end of an entry")
        assert entries(daemon, "mine") == 2
        blobs = [it for it in daemon.json("snapshot", "list") if it["kind"] == "committed"]
        assert len(blobs) == 1
        assert daemon.json("volume", "info", "db")["branch"] == "main"
        assert daemon.json("fsck") == []


def test_by_default_all_is_kept_until_somebody_prunes(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        fill(daemon)
        daemon.stop()
        daemon.start()
        assert sorted(messages(daemon)) == ["one", "two"]
        assert entries(daemon, "image/default/web") == 2
        daemon.run("volume", "prune", "--before", "0s")
        assert messages(daemon) == ["one"]
