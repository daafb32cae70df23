"""What touches files of a layer: measuring, syncing and deleting trees of any shape."""

import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.model import DataLoss, Usage
from snapfs.snapshots import durability
from snapfs.snapshots.durability import DataSync
from snapfs.snapshots.erase import erase
from snapfs.snapshots.usage import measure

DEEP = 300
"""Levels of a tree whose full path is longer than PATH_MAX."""


def du(path):
    """Return what du(1) says: inodes and bytes."""
    size = subprocess.run(["du", "-s", "-B1", path], capture_output=True, text=True, check=True)
    inodes = subprocess.run(
        ["du", "-s", "--inodes", path], capture_output=True, text=True, check=True
    )
    return Usage(int(size.stdout.split()[0]), int(inodes.stdout.split()[0]))


def make_deep(path):
    """Make a chain of directories with a file in each, deeper than any path can say."""
    path.mkdir()
    fd = os.open(path, os.O_RDONLY)
    for _ in range(DEEP):
        os.mkdir("d" * 60, dir_fd=fd)
        os.close(os.open("file", os.O_CREAT | os.O_WRONLY, dir_fd=fd))
        below = os.open("d" * 60, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(fd)


@pytest.fixture
def varied(tmp_path):
    top = tmp_path / "varied"
    (top / "a" / "b").mkdir(parents=True)
    (top / "big").write_bytes(os.urandom(100_000))
    with (top / "sparse").open("wb") as file:
        file.truncate(10 << 20)
    os.link(top / "big", top / "a" / "linked")
    os.link(top / "big", top / "a" / "b" / "linked again")
    (top / "symlink").symlink_to("/etc")
    os.mkfifo(top / "a" / "fifo")
    os.mknod(top / "a" / "whiteout", 0o020000, os.makedev(0, 0))
    (top / os.fsdecode(b"\xff\xfe")).write_text("odd name")
    os.chmod(top / "a" / "b", 0)
    os.sync()
    return top


class TestUsage:
    def test_is_what_du_says_with_hard_links_counted_once(self, varied):
        assert measure(varied) == du(varied)

    def test_of_an_empty_directory_is_itself(self, tmp_path):
        assert measure(tmp_path) == Usage(tmp_path.stat().st_blocks * 512, 1)

    def test_of_a_tree_deeper_than_a_path_can_say(self, tmp_path):
        make_deep(tmp_path / "deep")
        try:
            assert measure(tmp_path / "deep").inodes == 2 * DEEP + 1
        finally:
            assert erase(tmp_path / "deep", budget_s=60)

    def test_of_nothing_is_an_error(self, tmp_path):
        with pytest.raises(FileNotFoundError):
            measure(tmp_path / "absent")


class TestErase:
    def test_deletes_a_tree_of_every_kind_of_file(self, varied, tmp_path):
        assert erase(varied, budget_s=60)
        assert os.listdir(tmp_path) == []

    def test_of_a_path_that_does_not_exist_is_done(self, tmp_path):
        assert erase(tmp_path / "absent", budget_s=1)

    def test_does_not_follow_symbolic_links(self, tmp_path):
        (tmp_path / "outside").mkdir()
        (tmp_path / "outside" / "kept").touch()
        (tmp_path / "top").mkdir()
        (tmp_path / "top" / "link").symlink_to(tmp_path / "outside")
        assert erase(tmp_path / "top", budget_s=60)
        assert (tmp_path / "outside" / "kept").exists()

    def test_deletes_what_is_deeper_than_a_path_can_say(self, tmp_path):
        make_deep(tmp_path / "deep")
        assert erase(tmp_path / "deep", budget_s=60)
        assert os.listdir(tmp_path) == []

    def test_stops_when_time_is_over_and_goes_on_when_called_again(self, tmp_path):
        make_deep(tmp_path / "deep")
        now = iter(range(10**9))
        slices = 1
        while not erase(tmp_path / "deep", budget_s=50, clock_s=lambda: next(now)):
            slices += 1
        assert slices > DEEP // 50
        assert not (tmp_path / "deep").exists()

    def test_gets_on_though_reading_a_directory_takes_all_the_time(self, varied):
        for number in range(20):
            (varied / f"file{number}").touch()
        entries = measure(varied).inodes
        slices = 1
        while not erase(varied, budget_s=0):
            slices += 1
            assert slices <= 2 * entries

    @settings(max_examples=50, deadline=None)
    @given(st.lists(st.lists(st.sampled_from("ab0"), min_size=1, max_size=6), max_size=20))
    def test_deletes_any_tree_however_its_names_collide(self, paths):
        with tempfile.TemporaryDirectory() as directory:
            for parts in paths:
                Path(
                    directory, "top", *("".join(parts[: it + 1]) for it in range(len(parts)))
                ).mkdir(parents=True, exist_ok=True)
            Path(directory, "top", "a.0", "a.0", "a.1").mkdir(parents=True, exist_ok=True)
            assert erase(Path(directory, "top"), budget_s=60)
            assert os.listdir(directory) == []

    @pytest.mark.root
    def test_never_enters_what_is_mounted_inside(self, tmp_path):
        host, top = tmp_path / "host", tmp_path / "top"
        (host / "precious").mkdir(parents=True)
        (top / "a" / "mnt").mkdir(parents=True)
        subprocess.run(["mount", "--bind", host, top / "a" / "mnt"], check=True)
        try:
            with pytest.raises(OSError, match="busy"):
                erase(top, budget_s=60)
            assert (host / "precious").is_dir()
        finally:
            subprocess.run(["umount", top / "a" / "mnt"], check=True)
        assert erase(top, budget_s=60)


class TestDataSync:
    def test_syncs_the_file_system_once_for_a_whole_layer(self, varied, monkeypatch):
        calls = []
        monkeypatch.setattr(durability, "syncfs", calls.append)
        monkeypatch.setattr(durability, "sync_tree", pytest.fail)
        sync = DataSync(varied.parent)
        sync.sync(varied)
        assert len(calls) == 1
        sync.close()
        sync.close()

    @pytest.mark.logs("layers.write_error")
    def test_after_an_error_every_layer_is_synced_file_by_file(self, varied, monkeypatch):
        def fail(_fd):
            raise OSError(5, "Input/output error")

        synced = []
        monkeypatch.setattr(durability, "syncfs", fail)
        monkeypatch.setattr(durability, "sync_tree", synced.append)
        sync = DataSync(varied)
        sync.sync(varied)
        monkeypatch.undo()
        monkeypatch.setattr(durability, "sync_tree", synced.append)
        sync.sync(varied / "a")
        sync.close()
        assert synced == [varied, varied / "a"]
        later = DataSync(varied)
        later.sync(varied)
        later.close()
        assert synced == [varied, varied / "a", varied]

    def test_an_error_of_an_earlier_boot_is_over(self, varied, monkeypatch):
        mark = varied.parent / durability.MARK
        mark.write_text("00000000-0000-0000-0000-000000000000\n")
        monkeypatch.setattr(durability, "sync_tree", pytest.fail)
        sync = DataSync(varied)
        sync.sync(varied)
        sync.close()
        assert not mark.exists()

    def test_a_file_that_does_not_reach_the_disk_is_data_loss(self, varied, monkeypatch):
        def fail(_fd):
            raise OSError(5, "Input/output error")

        durability.sync_tree(varied)
        monkeypatch.setattr(os, "fsync", fail)
        with pytest.raises(DataLoss, match="did not reach the disk"):
            durability.sync_tree(varied)

    def test_a_directory_that_cannot_be_read_is_not_passed_over(self, tmp_path, monkeypatch):
        def open_none_below(path, *args, **kwargs):
            if path == "below":
                raise OSError(5, "Input/output error", path)
            return original(path, *args, **kwargs)

        (tmp_path / "below").mkdir()
        original = os.open
        monkeypatch.setattr(os, "open", open_none_below)
        with pytest.raises(OSError, match="Input/output error"):
            durability.sync_tree(tmp_path)
