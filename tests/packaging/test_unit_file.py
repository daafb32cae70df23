"""systemd/snapfs.service: valid, and without what would hide our mounts from containerd."""

from __future__ import annotations

import configparser
import shutil
import subprocess
from pathlib import Path

import pytest

UNIT = Path(__file__).parents[2] / "systemd" / "snapfs.service"

# systemd.exec(5): each of these gives a service a mount namespace of its own.
PRIVATE_NAMESPACE = {
    "BindPaths",
    "BindReadOnlyPaths",
    "DynamicUser",
    "ExecPaths",
    "ExtensionImages",
    "InaccessiblePaths",
    "MountAPIVFS",
    "MountFlags",
    "MountImages",
    "NoExecPaths",
    "PrivateDevices",
    "PrivateMounts",
    "PrivateTmp",
    "ProcSubset",
    "ProtectControlGroups",
    "ProtectHome",
    "ProtectHostname",
    "ProtectKernelLogs",
    "ProtectKernelModules",
    "ProtectKernelTunables",
    "ProtectProc",
    "ProtectSystem",
    "ReadOnlyPaths",
    "ReadWritePaths",
    "RootDirectory",
    "RootImage",
    "TemporaryFileSystem",
}


@pytest.fixture
def unit() -> configparser.ConfigParser:
    parser = configparser.ConfigParser(interpolation=None)
    parser.optionxform = str  # type: ignore[assignment, method-assign]
    parser.read(UNIT)
    return parser


def test_systemd_verifies_it_without_a_word(tmp_path: Path) -> None:
    assert shutil.which("systemd-analyze"), "install the package systemd"
    command = tmp_path / "snapfs"
    command.write_text("#!/bin/sh\n")
    command.chmod(0o755)
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text().replace("/usr/local/bin/snapfs", str(command)))
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", copy], capture_output=True, text=True, timeout=60
    )
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "")


def test_it_shares_the_hosts_mount_namespace(unit: configparser.ConfigParser) -> None:
    assert not PRIVATE_NAMESPACE & set(unit["Service"])


def test_it_starts_before_containerd_and_is_ready_only_when_it_says_so(
    unit: configparser.ConfigParser,
) -> None:
    assert unit["Unit"]["Before"].split() == ["containerd.service"]
    assert unit["Service"]["Type"] == "notify"
    assert int(unit["Service"]["WatchdogSec"]) > 0
    assert unit["Service"]["Restart"] == "always"


def test_a_stop_does_not_kill_the_workers_of_running_containers(
    unit: configparser.ConfigParser,
) -> None:
    assert unit["Service"]["KillMode"] == "process"
    assert unit["Service"]["RuntimeDirectoryPreserve"] == "yes"


def test_its_deadlines_are_longer_than_the_daemons(unit: configparser.ConfigParser) -> None:
    from snapfs.config import Config
    from snapfs.daemon import MARGIN_S

    timeouts = Config().timeouts
    stop_s = timeouts.drain_s + timeouts.stop_s + MARGIN_S
    assert int(unit["Service"]["TimeoutStopSec"]) > stop_s
    assert int(unit["Service"]["TimeoutStartSec"]) > timeouts.start_s
