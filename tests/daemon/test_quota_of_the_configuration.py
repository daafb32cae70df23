"""The configuration bounds what has no label, also in a worker that is adopted."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, running

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MIB = 1 << 20
SIZE = "containerd.io/snapshot/max-size"


def limits(daemon: RunningDaemon, key: str) -> tuple[int | None, int | None]:
    said = daemon.json("snapshot", "quota", key)
    return said["size_bytes"], said["inodes"]


def shown(daemon: RunningDaemon, key: str, *labels: str) -> Path:
    options = [it for label in labels for it in ("--label", label)]
    daemon.run("snapshot", "prepare", *options, key)
    return daemon.lane / str(daemon.json("snapshot", "info", key)["id"])


def test_configuration_bounds_what_has_no_label(tmp_path: Path) -> None:
    environ = {"SNAPFS_QUOTA_BYTES": str(4 * MIB), "SNAPFS_QUOTA_INODES": "20"}
    with running(tmp_path, environ=environ) as daemon:
        plain = shown(daemon, "plain")
        own = shown(daemon, "own", f"{SIZE}=8MiB")
        free = shown(daemon, "free", f"{SIZE}=none")
        assert limits(daemon, "plain") == (4 * MIB, 20)
        assert limits(daemon, "own") == (8 * MIB, 20)
        assert limits(daemon, "free") == (None, 20)
        with pytest.raises(OSError, match="quota"):
            (plain / "f").write_bytes(b"x" * 6 * MIB)
        (own / "f").write_bytes(b"x" * 6 * MIB)
        (free / "f").write_bytes(b"x" * 12 * MIB)
        assert os.statvfs(plain).f_files == 20
        daemon.run("snapshot", "label", "plain", f"{SIZE}=16m")
        (plain / "f").write_bytes(b"x" * 6 * MIB)


def test_adopted_worker_learns_of_another_default(tmp_path: Path) -> None:
    base = tmp_path / "d"
    base.mkdir()
    target = tmp_path / "target"
    target.mkdir()
    with running(base) as daemon:
        tree = shown(daemon, "plain")
        subprocess.run(["mount", "--bind", tree, target], check=True)
        try:
            worker = daemon.worker_pid()
            daemon.kill()
            daemon.environ["SNAPFS_QUOTA_BYTES"] = str(4 * MIB)
            daemon.start()
            assert daemon.worker_pid() == worker
            with pytest.raises(OSError, match="quota"):
                (target / "f").write_bytes(b"x" * 6 * MIB)
        finally:
            subprocess.run(["umount", target], check=True)
