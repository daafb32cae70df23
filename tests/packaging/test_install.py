"""`make install` and `make uninstall` below DESTDIR."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the tracked files, so that a build leaves nothing in the work tree."""
    copy = tmp_path_factory.mktemp("source")
    names = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=HERE,
        capture_output=True,
        check=True,
    ).stdout
    kept = b"\0".join(it for it in names.split(b"\0") if it and (HERE / os.fsdecode(it)).exists())
    subprocess.run(
        ["tar", "-C", HERE, "--null", "-T", "-", "-cf", copy / "all.tar"], input=kept, check=True
    )
    subprocess.run(["tar", "-C", copy, "-xf", copy / "all.tar"], check=True)
    (copy / "all.tar").unlink()
    (copy / ".venv").symlink_to(HERE / ".venv")
    return copy


@pytest.fixture(scope="module")
def installed(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    destination = tmp_path_factory.mktemp("destination")
    (destination / "usr/local/bin").mkdir(parents=True)
    (destination / "usr/local/bin/neighbour").write_text("stays")
    make(source, "install", destination)
    return destination


def make(source: Path, target: str, destination: Path) -> None:
    done = subprocess.run(
        ["make", target, f"DESTDIR={destination}"],
        cwd=source,
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_what_is_installed_runs_in_its_place_and_names_no_destdir(
    installed: Path, tmp_path: Path
) -> None:
    usr = installed / "usr/local"
    assert os.readlink(usr / "bin/snapfs") == "../lib/snapfs/bin/snapfs"
    script = (usr / "lib/snapfs/bin/snapfs").read_text()
    assert script.startswith("#!/usr/local/lib/snapfs/bin/python")
    found = subprocess.run(
        ["grep", "-rl", str(installed), usr], capture_output=True, text=True, timeout=60
    )
    assert found.stdout == ""
    python = usr / "lib/snapfs/bin/python"
    code = "from snapfs.cli.main import main; import sys; sys.argv[1:] = ['version']; main()"
    done = subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.startswith("snapfs "), done.stderr
    code = "import snapfs.fuse.worker, snapfs_containerd.server, sys; print(sys.prefix)"
    done = subprocess.run(
        [python, "-P", "-c", code], capture_output=True, text=True, timeout=60, cwd=tmp_path
    )
    assert done.stdout.strip() == str(usr / "lib/snapfs"), done.stderr


@pytest.mark.parametrize("name", ["mount.fuse.snapfs", "mount.fuse.snapfs-overlay"])
def test_mount_finds_its_helpers(installed: Path, name: str) -> None:
    helper = installed / "usr/sbin" / name
    assert os.readlink(helper) == f"../local/lib/snapfs/bin/{name}"
    assert helper.resolve().exists()


def test_unit_completions_and_documents_are_in_their_places(installed: Path) -> None:
    usr = installed / "usr/local"
    unit = (usr / "lib/systemd/system/snapfs.service").read_text()
    assert "ExecStart=/usr/local/bin/snapfs serve" in unit
    for place in (
        "share/bash-completion/completions/snapfs",
        "share/zsh/site-functions/_snapfs",
        "share/fish/vendor_completions.d/snapfs.fish",
    ):
        assert "_SNAPFS_COMPLETE" in (usr / place).read_text()
    assert (usr / "share/doc/snapfs/LICENSE").exists()


def test_uninstall_removes_exactly_what_was_installed(source: Path, installed: Path) -> None:
    make(source, "uninstall", installed)
    left = [path for path in installed.rglob("*") if not path.is_dir()]
    assert left == [installed / "usr/local/bin/neighbour"]
    assert not (installed / "usr/local/lib/snapfs").exists()
    make(source, "uninstall", installed)
