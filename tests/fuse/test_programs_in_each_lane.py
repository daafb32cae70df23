"""Programs that are particular about their files, in each lane that can be written."""

from __future__ import annotations

import mmap
import os
import select
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import IO

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
TIMEOUT_S = 40
SILENT_S = 0.5
"""Ten looks of tail's."""
ROWS = 40
WRITER = """
import sqlite3, sys
base = sqlite3.connect(sys.argv[1], timeout=30)
for number in range(int(sys.argv[2])):
    with base:
        base.execute("insert into seen values (?, ?)", (sys.argv[3], number))
"""


def make_database(path: Path) -> None:
    base = sqlite3.connect(path)
    base.execute("pragma journal_mode=wal")
    base.execute("create table seen (who text, number integer)")
    base.commit()
    base.close()


def test_a_database_of_the_image_is_written_by_several_at_once(house: House) -> None:
    tree = house.active(lambda layer: make_database(layer / "db"))
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, tree / "db", str(ROWS), who])
        for who in ("one", "other")
    ]
    assert [writer.wait(TIMEOUT_S) for writer in writers] == [0, 0]
    base = sqlite3.connect(tree / "db")
    assert base.execute("pragma journal_mode").fetchone() == ("wal",)
    assert base.execute("select count(*) from seen").fetchone() == (2 * ROWS,)
    assert base.execute("pragma integrity_check").fetchone() == ("ok",)
    base.close()


def git(tree: Tree, *arguments: str) -> str:
    environ = {
        **os.environ,
        "GIT_CONFIG_GLOBAL": "/dev/null",
        "GIT_CONFIG_SYSTEM": "/dev/null",
        "GIT_AUTHOR_NAME": "a",
        "GIT_AUTHOR_EMAIL": "a@example.com",
        "GIT_COMMITTER_NAME": "a",
        "GIT_COMMITTER_EMAIL": "a@example.com",
    }
    return subprocess.run(
        ["git", "-C", tree.path, *arguments],
        check=True,
        env=environ,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    ).stdout


def test_a_repository_is_changed_packed_and_found_whole(tree: Tree) -> None:
    git(tree, "init", "--quiet")
    for number in range(30):
        (tree / f"file{number}").write_text(f"{number}\n" * 200)
    git(tree, "add", "--all")
    git(tree, "commit", "--quiet", "-m", "first")
    (tree / "file1").write_text("changed\n")
    git(tree, "commit", "--quiet", "--all", "-m", "second")
    git(tree, "repack", "-a", "-d", "--quiet")
    git(tree, "checkout", "--quiet", "HEAD~1")
    assert (tree / "file1").read_text() == "1\n" * 200
    git(tree, "fsck", "--full", "--strict")
    assert git(tree, "status", "--short") == ""


@contextmanager
def following(file: Path, *options: str) -> Iterator[IO[str]]:
    """What tail says of a file, from its beginning."""
    command = ["tail", "-n", "+1", "-s", "0.05", *options, str(file)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as tail:
        assert tail.stdout is not None
        try:
            yield tail.stdout
        finally:
            tail.kill()


def says_more(lines: IO[str], within_s: float) -> bool:
    """Whether there is more to read, now or soon."""
    return bool(select.select([lines], [], [], within_s)[0])


def log_of_image(house: House) -> Path:
    return house.active(lambda layer: (layer / "log").write_text("first\n")) / "log"


def append(file: Path, text: str) -> None:
    with file.open("a") as log:
        log.write(text)


@pytest.mark.channel("passthrough")
@pytest.mark.parametrize("options", [("-f",), ("-F", "--max-unchanged-stats=1")])
def test_who_follows_a_log_of_the_image_sees_the_first_line_only_without_opens(
    house: House, options: tuple[str, ...]
) -> None:
    """One node there, whoever has it open; else who began before the copy-up has the lower file."""
    log = log_of_image(house)
    with following(log, *options) as lines:
        assert lines.readline() == "first\n"
        append(log, "second\n")
        if house.mode is Mode.NO_OPEN:
            assert lines.readline() == "second\n"
        else:
            assert not says_more(lines, SILENT_S)
            append(log, "third\n")
            assert not says_more(lines, SILENT_S)
    with following(log, *options) as lines:  # begun anew
        assert list(islice(lines, 2)) == ["first\n", "second\n"]
        append(log, "last\n")
        assert "last\n" in list(islice(lines, 1 if house.mode is Mode.NO_OPEN else 2))


@pytest.mark.parametrize("options", [("-f",), ("-F", "--max-unchanged-stats=1")])
def test_who_follows_an_empty_log_of_the_image_sees_what_is_appended(
    house: House, options: tuple[str, ...]
) -> None:
    log = house.active(lambda layer: (layer / "log").touch()) / "log"
    with following(log, *options) as lines:
        assert not says_more(lines, SILENT_S)
        append(log, "first\n")
        assert lines.readline() == "first\n"
        append(log, "second\n")
        assert lines.readline() == "second\n"
    assert log.read_text() == "first\nsecond\n"


@pytest.mark.parametrize("name", ["app.log", "opt/.log", "var/log/messages", "var/log/deep/er/log"])
@pytest.mark.parametrize("options", [("-f",), ("-F", "--max-unchanged-stats=1")])
def test_who_follows_what_is_named_as_a_log_sees_what_is_appended(
    house: House, name: str, options: tuple[str, ...]
) -> None:
    def fill(layer: Path) -> None:
        (layer / name).parent.mkdir(parents=True, exist_ok=True)
        (layer / name).write_text("of the image\n")

    log = house.active(fill) / name
    with following(log, *options) as lines, log.open() as reader:
        assert lines.readline() == "of the image\n"
        with mmap.mmap(reader.fileno(), 0, prot=mmap.PROT_READ) as mapped:
            for line in ("first\n", "second\n"):
                append(log, line)
                assert lines.readline() == line
            assert mapped[:] == b"of the image\n"
        assert reader.read() == "of the image\nfirst\nsecond\n"
    with following(log, *options) as lines:  # nobody has it open any more, and it is native
        assert list(islice(lines, 3)) == ["of the image\n", "first\n", "second\n"]
        append(log, "last\n")
        assert lines.readline() == "last\n"


def test_who_follows_a_log_of_the_image_that_was_touched_before_sees_what_is_appended(
    house: House,
) -> None:
    log = log_of_image(house)
    subprocess.run(["touch", log], check=True)
    with following(log, "-f") as lines:
        assert lines.readline() == "first\n"
        append(log, "second\n")
        assert lines.readline() == "second\n"


def test_o_noatime_is_kept_where_the_kernel_opens_the_layer_s_file(house: House) -> None:
    file = house.active() / "file"
    file.write_bytes(b"f" * 5000)
    os.utime(file, ns=(1, 2))
    fd = os.open(file, os.O_RDONLY | os.O_NOATIME)
    try:
        assert len(os.read(fd, 5000)) == 5000
    finally:
        os.close(fd)
    assert (file.stat().st_atime_ns == 1) == (house.mode is not Mode.NO_OPEN)
