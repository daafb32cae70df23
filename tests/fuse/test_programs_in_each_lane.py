"""Programs that are particular about their files, in each lane that can be written."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House, Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
TIMEOUT_S = 40
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


def test_a_reader_follows_a_log_that_is_appended_and_copied_up(house: House) -> None:
    tree = house.active(lambda layer: (layer / "log").write_text("first\n"))
    tail = subprocess.Popen(
        ["tail", "-n", "+1", "-f", "-s", "0.05", tree / "log"], stdout=subprocess.PIPE, text=True
    )
    assert tail.stdout is not None
    try:
        with tail.stdout as lines:
            assert lines.readline() == "first\n"
            with (tree / "log").open("a") as log:
                log.write("second\n")
            if house.mode is Mode.NO_OPEN:  # one node, whoever has it open
                assert lines.readline() == "second\n"
    finally:
        tail.kill()
        tail.wait(TIMEOUT_S)
