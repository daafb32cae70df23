"""`snapfs image`, `lease`, `namespace`, `content` and `gc` against a real service."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.images import kit
from tests.images.kit import Layout, directory, file
from tests.support.daemon import SNAPFS, RunningDaemon

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NAME = "example.org/made:1"
BASE = [directory("etc"), file("etc/hosts", b"127.0.0.1"), directory("bin"), file("bin/tool")]
TOP = [directory("etc"), file("etc/new", b"new")]


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    made = Layout(tmp_path / "layout")
    made.image([BASE, TOP], compress="gzip")
    return made


@pytest.fixture(autouse=True)
def _without_images(daemon: RunningDaemon) -> Iterator[None]:
    yield
    for lease in daemon.json("lease", "list"):
        daemon.run("lease", "remove", lease["id"])
    for image in daemon.json("image", "list"):
        daemon.run("image", "remove", image["name"])
    for record in reversed(daemon.json("snapshot", "list")):
        for target in record["mounted_at"]:
            daemon.run("umount", "--lazy", target)
        if record["kind"] != "committed":
            daemon.run("snapshot", "remove", record["name"])
    daemon.run("gc")


def test_an_image_is_imported_mounted_changed_and_removed(
    daemon: RunningDaemon, layout: Layout, target: Path
) -> None:
    (made,) = daemon.json("image", "import", str(layout.root))
    assert made["name"] == NAME
    assert len(made["layers"]) == 2
    daemon.run("mount", NAME, str(target))
    assert (target / "etc/new").read_bytes() == b"new"
    assert (target / "etc/hosts").read_bytes() == b"127.0.0.1"
    with pytest.raises(OSError, match="Read-only"):
        (target / "etc/other").touch()
    daemon.run("umount", str(target))
    daemon.run("mount", NAME, str(target), "--writable", "--key", "work")
    (target / "etc/other").write_bytes(b"mine")
    daemon.run("umount", str(target))
    daemon.run("snapshot", "remove", "work")
    daemon.run("image", "remove", "--wait", NAME)
    assert daemon.json("snapshot", "list") == []
    assert daemon.json("content", "list") == []


def test_lists_and_history_show_what_was_imported(daemon: RunningDaemon, layout: Layout) -> None:
    archive = kit.archive(layout.root, layout.root.parent / "image.tar.gz", "w:gz")
    daemon.run("image", "import", str(archive))
    assert NAME in daemon.run("image", "list").stdout
    assert "linux/amd64" in daemon.run("image", "info", NAME).stdout
    assert daemon.run("image", "history", NAME).stdout.count("made") == 2
    daemon.run("image", "tag", NAME, "base")
    assert [it["name"] for it in daemon.json("image", "list")] == ["base", NAME]
    assert [it["name"] for it in daemon.json("image", "list", "name==base")] == ["base"]
    assert {it["name"] for it in daemon.json("namespace", "list")} == {"default"}
    assert len(daemon.json("content", "list")) == 4


def test_a_lease_keeps_what_its_image_no_longer_does(daemon: RunningDaemon, layout: Layout) -> None:
    (made,) = daemon.json("image", "import", str(layout.root))
    top = made["snapshot"]
    daemon.run("lease", "create", "mine", "--expire", "+3600")
    daemon.run("lease", "add", "mine", f"snapshots/snapfs:{top}")
    daemon.run("image", "remove", "--wait", NAME)
    assert [it["name"] for it in daemon.json("snapshot", "list")] != []
    why = daemon.json("gc", "explain", f"snapshots/snapfs:{top}")
    assert why["kept"]
    assert "lease" in why["reason"]
    daemon.run("lease", "release", "mine", f"snapshots/snapfs:{top}")
    dry = {it["table"] for it in daemon.json("gc", "--dry-run")}
    assert dry <= {"snapshot link"}
    daemon.run("gc")
    assert daemon.json("snapshot", "list") == []
    daemon.run("snapshot", "prepare", "work")
    assert daemon.run("gc").stdout.startswith("removed nothing; 1 object kept (")


def test_a_mounted_image_that_is_removed_stays_until_it_is_let_go(
    daemon: RunningDaemon, layout: Layout, target: Path
) -> None:
    daemon.run("image", "import", str(layout.root))
    daemon.run("mount", NAME, str(target))
    daemon.run("image", "remove", NAME)
    refused = daemon.run("gc", check=False)
    assert refused.exit_code == 1
    assert "tried again" in refused.stderr
    assert (target / "etc/new").read_bytes() == b"new"
    daemon.run("umount", str(target))
    daemon.run("gc")
    assert daemon.json("snapshot", "list") == []


def test_a_change_is_committed_exported_verified_and_imported_again(
    daemon: RunningDaemon, layout: Layout, target: Path, tmp_path: Path
) -> None:
    daemon.run("image", "import", str(layout.root))
    daemon.run("mount", NAME, str(target), "--writable", "--key", "work")
    (target / "etc/hosts").unlink()
    (target / "added").write_bytes(b"mine")
    daemon.run("umount", str(target))
    made = daemon.json("image", "commit", "-m", "add", "work", "mine:1")
    assert "all content" in daemon.run("image", "verify", "mine:1").stdout
    path = tmp_path / "mine.tar"
    daemon.run("image", "export", "mine:1", str(path))
    daemon.run("image", "remove", "mine:1")
    daemon.run("image", "remove", "--wait", NAME)
    assert daemon.json("snapshot", "list") == []
    (again,) = daemon.json("image", "import", str(path))
    assert (again["name"], again["digest"]) == ("mine:1", made["digest"])
    daemon.run("mount", "mine:1", str(target))
    assert sorted(it.name for it in target.iterdir()) == ["added", "bin", "etc"]
    assert [it.name for it in (target / "etc").iterdir()] == ["new"]
    daemon.run("umount", str(target))


@pytest.mark.parametrize(
    "arguments",
    [
        ("image", "info", "nothing"),
        ("image", "import", "/proc/version"),
        ("mount", "nothing", "/mnt"),
        ("lease", "add", "nothing", "images:x"),
        ("content", "get", "nothing"),
        ("gc", "explain", "images:nothing"),
        ("gc", "explain", "snapshots/nobody:x"),
        ("namespace", "remove", "nothing"),
        ("namespace", "create", "a b"),
    ],
)
def test_refusals_are_a_line_and_exit_1(daemon: RunningDaemon, arguments: tuple[str, ...]) -> None:
    refused = daemon.run(*arguments, check=False)
    assert refused.exit_code == 1
    assert refused.stderr.startswith("snapfs: ")
    assert len(refused.stderr.splitlines()) == 1


def test_namespaces_keep_images_apart(daemon: RunningDaemon, layout: Layout) -> None:
    daemon.run("namespace", "create", "team-a", "owner=ann")
    daemon.run("namespace", "label", "team-a", "owner=", "cost=1")
    daemon.run("image", "import", "-n", "team-a", str(layout.root))
    assert daemon.json("image", "list") == []
    assert [it["name"] for it in daemon.json("image", "list", "-n", "team-a")] == [NAME]
    refused = daemon.run("namespace", "remove", "team-a", check=False)
    assert "images" in refused.stderr
    daemon.run("image", "remove", "-n", "team-a", "--wait", NAME)
    daemon.run("namespace", "remove", "team-a")


def test_a_name_is_found_as_it_was_at_a_time(daemon: RunningDaemon, layout: Layout) -> None:
    (made,) = daemon.json("image", "import", str(layout.root))
    other = Layout(layout.root.with_name("other"))
    other.image([BASE], compress="gzip")
    daemon.json("image", "import", str(other.root), "--name", "example.org/other:1")
    daemon.run("image", "tag", NAME, "moving")
    (entry,) = daemon.json("anchor", "history", "image/default/moving")
    daemon.run("image", "tag", "example.org/other:1", "moving")
    was = daemon.json("image", "get", "moving", "--at", entry["at"])
    assert (was["digest"], was["snapshot"]) == (made["digest"], made["snapshot"])
    assert daemon.json("image", "get", "moving")["digest"] != made["digest"]
    daemon.run("image", "remove", NAME)
    daemon.run("gc")
    was = daemon.json("image", "get", "moving", "--at", entry["at"])
    assert was["snapshot"] == made["snapshot"] != ""
    daemon.run("anchor", "expire", "--before", "0s", "image/")
    daemon.run("gc")
    assert made["snapshot"] not in [it["name"] for it in daemon.json("snapshot", "list")]


def test_a_short_name_is_answered_with_the_long_one(daemon: RunningDaemon, layout: Layout) -> None:
    daemon.run("image", "import", str(layout.root))
    refused = daemon.run("image", "info", "made:1", check=False)
    assert (refused.exit_code, f"did you mean {NAME}?" in refused.stderr) == (1, True)


def test_a_lease_takes_all_that_it_is_given_or_nothing(daemon: RunningDaemon) -> None:
    daemon.run("lease", "create", "l")
    refused = daemon.run("lease", "add", "l", "images:a", "content:sha256:zz", check=False)
    assert refused.exit_code == 1
    assert daemon.json("lease", "list")[0]["resources"] == []


def test_the_log_of_collections_tells_what_each_removed(
    daemon: RunningDaemon, layout: Layout
) -> None:
    daemon.run("image", "import", str(layout.root))
    daemon.run("image", "remove", "--wait", NAME)
    runs = daemon.json("gc", "log")
    assert any(run["removed"].get("snapshot link") == 2 for run in runs)
    assert "snapshot link" in daemon.run("gc", "log").stdout


def test_bars_on_a_terminal_are_gone_when_the_work_is_done(
    daemon: RunningDaemon, layout: Layout
) -> None:
    command = f"stty cols 80; {SNAPFS} image import {layout.root}"
    done = subprocess.run(
        ["script", "--quiet", "--command", command, "/dev/null"],
        env={**daemon.environ, "SNAPFS_ADDRESS": str(daemon.address), "TERM": "xterm"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        check=True,
        timeout=60,
    )
    shown = done.stdout.decode()
    assert "read   sha256:" in shown
    assert "unpack sha256:" in shown
    last = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", shown.rpartition("\x1b[2K")[2])
    assert re.fullmatch(rf"\s*{NAME}  sha256:[0-9a-f]{{64}}\s*", last)
