"""`snapfs init`, and `snapfs fsck` where no service runs."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import RunningDaemon, clear, eventually, mounts_below, processes_below

pytestmark = [pytest.mark.root, pytest.mark.fuse]


@pytest.fixture
def base(tmp_path: Path) -> Iterator[Path]:
    yield tmp_path
    clear(tmp_path)


def test_a_root_in_an_image_is_made_served_checked_and_let_go(base: Path) -> None:
    daemon = RunningDaemon(base)
    made = daemon.run("init", daemon.root, "--image", "64M")
    assert made.stdout == f"{daemon.root} is ready: ext4 on {daemon.root}.img, mounted there\n"
    assert os.stat(f"{daemon.root}.img").st_size == 64 << 20
    again = daemon.run("init", daemon.root, "--image", "64M", check=False)
    assert again.exit_code == 1
    assert "has a file system of its own already" in again.stderr
    daemon.start()
    daemon.run("snapshot", "prepare", "work")
    assert str(daemon.root) in mounts_below(base)
    assert daemon.stop() == 0
    eventually(lambda: not processes_below(base), what="the worker's end")
    assert mounts_below(base) == []
    offline = daemon.run("fsck", "--root", daemon.root, "--json")
    assert json.loads(offline.stdout) == []
    assert mounts_below(base) == []
    daemon.start()
    assert [it["name"] for it in daemon.json("snapshot", "list")] == ["work"]
    assert daemon.stop() == 0


def test_a_plain_root_needs_no_preparation_but_may_have_it(base: Path) -> None:
    daemon = RunningDaemon(base)
    for _ in range(2):
        made = daemon.run("init", daemon.root)
        assert made.stdout == f"{daemon.root} is ready: a directory\n"


def test_a_directory_of_other_things_is_not_made_a_root(base: Path) -> None:
    daemon = RunningDaemon(base)
    (base / "photos").mkdir()
    (base / "photos" / "one").write_text("")
    for place, message in ((base / "photos", "holds other things (one)"), ("/", "the system's")):
        refused = daemon.run("init", place, check=False)
        assert refused.exit_code == 1
        assert message in refused.stderr


@pytest.mark.parametrize(
    ("words", "status", "message"),
    [
        (["--image", "lots"], 1, "size 'lots' is not understood"),
        (["--image", "1M"], 1, "ext4"),
        (["--device", "/dev/null"], 1, "/dev/null is not a block device"),
        (["--image", "64M", "--device", "/dev/null"], 2, "not both"),
        (["--image", "64M", "--fs", "vfat"], 2, "'vfat' is not one of"),
    ],
)
def test_init_refuses_with_the_way_out(
    base: Path, words: list[str], status: int, message: str
) -> None:
    daemon = RunningDaemon(base)
    refused = daemon.run("init", daemon.root, *words, check=False)
    assert refused.exit_code == status
    assert message in refused.stderr
    assert mounts_below(base) == []


def test_fsck_without_a_service_reads_the_root_itself(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    daemon.run("snapshot", "prepare", "work")
    number = daemon.json("snapshot", "info", "work")["id"]
    assert daemon.stop() == 0
    words = ["fsck", "--root", daemon.root]
    assert daemon.run(*words).stdout.startswith("clean")
    layer = daemon.root / "layers" / str(number)
    layer.rename(base / "away")
    found = daemon.run(*words, "--json", check=False)
    assert found.exit_code == 1
    assert "work" in json.loads(found.stdout)[0]["subject"]
    (base / "away").rename(layer)
    assert daemon.run(*words).exit_code == 0


def test_fsck_mends_an_orphan_only_when_told_to(base: Path) -> None:
    daemon = RunningDaemon(base)
    daemon.start()
    daemon.run("snapshot", "prepare", "work")
    orphan = daemon.root / "layers" / str(daemon.json("snapshot", "info", "work")["id"])
    daemon.run("snapshot", "remove", "work")
    assert daemon.stop() == 0
    (orphan / "fs").mkdir(parents=True, exist_ok=True)
    words = ["fsck", "--root", daemon.root, "--json"]
    found = daemon.run(*words, check=False)
    assert found.exit_code == 1
    assert [it["repaired"] for it in json.loads(found.stdout)] == [False]
    assert orphan.exists()
    mended = daemon.run(*words, "--repair", check=False)
    assert mended.exit_code == 1
    assert [it["repaired"] for it in json.loads(mended.stdout)] == [True]
    assert not orphan.exists()
    assert daemon.run(*words).exit_code == 0


def test_fsck_of_no_root_says_so(base: Path) -> None:
    refused = RunningDaemon(base).run("fsck", "--root", base / "none", check=False)
    assert refused.exit_code == 1
    assert str(base / "none") in refused.stderr
    assert not (base / "none").exists()
