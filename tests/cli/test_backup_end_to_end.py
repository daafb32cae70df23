"""`snapfs backup`, `restore` and `snapshot verify` beside a real service."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.metadata.blobs import blob_path
from tests.images.kit import Layout, directory, file
from tests.support.daemon import SNAPFS, RunningDaemon, eventually, running

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NAME = "example.org/made:1"


@pytest.fixture
def sealing(tmp_path: Path) -> Iterator[RunningDaemon]:
    base = tmp_path / "first"
    base.mkdir()
    with running(base, environ={"SNAPFS_SEALS": "background"}) as daemon:
        yield daemon


def write(daemon: RunningDaemon, key: str, target: Path, text: str, *options: str) -> None:
    """Make an active snapshot and write a file in it through its mount."""
    daemon.run("snapshot", "prepare", *options, key)
    daemon.run("mount", key, target)
    (target / "file").write_text(text)
    daemon.run("umount", target)


def test_a_backed_up_service_goes_on_from_a_new_root(
    sealing: RunningDaemon, tmp_path: Path
) -> None:
    daemon, target, backup = sealing, tmp_path / "mnt", tmp_path / "backup"
    target.mkdir()
    layout = Layout(tmp_path / "layout")
    layout.image([[directory("etc"), file("etc/hosts", b"127.0.0.1")]], compress="gzip")
    daemon.run("image", "import", layout.root)
    write(daemon, "work", target, "hello")
    daemon.run("snapshot", "commit", "work", "base")
    write(daemon, "next", target, "unsaved", "--parent", "base")
    first = daemon.json("backup", backup)
    assert first["left_out"] == ["next"]
    assert first["copied_layers"] == first["layers"] == 2
    daemon.run("snapshot", "commit", "next", "second")
    again = daemon.run("backup", backup)
    assert "3 layers" in again.stdout
    assert "1 layer and 0 blobs copied now" in again.stdout
    assert "sound" in daemon.run("backup", "--verify", backup).stdout
    new = tmp_path / "second"
    new.mkdir()
    daemon.run("restore", backup, "--root", new / "root")
    refused = daemon.run("restore", backup, "--root", new / "root", check=False)
    assert refused.exit_code == 1
    assert "is not empty" in refused.stderr
    with running(new) as other:
        assert other.run("fsck").exit_code == 0
        other.run("mount", "second", target)
        assert (target / "file").read_text() == "unsaved"
        other.run("umount", target)
        other.run("mount", NAME, target)
        assert (target / "etc/hosts").read_bytes() == b"127.0.0.1"
        other.run("umount", target)
        other.run("image", "verify", NAME)


def test_metadata_that_are_damaged_or_gone_are_saved_anew_by_the_next_backup(
    sealing: RunningDaemon, tmp_path: Path
) -> None:
    daemon, mnt, backup = sealing, tmp_path / "mnt", tmp_path / "backup"
    mnt.mkdir()
    write(daemon, "work", mnt, "hello")
    daemon.run("snapshot", "commit", "work", "base")
    daemon.run("backup", backup)
    (saved,) = backup.glob("metadata-*")
    for spoil, what in (
        (lambda: os.truncate(saved, saved.stat().st_size - 9), "is damaged"),
        (saved.unlink, "is gone"),
    ):
        spoil()
        told = daemon.run("backup", "--verify", backup, check=False)
        assert told.exit_code == 1
        assert f"{saved} {what}" in told.stderr
        assert told.stderr.rstrip().endswith("; `snapfs backup` saves it anew from the root")
        daemon.run("backup", backup)
        assert "sound" in daemon.run("backup", "--verify", backup).stdout


def test_only_a_directory_of_its_own_is_a_target(sealing: RunningDaemon, tmp_path: Path) -> None:
    daemon, mnt, backup = sealing, tmp_path / "mnt", tmp_path / "backup"
    mnt.mkdir()
    write(daemon, "work", mnt, "hello")
    daemon.run("snapshot", "commit", "work", "base")
    daemon.run("snapshot", "prepare", "next", "--parent", "base")
    daemon.run("mount", "next", mnt)
    for target, why in (
        (mnt, "lies in a snapshot or a volume"),
        (mnt / "backup", "lies in a snapshot or a volume"),
        (Path("/etc/passwd"), "is not a directory; name another"),
        (tmp_path / "nowhere" / "backup", "mount the disk of the backup"),
    ):
        refused = daemon.run("backup", target, check=False)
        assert refused.exit_code == 1
        assert why in refused.stderr
    assert {it.name for it in mnt.iterdir()} == {"file"}
    daemon.run("umount", mnt)
    daemon.run("backup", backup)
    for command in (
        ("serve", "--root", backup, "--state", tmp_path / "state"),
        ("init", backup),
        ("snapshot", "verify", "--root", backup),
    ):  # a service gives up what its process may, which is not to be this one
        ended = subprocess.run([SNAPFS, *command], capture_output=True, text=True, timeout=60)
        assert ended.returncode == 1
        assert "is a backup, not a root; `snapfs restore" in ended.stderr
    assert "sound" in daemon.run("backup", "--verify", backup).stdout


def test_a_full_disk_is_named_with_the_way_out(sealing: RunningDaemon, tmp_path: Path) -> None:
    daemon, target, small = sealing, tmp_path / "mnt", tmp_path / "small"
    target.mkdir()
    small.mkdir()
    write(daemon, "work", target, "hello" * 200_000)
    daemon.run("snapshot", "commit", "work", "base")
    daemon.run("backup", tmp_path / "backup")
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", small], check=True)
    try:
        for command in (
            ("backup", small / "backup"),
            ("restore", tmp_path / "backup", "--root", small / "new"),
        ):
            refused = daemon.run(*command, check=False)
            assert refused.exit_code == 1
            assert str(command[-1]) in refused.stderr
            assert "no space left on device; free some space" in refused.stderr
    finally:
        subprocess.run(["umount", small], check=True)


def test_what_volumes_changed_is_left_out_by_number(sealing: RunningDaemon, tmp_path: Path) -> None:
    sealing.run("volume", "create", "db")
    said = sealing.run("backup", tmp_path / "backup").stderr
    assert "what 1 volume may have changed since the last snapshot" in said
    assert "@" not in said


def test_verify_names_the_file_that_rotted(sealing: RunningDaemon, tmp_path: Path) -> None:
    daemon, target = sealing, tmp_path / "mnt"
    target.mkdir()
    write(daemon, "work", target, "hello")
    daemon.run("snapshot", "commit", "work", "base")
    eventually(
        lambda: daemon.json("snapshot", "info", "base")["digest"], timeout_s=90, what="the digest"
    )
    assert "sound" in daemon.run("snapshot", "verify").stdout
    layer = Path(daemon.json("snapshot", "info", "base")["layer"])
    (layer / "file").write_text("jello")
    found = daemon.run("snapshot", "verify", "--json", "base", check=False)
    assert found.exit_code == 1
    (shape,) = json.loads(found.stdout)
    assert shape["verdict"] == "damaged"
    assert shape["damages"] == [{"path": "file", "what": "differs in content, time"}]


def test_a_rotten_snapshot_stops_neither_a_backup_nor_a_restore(
    sealing: RunningDaemon, tmp_path: Path
) -> None:
    daemon, target, copy = sealing, tmp_path / "mnt", tmp_path / "backup"
    target.mkdir()
    write(daemon, "work", target, "hello")
    daemon.run("snapshot", "commit", "work", "base")
    write(daemon, "more", target, "hello again", "--parent", "base")
    daemon.run("snapshot", "commit", "more", "above")
    for name in ("base", "above"):
        eventually(
            lambda name=name: daemon.json("snapshot", "info", name)["digest"],
            timeout_s=90,
            what="the digest",
        )
    (Path(daemon.json("snapshot", "info", "base")["layer"]) / "file").write_text("jello")
    told = daemon.run("backup", copy, check=False)
    assert told.exit_code == 1
    assert "2 layers" in told.stdout
    assert "snapshot 'base' is damaged" in told.stderr
    assert "on it stands 'above'. All else is backed up" in told.stderr
    (shape,) = json.loads(daemon.run("backup", "--json", copy, check=False).stdout)["damaged"]
    assert (shape["name"], shape["above"], shape["copied"]) == ("base", ["above"], True)
    assert daemon.run("backup", "--verify", copy, check=False).exit_code == 1
    new = ("--root", tmp_path / "new")
    refused = daemon.run("restore", copy, *new, check=False)
    assert refused.exit_code == 1
    assert "with --damaged all is restored" in refused.stderr
    restored = daemon.run("restore", "--damaged", copy, *new)
    assert "as it was: snapshot 'base' is damaged" in restored.stderr
    verified = daemon.run("snapshot", "verify", *new, "--json", check=False)
    assert {it["name"]: it["verdict"] for it in json.loads(verified.stdout)} == {
        "base": "damaged",
        "above": "sound",
    }


@pytest.mark.parametrize("lost", ["manifest", "config", "layer"])
def test_rotten_content_stops_neither_a_backup_nor_a_restore_and_is_fetched_again(
    sealing: RunningDaemon, tmp_path: Path, lost: str
) -> None:
    daemon, target, copy = sealing, tmp_path / "mnt", tmp_path / "backup"
    target.mkdir()
    layout = Layout(tmp_path / "layout")
    layout.image([[directory("etc"), file("etc/hosts", b"127.0.0.1")]])
    (made,) = daemon.json("image", "import", layout.root)
    document = json.loads(blob_path(daemon.root / "content", made["digest"]).read_bytes())
    digest = {
        "manifest": made["digest"],
        "config": document["config"]["digest"],
        "layer": document["layers"][0]["digest"],
    }[lost]
    path = blob_path(daemon.root / "content", digest)
    raw = path.read_bytes()
    path.write_bytes(bytes([raw[0] ^ 1]) + raw[1:])
    told = daemon.run("backup", copy, check=False)
    assert told.exit_code == 1
    assert "1 layer, 2 blobs" in told.stdout
    assert f"content {digest} is damaged (its file {path} has other bytes)" in told.stderr
    assert f"needed by image '{NAME}' of namespace 'default'. All else is backed up" in told.stderr
    shown = daemon.run("backup", "--json", copy, check=False)
    (shape,) = json.loads(shown.stdout)["damaged_content"]
    assert (shown.exit_code, shape["digest"]) == (1, digest)
    assert shape["images"] == [{"namespace": "default", "name": NAME}]
    assert daemon.run("backup", "--verify", copy, check=False).exit_code == 1
    new = tmp_path / "second"
    new.mkdir()
    refused = daemon.run("restore", copy, "--root", new / "root", check=False)
    assert refused.exit_code == 1
    assert "with --damaged all is restored" in refused.stderr
    restored = daemon.run("restore", "--damaged", copy, "--root", new / "root")
    assert f"without its bytes: content {digest} is damaged" in restored.stderr
    with running(new) as other:
        found = other.run("fsck", check=False)
        assert (found.exit_code, "push or import it again" in found.stdout) == (1, True)
        assert [it["name"] for it in other.json("image", "list")] == [NAME]
        other.run("mount", made["snapshot"], target)
        assert (target / "etc/hosts").read_bytes() == b"127.0.0.1"
        other.run("umount", target)
        verified = other.run("image", "verify", NAME, check=False)
        assert (verified.exit_code, f"content {digest}: its file" in verified.stdout) == (1, True)
        assert other.run("image", "export", NAME, tmp_path / "out", check=False).exit_code == 1
        other.run("image", "import", layout.root)
        assert other.run("fsck").exit_code == 0
        other.run("image", "verify", NAME)
        other.run("image", "export", NAME, tmp_path / "out")
        other.run("backup", tmp_path / "another")
    assert [it["name"] for it in daemon.json("image", "list")] == [NAME]
    verified = daemon.run("image", "verify", NAME, check=False)
    assert (verified.exit_code, f"move its file {path} away" in verified.stdout) == (1, True)
    path.unlink()
    pushed = daemon.run("content", "push", layout.root / "blobs" / digest.replace(":", "/"))
    assert pushed.stdout.strip() == digest
    assert "0 layers and 1 blob copied now" in daemon.run("backup", copy).stdout
    assert "sound" in daemon.run("backup", "--verify", copy).stdout
