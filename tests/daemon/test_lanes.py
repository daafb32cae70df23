"""Several lanes of one service: started when needed, each with a worker of its own, all ended."""

from __future__ import annotations

import errno
import os
import re
import signal
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.daemon import (
    RunningDaemon,
    clear,
    eventually,
    mounts_below,
    processes_below,
    running,
)

pytestmark = [pytest.mark.fuse, pytest.mark.root]

LABEL = "containerd.io/snapshot/snapfs.lane"


@pytest.fixture
def base(tmp_path: Path) -> Path:
    return tmp_path / "d"


@pytest.fixture
def daemon(base: Path) -> Iterator[RunningDaemon]:
    base.mkdir()
    yield RunningDaemon(base)
    clear(base)


def committed(daemon: RunningDaemon, name: str = "base") -> None:
    daemon.run("snapshot", "prepare", f"{name}-key")
    target = mount(daemon, f"{name}-key")
    (target / "file").write_text("lower")
    daemon.run("umount", target)
    daemon.run("snapshot", "commit", f"{name}-key", name)


def mount(daemon: RunningDaemon, key: str) -> Path:
    target = daemon.base / f"at-{key}"
    target.mkdir()
    daemon.run("mount", key, target)
    return target


def lanes(daemon: RunningDaemon) -> dict[str, Any]:
    return {it["name"]: it for it in daemon.json("status")["lanes"]}


def test_a_lane_of_views_starts_with_the_first_view_and_is_read_only(
    daemon: RunningDaemon,
) -> None:
    daemon.base.mkdir(exist_ok=True)
    with running(daemon.base) as daemon:
        committed(daemon)
        assert list(lanes(daemon)) == ["main"]
        daemon.run("snapshot", "view", "look", "base")
        started = lanes(daemon)
        assert (started["views"]["mode"], started["views"]["state"]) == ("readonly", "serving")
        assert started["views"]["worker_pid"] != started["main"]["worker_pid"]
        target = mount(daemon, "look")
        assert (target / "file").read_text() == "lower"
        with pytest.raises(OSError) as refused:
            (target / "new").write_text("x")
        assert refused.value.errno == errno.EROFS
        line = next(
            it
            for it in Path("/proc/self/mountinfo").read_text().splitlines()
            if f" {started['views']['mountpoint']} " in it
        )
        assert line.rsplit(" ", 1)[1].startswith("ro")  # the super block's own options
        assert daemon.json("snapshot", "info", "look")["mounted_at"] == [str(target)]
        daemon.run("umount", target)


def test_a_label_chooses_the_lane_and_a_wrong_one_is_refused(daemon: RunningDaemon) -> None:
    with running(daemon.base) as daemon:
        committed(daemon)
        daemon.run("snapshot", "view", "look", "base", "--label", f"{LABEL}=main")
        assert list(lanes(daemon)) == ["main"]
        done = daemon.run("snapshot", "prepare", "work", "--label", f"{LABEL}=fast", check=False)
        assert done.exit_code == 1
        assert "lane 'fast' does not exist; lanes for a new active are main, no-open" in done.stderr


def test_a_view_goes_where_the_configuration_says(daemon: RunningDaemon) -> None:
    with running(daemon.base, environ={"SNAPFS_LANES_VIEW": "main"}) as daemon:
        committed(daemon)
        daemon.run("snapshot", "view", "look", "base")
        assert list(lanes(daemon)) == ["main"]


def test_lanes_with_snapshots_are_started_again(daemon: RunningDaemon) -> None:
    daemon.start()
    committed(daemon)
    daemon.run("snapshot", "view", "look", "base")
    assert daemon.stop() == 0
    assert mounts_below(daemon.base) == []
    daemon.start()
    assert set(lanes(daemon)) == {"main", "views"}
    daemon.run("snapshot", "remove", "look")
    assert daemon.stop() == 0
    daemon.start()
    assert set(lanes(daemon)) == {"main"}
    assert daemon.stop() == 0
    eventually(lambda: not processes_below(daemon.base), what="the workers' end")


def test_a_lane_left_in_use_without_snapshots_is_adopted_and_ended(daemon: RunningDaemon) -> None:
    daemon.start()
    committed(daemon)
    daemon.run("snapshot", "view", "look", "base")
    target = mount(daemon, "look")
    worker = daemon.worker_pid("views")
    daemon.run("snapshot", "remove", "--force", "look")
    daemon.kill()
    daemon.start()
    assert daemon.worker_pid("views") == worker
    assert (target / "file").read_text() == "lower"
    daemon.run("snapshot", "view", "again", "base")
    again = mount(daemon, "again")
    assert (again / "file").stat().st_dev == (target / "file").stat().st_dev
    for at in (target, again):
        subprocess.run(["umount", at], check=True)
    assert daemon.stop() == 0
    eventually(lambda: not processes_below(daemon.base), what="the workers' end")
    assert mounts_below(daemon.base) == []


def test_each_lane_has_a_worker_that_is_replaced_alone(daemon: RunningDaemon) -> None:
    with running(daemon.base) as daemon:
        committed(daemon)
        daemon.run("snapshot", "view", "look", "base")
        target = mount(daemon, "look")
        main = daemon.worker_pid()
        os.kill(daemon.worker_pid("views"), signal.SIGKILL)
        eventually(lambda: lanes(daemon)["views"]["restarts"] == 1, what="a restart")
        assert (target / "file").read_text() == "lower"
        assert daemon.worker_pid() == main
        daemon.run("umount", target)


def test_a_lane_unmounted_behind_our_back_is_mounted_for_who_asks(daemon: RunningDaemon) -> None:
    with running(daemon.base) as daemon:
        committed(daemon)
        daemon.run("snapshot", "view", "look", "base")
        subprocess.run(["umount", daemon.state / "mnt" / "views"], check=True)
        eventually(lambda: daemon.events("lane.unmounted"), what="the news")
        target = mount(daemon, "look")
        assert (target / "file").read_text() == "lower"
        assert daemon.events("lane.mounted_again")
        daemon.run("umount", target)


def test_a_lane_without_opens_takes_what_its_label_says(daemon: RunningDaemon) -> None:
    with running(daemon.base) as daemon:
        committed(daemon)
        daemon.run("snapshot", "prepare", "work", "--parent", "base", "--label", f"{LABEL}=no-open")
        target = mount(daemon, "work")
        with (target / "file").open("a") as file:
            file.write(" and upper")
        started = lanes(daemon)
        assert started["no-open"]["mode"] == "no-open"
        assert started["no-open"]["features"]["no-open"] == ""
        assert started["main"]["features"]["no-open"] == "the lane's mode goes without"
        shown = daemon.run("status").stdout
        assert re.search(r"can +channel,.* no-open[,\n]", shown)
        assert re.search(r"not in this mode +passthrough[,\n]", shown)
        assert "goes without" not in shown
        daemon.run("umount", target)
        daemon.run("snapshot", "commit", "work", "more")
        daemon.run("snapshot", "view", "look", "more")
        seen = mount(daemon, "look")
        assert (seen / "file").read_text() == "lower and upper"
        daemon.run("umount", seen)


def test_health_of_several_lanes_is_looked_at_at_once(base: Path) -> None:
    """Each that is silent takes the time that one may take."""
    base.mkdir()
    config = base / "config.toml"
    config.write_text("[timeouts]\nprobe_s = 1.0\n")
    with running(base, environ={"SNAPFS_CONFIG": str(config)}) as daemon:
        committed(daemon)
        daemon.run("snapshot", "view", "look", "base")
        pids = [it["worker_pid"] for it in lanes(daemon).values()]
        assert len(pids) == 2
        for pid in pids:
            os.kill(pid, signal.SIGSTOP)
        try:
            unwell = eventually(lambda: daemon.events("daemon.unwell"), what="a health check")
        finally:
            for pid in pids:
                os.kill(pid, signal.SIGCONT)
        assert "its worker does not answer" in unwell[0]


def prepared(daemon: RunningDaemon, *keys: str) -> dict[str, Path]:
    """Prepare and mount snapshots, each with a file of its own; return where they are."""
    targets = {}
    for key in keys:
        daemon.run("snapshot", "prepare", key, "--parent", "base")
        targets[key] = mount(daemon, key)
        (targets[key] / key).write_text(key)
    return targets


def lane_of(daemon: RunningDaemon, key: str) -> str:
    lane: str = daemon.json("snapshot", "info", key)["lane"]
    return lane


def test_workers_share_a_lane_and_one_that_dies_holds_up_its_own_snapshots_only(
    base: Path,
) -> None:
    base.mkdir()
    with running(base, environ={"SNAPFS_LANES_WORKERS": "2"}) as daemon:
        committed(daemon)
        targets = prepared(daemon, "a", "b", "c", "d")
        assert {lane_of(daemon, key) for key in targets} == {"main", "main-2"}
        before = lanes(daemon)
        assert set(before) == {"main", "main-2"}
        assert before["main-2"]["mode"] == before["main"]["mode"]
        os.kill(before["main-2"]["worker_pid"], signal.SIGKILL)
        for key, target in targets.items():
            assert (target / key).read_text() == key
            assert (target / "file").read_text() == "lower"
            (target / key).write_text(f"{key} again")
        after = lanes(daemon)
        assert {name: it["restarts"] for name, it in after.items()} == {"main": 0, "main-2": 1}
        assert after["main"]["worker_pid"] == before["main"]["worker_pid"]
        for key, target in targets.items():
            daemon.run("umount", target)
            daemon.run("snapshot", "commit", key, f"{key}-done")
            layer = Path(daemon.json("snapshot", "info", f"{key}-done")["layer"])
            assert (layer / key).read_text() == f"{key} again"


def test_snapshots_stay_with_their_worker_when_fewer_are_wanted(daemon: RunningDaemon) -> None:
    daemon.environ["SNAPFS_LANES_WORKERS"] = "2"
    daemon.start()
    committed(daemon)
    targets = prepared(daemon, "a", "b", "e")  # a whole round at least
    before = {name: it["worker_pid"] for name, it in lanes(daemon).items()}
    assert set(before) == {"main", "main-2"}
    assert daemon.stop() == 0
    daemon.environ["SNAPFS_LANES_WORKERS"] = "1"
    daemon.start()
    assert {name: it["worker_pid"] for name, it in lanes(daemon).items()} == before
    later = prepared(daemon, "c", "d")
    assert {lane_of(daemon, key) for key in later} == {"main"}
    assert {lane_of(daemon, key) for key in targets} == {"main", "main-2"}
    for key, target in {**targets, **later}.items():
        assert (target / key).read_text() == key
        daemon.run("umount", target)
        daemon.run("snapshot", "remove", key)
    assert daemon.stop() == 0
    daemon.start()
    assert set(lanes(daemon)) == {"main"}
    assert daemon.stop() == 0
    eventually(lambda: not processes_below(daemon.base), what="the workers' end")


def test_people_name_a_lane_and_not_its_worker(base: Path) -> None:
    base.mkdir()
    with running(base, environ={"SNAPFS_LANES_WORKERS": "2"}) as daemon:
        label = f"{LABEL}=main-2"
        done = daemon.run("snapshot", "prepare", "work", "--label", label, check=False)
        assert done.exit_code == 1
        assert "lane 'main-2' does not exist; lanes for a new active are main," in done.stderr
