"""What is made of a snapshot whose files have changed attributes only: all of it has the data."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.images.kit import Layout, directory, file
from tests.support.daemon import RunningDaemon

pytestmark = [pytest.mark.root, pytest.mark.fuse]

NAME = "example.org/made:1"
MARK = "trusted.overlay.metacopy"
FILES = {f"d/f{number}": b"%d " % number * (number * 900 + 1) for number in range(20)}
BASE = [directory("d"), *(file(name, data) for name, data in FILES.items())]


def change(top: Path) -> None:
    """Change attributes of all files, and data of one."""
    subprocess.run(["chown", "-R", "7:8", top / "d"], check=True)
    (top / "d/f1").chmod(0o4711)
    os.setxattr(top / "d/f2", "user.note", b"note")
    os.utime(top / "d/f3", ns=(5, 5))
    with (top / "d/f4").open("r+b") as opened:
        opened.write(b"new")


def assert_changed(top: Path) -> None:
    for name, data in FILES.items():
        found = (top / name).stat()
        assert (found.st_uid, found.st_gid, found.st_size) == (7, 8, len(data)), name
        assert (top / name).read_bytes() == (b"new" + data[3:] if name == "d/f4" else data), name
        assert found.st_blocks * 512 >= len(data)
    assert (top / "d/f1").stat().st_mode & 0o7777 == 0o4711
    assert os.getxattr(top / "d/f2", "user.note") == b"note"
    assert (top / "d/f3").stat().st_mtime_ns == 5


def marked(daemon: RunningDaemon) -> list[Path]:
    """Files in layers whose data is below."""
    return [
        Path(top, name)
        for top, _, names in os.walk(daemon.root / "layers")
        for name in names
        if MARK in os.listxattr(Path(top, name), follow_symlinks=False)
    ]


def used_kib(top: Path) -> int:
    done = subprocess.run(["du", "-sk", top], check=True, capture_output=True, text=True)
    return int(done.stdout.split()[0])


def test_an_image_of_it_has_the_data(daemon: RunningDaemon, target: Path, tmp_path: Path) -> None:
    made = Layout(tmp_path / "layout")
    made.image([BASE], compress="gzip")
    daemon.run("image", "import", str(made.root))
    daemon.run("mount", NAME, str(target), "--writable", "--key", "work")
    before = used_kib(target)
    change(target)
    assert len(marked(daemon)) == len(FILES) - 1
    assert before <= used_kib(target) <= before + 16  # with what attributes take
    inodes = daemon.json("snapshot", "info", "work")["usage"]["inodes"]
    assert inodes >= len(FILES)
    told = daemon.run("snapshot", "diff", "work").stdout
    assert all(f"M {name}" in told or f"C {name}" in told for name in FILES), told
    assert len(marked(daemon)) == len(FILES) - 1
    assert (target / "d/f5").read_bytes() == FILES["d/f5"]
    daemon.run("umount", str(target))
    daemon.run("image", "commit", "-m", "owner", "work", "mine:1")
    assert marked(daemon) == []
    daemon.run("image", "verify", "mine:1")
    daemon.run("image", "export", "mine:1", str(tmp_path / "mine.tar"))
    for name in ("mine:1", NAME):
        daemon.run("image", "remove", "--wait", name)
    daemon.run("image", "import", str(tmp_path / "mine.tar"))
    daemon.run("mount", "mine:1", str(target))
    assert_changed(target)
    daemon.run("umount", str(target))
    daemon.run("image", "remove", "--wait", "mine:1")


def test_a_snapshot_of_a_volume_has_the_data(daemon: RunningDaemon) -> None:
    daemon.run("volume", "create", "db", "--mount")
    top = daemon.state / "volumes" / "db"
    (top / "d").mkdir()
    for name, data in FILES.items():
        (top / name).write_bytes(data)
    first = daemon.json("volume", "snapshot", "db", "-m", "first")["id"]
    daemon.run("volume", "reset", "--hard", "db", first)
    change(top)
    assert len(marked(daemon)) == len(FILES) - 1
    told = daemon.run("volume", "diff", "db").stdout
    assert all(name in told for name in FILES), told
    second = daemon.json("volume", "snapshot", "db", "-m", "second")["id"]
    assert marked(daemon) == []
    assert_changed(top)
    (top / "d/f5").chmod(0o600)
    daemon.run("volume", "reset", "--hard", "db", first)
    assert (top / "d/f5").read_bytes() == FILES["d/f5"]
    daemon.run("volume", "reset", "--hard", "db", second)
    assert_changed(top)
    daemon.run("volume", "umount", "db")
    daemon.run("volume", "remove", "--discard", "--history", "db")
