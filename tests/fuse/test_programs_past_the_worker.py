"""Programs that care how files behave, with the same results in a lane and on kernel overlayfs."""

from __future__ import annotations

import mmap
import os
import select
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]
SILENT_S = 0.5
"""Ten looks of tail's."""

PACKAGE = """Package: snapfs-tried
Version: {version}
Architecture: all
Maintainer: nobody <nobody@example.org>
Description: for a test
"""
DATABASE = """
import sqlite3, sys
db = sqlite3.connect(sys.argv[1], timeout=60)
for turn in range(100):
    with db: db.execute("insert into t values (?, ?)", (sys.argv[2], turn))
"""


def fill(layer: Path) -> None:
    (layer / "log").write_bytes(b"line\n" * 3)
    (layer / "file").write_bytes(bytes(range(256)) * 64)
    (layer / "etc").mkdir()
    (layer / "etc" / "tried.conf").write_bytes(b"version 1\n")
    admin = layer / "var" / "lib" / "dpkg"
    for name in ("info", "updates", "triggers"):
        (admin / name).mkdir(parents=True)
    (admin / "status").touch()


@pytest.fixture(params=["lane", "kernel"])
def root(request: pytest.FixtureRequest, house: House, tmp_path: Path) -> Iterator[Path]:
    """An overlay on one lower layer, ours or the kernel's."""
    tree = house.active(fill)
    if request.param == "lane":
        yield tree.path
        return
    upper, work, there = (tmp_path / name for name in ("upper", "work", "kernel"))
    for made in (upper, work, there):
        made.mkdir()
    lower = house.layer(tree.id).parent.parent / str(tree.id - 1) / "fs"
    options = f"lowerdir={lower},upperdir={upper},workdir={work}"
    subprocess.run(["mount", "-t", "overlay", "-o", options, "overlay", there], check=True)
    try:
        yield there
    finally:
        mounts.unmount(there, mounts.MNT_DETACH)


def test_database_in_wal_mode_is_shared_by_processes(root: Path) -> None:
    make = "pragma journal_mode=wal; create table t (who, turn);"
    subprocess.run(["sqlite3", root / "db", make], check=True, stdout=subprocess.DEVNULL)
    writers = [
        subprocess.Popen([sys.executable, "-c", DATABASE, root / "db", who]) for who in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    ask = "select count(*) from t; pragma integrity_check; pragma journal_mode;"
    said = subprocess.run(["sqlite3", root / "db", ask], check=True, capture_output=True, text=True)
    assert said.stdout.split() == ["200", "ok", "wal"]


def test_package_is_installed_upgraded_and_removed(root: Path, tmp_path: Path) -> None:
    for version in ("1", "2"):
        build = tmp_path / version
        (build / "DEBIAN").mkdir(parents=True)
        (build / "DEBIAN" / "control").write_text(PACKAGE.format(version=version))
        (build / "usr" / "bin").mkdir(parents=True)
        (build / "usr" / "bin" / "tried").write_text(f"#!/bin/sh\necho {version}\n")
        (build / "usr" / "bin" / "tried").chmod(0o4755)
        (build / "usr" / "lib").mkdir()
        (build / "usr" / "lib" / "big").write_bytes(os.urandom(1 << 20))
        os.link(build / "usr" / "lib" / "big", build / "usr" / "lib" / "linked")
        quiet = {"check": True, "stdout": subprocess.DEVNULL}
        subprocess.run(["dpkg-deb", "--build", build, f"{build}.deb"], **quiet)  # type: ignore[call-overload]
        subprocess.run(["dpkg", f"--root={root}", "-i", f"{build}.deb"], **quiet)  # type: ignore[call-overload]
        said = subprocess.run([root / "usr/bin/tried"], check=True, capture_output=True, text=True)
        assert said.stdout == f"{version}\n"
        for name in ("big", "linked"):
            assert (root / "usr/lib" / name).read_bytes() == (build / "usr/lib/big").read_bytes()
        assert (root / "usr/bin/tried").stat().st_mode & 0o7777 == 0o4755
    subprocess.run(["dpkg", f"--root={root}", "-r", "snapfs-tried"], **quiet)  # type: ignore[call-overload]
    assert not (root / "usr/bin/tried").exists()


@pytest.mark.parametrize("option", ["-f", "-F"])
def test_reader_of_a_log_keeps_the_lower_file_but_on_kernel_overlayfs(
    root: Path, option: str
) -> None:
    """`tail` of a lower file that is appended to: the kernel's overlay changes over to the copy."""
    command = ["tail", option, "-n", "1", "-s", "0.05", "---disable-inotify", root / "log"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            assert tail.stdout.readline() == "line\n"
            with (root / "log").open("ab") as log:
                log.write(b"appended\n")
            assert (root / "log").read_bytes().endswith(b"appended\n")
            number = (root / "log").stat().st_ino
            if root.name == "kernel":
                assert tail.stdout.readline() == "appended\n"
            else:
                assert not select.select([tail.stdout], [], [], SILENT_S)[0]
                assert _position(tail.pid, root / "log") == 15
            assert (root / "log").stat().st_ino == number
        finally:
            tail.kill()


def _position(pid: int, file: Path) -> int:
    """How far a process has read in a file."""
    for fd in Path(f"/proc/{pid}/fd").iterdir():
        if os.readlink(fd).startswith(str(file)):  # a second number leaves it "(deleted)"
            said = Path(f"/proc/{pid}/fdinfo/{fd.name}").read_text()
            return int(said.split("pos:")[1].split()[0])
    return -1


def test_mapped_writer_and_readers_see_one_file(root: Path) -> None:
    with (root / "file").open("r+b") as writer, (root / "file").open("rb") as reader:
        with (
            mmap.mmap(writer.fileno(), 0) as mapped,
            mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as seen,
        ):
            for turn in range(50):
                mapped[4096 : 4096 + 3] = b"%03d" % turn
                assert seen[4096 : 4096 + 3] == b"%03d" % turn
                assert os.pread(reader.fileno(), 3, 4096) == b"%03d" % turn
                os.pwrite(writer.fileno(), b"%03d" % turn, 8192)
                assert seen[8192 : 8192 + 3] == b"%03d" % turn
            mapped.flush()
        assert (root / "file").stat().st_size == 16384


def test_direct_readers_and_buffered_writers_see_one_file(root: Path) -> None:
    page = mmap.mmap(-1, 4096)
    direct = os.open(root / "new", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    buffered = os.open(root / "new", os.O_RDWR)
    for turn in range(20):
        os.pwrite(buffered, bytes([turn]) * 4096, 0)
        assert os.preadv(direct, [page], 0) == 4096
        assert page[:] == bytes([turn]) * 4096
        page[:] = bytes([turn + 100]) * 4096
        os.pwritev(direct, [page], 4096)
        assert os.pread(buffered, 4096, 4096) == bytes([turn + 100]) * 4096
    os.close(direct)
    os.close(buffered)
