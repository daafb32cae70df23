"""The service does all its work with the capabilities that the unit leaves it."""

from __future__ import annotations

import os
import re
import stat
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, clear

pytestmark = [pytest.mark.root, pytest.mark.fuse]

UNIT = Path(__file__).parents[2] / "systemd" / "snapfs.service"
CAP_SYS_MODULE = 1 << 16


def dropped() -> list[str]:
    """Return the capabilities that the unit takes away, as setpriv(1) calls them."""
    lists = re.findall(r"^CapabilityBoundingSet=~(.*)$", UNIT.read_text(), re.MULTILINE)
    return [name.removeprefix("CAP_").lower() for line in lists for name in line.split()]


class Confined(RunningDaemon):
    """A service under no new privileges, and without what the unit drops."""

    def command(self) -> list[str]:
        gone = ",".join(f"-{name}" for name in dropped())
        return ["setpriv", "--no-new-privs", f"--bounding-set={gone}", *super().command()]


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[Confined]:
    confined = Confined(tmp_path)
    try:
        confined.start()
        yield confined
        confined.stop()
    finally:
        clear(tmp_path)


def bounding_set(pid: int) -> int:
    found = re.search(r"^CapBnd:\s*(\w+)$", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1], 16)


def test_snapshots_are_made_written_and_committed_without_what_the_unit_drops(
    daemon: Confined, tmp_path: Path
) -> None:
    target = tmp_path / "mnt"
    target.mkdir()
    for pid in (daemon.pid, daemon.worker_pid()):
        assert not bounding_set(pid) & CAP_SYS_MODULE
        assert "NoNewPrivs:\t1" in Path(f"/proc/{pid}/status").read_text()
    daemon.run("snapshot", "prepare", "work")
    daemon.run("mount", "work", target)
    (target / "tool").write_bytes(b"#!/bin/sh\n")
    (target / "tool").chmod(0o4755)
    os.chown(target / "tool", 1000, 1000)
    os.setxattr(target / "tool", "user.note", b"x")
    os.setxattr(target / "tool", "trusted.note", b"x")
    os.mknod(target / "device", stat.S_IFCHR | 0o600, os.makedev(1, 3))
    subprocess.run(["setcap", "cap_net_raw+ep", target / "tool"], check=False)
    subprocess.run(["chattr", "+i", target / "tool"], check=True)
    subprocess.run(["chattr", "-i", target / "tool"], check=True)
    daemon.run("umount", target)
    daemon.run("snapshot", "commit", "work", "base")
    daemon.run("mount", "base", target, "--writable", "--key", "next")
    (target / "tool").unlink()
    (target / "more").write_bytes(bytes(100_000))
    daemon.run("umount", target)
    assert "tool" in daemon.run("snapshot", "diff", "next").stdout
    daemon.run("snapshot", "commit", "next", "top")
    daemon.run("backup", tmp_path / "backup")
    daemon.run("snapshot", "remove", "top", "base")
    assert daemon.run("fsck").exit_code == 0
    cannot = {why for lane in daemon.json("status")["lanes"] for why in lane["features"].values()}
    assert cannot <= {"", "the lane's mode goes without"}
