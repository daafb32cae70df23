"""`snapfs upgrade` under a running program: other code, the same mounts."""

from __future__ import annotations

import shutil
import signal
import subprocess
from pathlib import Path

import pytest

import snapfs
from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import LaneStatus
from snapfs.fuse.watching import FREE_DEATHS
from snapfs.reporting import lane_warnings
from tests.support.daemon import SNAPFS, RunningDaemon, eventually
from tests.support.writer import writing

PACKAGE = Path(snapfs.__file__).parent

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def mounted(daemon: RunningDaemon) -> Path:
    daemon.run("snapshot", "prepare", "work")
    target = daemon.base / "at-work"
    target.mkdir()
    daemon.run("mount", "work", target)
    return target


def test_service_begins_anew_under_a_program_that_notices_nothing(daemon: RunningDaemon) -> None:
    target = mounted(daemon)
    before = daemon.json("status")
    with writing(daemon.base, target) as writer:
        after = daemon.json("upgrade")
        writer.must_go_on()
        assert after["pid"] == before["pid"]
        assert after["lanes"][0]["worker_pid"] == before["lanes"][0]["worker_pid"]
    assert len(daemon.events("daemon.begins_anew")) == 1


def test_stop_while_the_service_begins_anew_is_a_stop(daemon: RunningDaemon) -> None:
    """Sent as soon as the old code is done; as the new code is loaded, nobody handles signals."""
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGUSR2)
    eventually(lambda: daemon.events("daemon.begins_anew"), what="the execution of the new code")
    assert daemon.stop() == 0
    assert not daemon.lane.exists() or not daemon.lane.is_mount()


def test_stop_of_a_service_that_ends_to_begin_anew_ends_it(daemon: RunningDaemon) -> None:
    assert daemon.process is not None
    daemon.process.send_signal(signal.SIGUSR2)
    eventually(lambda: daemon.events("daemon.stopping"), what="the end of the old code")
    daemon.stop()


def test_worker_of_another_release_is_replaced_under_a_program(daemon: RunningDaemon) -> None:
    """As the next service is told by an environment variable of this test's what release it is."""
    target = mounted(daemon)
    worker = daemon.worker_pid()
    site = daemon.base / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text("import snapfs\nsnapfs.__version__ = '99.0'\n")
    with writing(daemon.base, target) as writer:
        daemon.stop()
        daemon.environ["PYTHONPATH"] = str(site)
        daemon.start()
        writer.must_go_on()
        assert daemon.worker_pid() != worker
        assert len(daemon.events("lane.worker_replaced")) == 1
        assert not daemon.json("status")["warnings"]


def install(site: Path, version: str) -> None:
    """Put the package below `site` as another release of it, in place of the one that is there."""
    new = site.with_name("site.new")
    shutil.copytree(PACKAGE, new / "snapfs", ignore=shutil.ignore_patterns("__pycache__", "*_src"))
    said = new / "snapfs" / "__init__.py"
    ours = f'__version__ = "{snapfs.__version__}"'
    assert ours in said.read_text()
    said.write_text(said.read_text().replace(ours, f'__version__ = "{version}"'))
    about = new / f"snapfs-{version}.dist-info"
    about.mkdir()
    (about / "METADATA").write_text(f"Metadata-Version: 2.1\nName: snapfs\nVersion: {version}\n")
    if site.exists():
        site.rename(site.with_name("site.old"))
    new.rename(site)


def test_release_that_was_installed_meanwhile_takes_over_the_mount(daemon: RunningDaemon) -> None:
    """What is on disk is replaced, and the command is of the new release, too."""
    site = daemon.base / "site"
    install(site, "98.0")
    daemon.stop()
    daemon.environ["PYTHONPATH"] = str(site)
    daemon.start()
    target = mounted(daemon)
    before = daemon.json("status")
    with writing(daemon.base, target) as writer:
        install(site, "99.0")
        command = [SNAPFS, "upgrade", "--address", daemon.address]
        done = subprocess.run(
            command, env=daemon.environ, capture_output=True, text=True, timeout=150, check=True
        )
        assert f"version 98.0 -> 99.0, pid {before['pid']}; lanes: main serving" in done.stdout
        writer.must_go_on()
        after = daemon.json("status")
        assert (before["version"], after["version"]) == ("98.0", "99.0")
        assert after["lanes"][0]["worker_pid"] != before["lanes"][0]["worker_pid"]
        assert not after["warnings"]
        writer.must_go_on()
    code = {Path(it).resolve() for it in mapped(daemon.worker_pid()) if it.endswith(".so")}
    assert site / "snapfs" in {it.parents[1] for it in code}


def mapped(pid: int) -> list[str]:
    return [line.split()[-1] for line in Path(f"/proc/{pid}/maps").read_text().splitlines()]


def test_root_of_a_newer_format_refuses_and_nothing_changes(daemon: RunningDaemon) -> None:
    before = daemon.json("status")
    (daemon.root / "snapfs.json").write_text('{"format": 99}')
    refused = daemon.run("upgrade", check=False)
    assert refused.exit_code == 1
    assert "has format 99, newer than" in refused.stderr
    assert daemon.json("status")["started"] == before["started"]


def test_crash_loop_is_told_with_the_wait_that_comes_of_it() -> None:
    status = LaneStatus(
        "main",
        Path("/m"),
        LaneState.RESTARTING,
        None,
        7,
        None,
        deaths=FREE_DEATHS + 1,
        delay_s=0.1,
    )
    (warning,) = lane_warnings(status)
    assert "its worker died 4 times in a row; the next one is started 0.1 s after" in warning
