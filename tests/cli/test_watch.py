"""`snapfs watch` prints what happens, from where it was told, until interrupted."""

from __future__ import annotations

import json
import signal
import subprocess

from click.testing import CliRunner

from snapfs.cli.main import cli
from tests.support.daemon import SNAPFS, RunningDaemon


def watching(daemon: RunningDaemon, *arguments: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(SNAPFS), "watch", "--address", str(daemon.address), *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


def lines(process: subprocess.Popen[str], count: int) -> list[str]:
    assert process.stdout is not None
    with process.stdout as stdout:
        found = [stdout.readline() for _ in range(count)]
        process.send_signal(signal.SIGINT)
        process.wait(20)
    return found


def test_it_prints_what_happened_since_a_revision(daemon: RunningDaemon) -> None:
    revision = daemon.json("status")["revision"]
    daemon.run("snapshot", "prepare", "watched")
    daemon.run("snapshot", "remove", "watched")
    shown = lines(watching(daemon, "--from", str(revision), "--table", "snapshot"), 2)
    assert [line.split()[1:] for line in shown] == [
        ["create", "snapshot", "watched"],
        ["delete", "snapshot", "watched"],
    ]


def test_it_prints_an_object_a_line(daemon: RunningDaemon) -> None:
    revision = daemon.json("status")["revision"]
    daemon.run("snapshot", "prepare", "watched")
    daemon.run("snapshot", "prepare", "other")
    process = watching(
        daemon, "--json", "--from", str(revision), "--table", "snapshot", "--name", "other"
    )
    seen = json.loads(lines(process, 1)[0])
    assert (seen["action"], seen["old"]) == ("create", None)
    assert (seen["object"]["name"], seen["object"]["table"]) == ("other", "snapshot")
    assert seen["revision"] == seen["object"]["created_revision"] > revision


def test_what_is_of_a_table_needs_one() -> None:
    for option in (["--name", "a"], ["--prefix", "a"], ["--action", "create"]):
        result = CliRunner().invoke(cli, ["watch", *option])
        assert result.exit_code == 2
        assert "--table" in result.output
