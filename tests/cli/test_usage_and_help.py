"""What the command says without a service: help, wrong usage, refusals, completion."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.testing import CliRunner

from snapfs.cli.main import COMMANDS, cli
from tests.support.daemon import SNAPFS


def commands(group: click.Group, words: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    for name, command in group.commands.items():
        yield (*words, name)
        if isinstance(command, click.Group):
            yield from commands(command, (*words, name))


def leaf(words: tuple[str, ...]) -> click.Command:
    command: click.Command = cli
    for word in words:
        assert isinstance(command, click.Group)
        command = command.commands[word]
    return command


LEAVES = [words for words in commands(cli) if not isinstance(leaf(words), click.Group)]
GROUPS = [words for words in commands(cli) if words not in LEAVES]
READS = [
    words
    for words in LEAVES
    if words[-1]
    in {"list", "tree", "info", "usage", "quota", "diff", "status", "fsck", "show", "version"}
]


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_every_command_has_help_with_an_example(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0
    assert "Example:\n" in shown.output
    assert f"snapfs {' '.join(words)}" in shown.output


@pytest.mark.parametrize("words", GROUPS, ids=" ".join)
def test_every_group_has_help_with_an_example_of_its_verbs(words: tuple[str, ...]) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"])
    assert shown.exit_code == 0
    _, _, examples = shown.output.partition("Example:\n")
    verbs = leaf(words)
    assert isinstance(verbs, click.Group)
    lines = [line.split() for line in examples.splitlines() if line.startswith("    snapfs ")]
    named = [line for line in lines if tuple(line[1 : 1 + len(words)]) == words]
    assert any(line[1 + len(words)] in verbs.commands for line in named if len(line) > 2)


@pytest.mark.parametrize("words", READS, ids=" ".join)
def test_every_read_has_json(words: tuple[str, ...]) -> None:
    assert "--json" in {flag for it in leaf(words).params for flag in it.opts}


@pytest.mark.parametrize("words", LEAVES, ids=" ".join)
def test_an_unknown_option_is_wrong_usage(words: tuple[str, ...]) -> None:
    assert CliRunner().invoke(cli, [*words, "--no-such-option"]).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["snapshot", "info"],
        ["snapshot", "label", "x", "no-equals"],
        ["snapshot", "prepare", "--label", "=x", "k"],
        ["serve", "--log-level", "loud"],
        ["completion", "tcsh"],
        ["serve", "--root", ""],
        ["umount", ""],
        ["nothing"],
    ],
)
def test_wrong_usage_exits_2(words: list[str], tmp_path: Path) -> None:
    assert CliRunner().invoke(cli, words, env={"SNAPFS_STATE": str(tmp_path)}).exit_code == 2


@pytest.mark.parametrize(
    "words",
    [
        ["status"],
        ["snapshot", "list"],
        ["snapshot", "tree", "--json"],
        ["snapshot", "diff", "x"],
        ["snapshot", "remove", "x"],
        ["mount", "x", "/"],
        ["umount", "/"],
    ],
)
def test_without_a_service_the_socket_and_the_way_to_start_it_are_named(
    words: list[str], tmp_path: Path
) -> None:
    refused = CliRunner().invoke(cli, words, env={"SNAPFS_STATE": str(tmp_path)})
    assert refused.exit_code == 1
    assert refused.stderr == (
        f"snapfs: nothing answers on socket {tmp_path / 'snapfs.sock'} (no such file or directory)"
        "; start the service (systemctl start snapfs, or snapfs serve)\n"
    )
    assert refused.stdout == ""


def test_a_bad_configuration_is_a_refusal_that_names_file_and_key(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("stat = '/x'")
    refused = CliRunner().invoke(cli, ["config", "check", "--config", str(path)])
    assert refused.exit_code == 1
    assert refused.stderr == f"snapfs: {path}: stat: unknown key; did you mean state?\n"


def test_config_show_says_where_each_value_came_from(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("[service]\nmax_workers = 3\n")
    env = {"SNAPFS_LOG_LEVEL": "error"}
    words = ["config", "show", "--config", str(path)]
    shown = json.loads(CliRunner().invoke(cli, [*words, "--json"], env=env).output)
    assert shown["service.max_workers"] == {"value": 3, "origin": f"file {path}"}
    assert shown["log_level"] == {"value": "error", "origin": "environment SNAPFS_LOG_LEVEL"}
    assert shown["root"] == {"value": "/var/lib/snapfs", "origin": "default"}
    text = CliRunner().invoke(cli, words, env=env).output
    assert text.splitlines()[0].split() == ["KEY", "VALUE", "ORIGIN"]
    assert any(line.split()[:2] == ["service.max_workers", "3"] for line in text.splitlines())


def test_a_group_that_does_not_exist_is_refused_before_anything_starts(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text('[service]\ngroup = "nosuchgroup"\n')
    refused = CliRunner().invoke(cli, ["config", "check", "--config", str(path)])
    assert refused.exit_code == 1
    said = "service.group: there is no group 'nosuchgroup'; make it, or leave the setting out"
    assert refused.stderr == f"snapfs: {said}\n"
    words = ["serve", "--root", tmp_path / "root", "--state", tmp_path / "state"]
    served = subprocess.run(
        [SNAPFS, *words, "--config", path], capture_output=True, text=True, timeout=60
    )
    assert served.returncode == 1
    assert "there is no group 'nosuchgroup'" in served.stderr
    assert os.listdir(tmp_path) == ["config.toml"]


def test_config_check_counts_what_was_changed(tmp_path: Path) -> None:
    checked = CliRunner().invoke(cli, ["config", "check"], env={"SNAPFS_LOG_LEVEL": "error"})
    assert checked.exit_code == 0
    assert "configuration is valid: 1 of " in checked.output


def test_version_is_the_packages() -> None:
    assert CliRunner().invoke(cli, ["version"]).output.startswith("snapfs ")
    assert json.loads(CliRunner().invoke(cli, ["version", "--json"]).output)["version"]


def test_a_relative_path_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "c.toml").write_text("")
    (tmp_path / "below").mkdir()
    monkeypatch.chdir(tmp_path / "below")
    assert CliRunner().invoke(cli, ["config", "check", "--config", "../c.toml"]).exit_code == 0


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_prints_a_script_for(shell: str) -> None:
    script = CliRunner().invoke(cli, ["completion", shell])
    assert script.exit_code == 0
    assert "_SNAPFS_COMPLETE" in script.output
    if found := shutil.which(shell):
        subprocess.run([found, "-n"], input=script.output, text=True, check=True, timeout=20)


def test_completion_offers_commands_and_is_silent_without_a_service(tmp_path: Path) -> None:
    def complete(words: str, number: int) -> list[str]:
        env = {
            **os.environ,
            "SNAPFS_STATE": str(tmp_path),
            "_SNAPFS_COMPLETE": "bash_complete",
            "COMP_WORDS": words,
            "COMP_CWORD": str(number),
        }
        done = subprocess.run(
            [SNAPFS], env=env, capture_output=True, text=True, check=True, timeout=20
        )
        assert done.stderr == ""
        return [line.partition(",")[2] for line in done.stdout.splitlines() if line]

    assert "snapshot" in complete("snapfs s", 1)
    assert complete("snapfs snapshot info ", 3) == []


HEAVY = {"grpc", "trio", "pyfuse3", "rich", "structlog", "lmdb", "snapfs.config"}


def imported_by(*arguments: str) -> set[str]:
    """Return the modules that a run of the command imports."""
    code = (
        "import sys; from snapfs.cli.main import cli\n"
        "cli.main(sys.argv[1:], prog_name='snapfs', standalone_mode=False)\n"
        "print(*sys.modules)"
    )
    command = [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    return set(done.stdout.splitlines()[-1].split())


@pytest.mark.parametrize("arguments", [["--help"], ["snapshot", "--help"]])
def test_help_is_quick_since_heavy_modules_are_not_imported(arguments: list[str]) -> None:
    assert not imported_by(*arguments) & HEAVY


def test_a_command_imports_no_other() -> None:
    ours = {it for it in imported_by("snapshot", "--help") if it.startswith("snapfs.cli.")}
    assert "snapfs.cli.snapshot" in ours
    assert not ours & {f"snapfs.cli.{it}" for it in ("image", "volume", "sync", "serve", "mount")}


@pytest.mark.parametrize("module", ["snapfs.daemon", "snapfs.fuse.worker"])
def test_a_service_starts_without_what_it_does_not_use(module: str) -> None:
    code = (
        "import gc, importlib, sys; from snapfs.loading import quickly\n"
        "with quickly(): importlib.import_module(sys.argv[1])\n"
        "assert gc.isenabled()\n"
        "print(*sys.modules); import rich.table"
    )
    command = [sys.executable, "-c", code, module]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
    loaded = set(done.stdout.split())
    assert module in loaded
    assert not loaded & {"rich", "pygments", "click", "snapfs.cli"}


def test_the_table_of_commands_has_the_help_that_they_have() -> None:
    for name, (module, summary) in COMMANDS.items():
        command = cli.commands[name]
        assert command.name == name
        assert command.callback is not None
        assert command.callback.__module__ == f"snapfs.cli.{module}"
        assert command.get_short_help_str(200) == summary


def test_the_version_is_an_option_too() -> None:
    assert (
        CliRunner().invoke(cli, ["--version"]).output == CliRunner().invoke(cli, ["version"]).output
    )


@pytest.mark.parametrize("words", [["--fs", "xfs"], ["--force"]])
def test_init_takes_no_option_of_a_file_system_that_it_does_not_make(
    words: list[str], tmp_path: Path
) -> None:
    refused = CliRunner().invoke(cli, ["init", str(tmp_path / "root"), *words])
    assert refused.exit_code == 2
    assert not (tmp_path / "root").exists()


@pytest.mark.root
def test_a_socket_that_is_not_ours_to_open_asks_for_root(tmp_path: Path) -> None:
    program = (
        "import os\n"
        "from pathlib import Path\n"
        "from snapfs.model import PermissionDenied\n"
        "from snapfs.service.client import Client\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        f"try: Client(Path({str(tmp_path / 'a.sock')!r}), timeout_s=30).status()\n"
        "except PermissionDenied as error: print(error)\n"
    )
    (tmp_path / "a.sock").touch(mode=0o600)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.stdout.endswith("run as root\n"), done.stderr
