"""`snapfs plugin install` edits a containerd configuration that containerd then reads."""

from __future__ import annotations

import subprocess
import tomllib
from pathlib import Path

from click.testing import CliRunner

from snapfs.cli.main import cli


def test_the_stanza_names_our_socket_and_root_and_is_added_once(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    default = subprocess.run(
        ["containerd", "config", "default"], capture_output=True, text=True, check=True
    )
    path.write_text(default.stdout)
    words = ["plugin", "install", "--containerd-config", str(path), "--address", "/a/s.sock"]
    added = CliRunner().invoke(cli, words, env={"SNAPFS_ROOT": "/r"})
    assert added.exit_code == 0
    assert "restart containerd" in added.output
    assert (tmp_path / "config.toml.before-snapfs").read_text() == default.stdout
    stanza = tomllib.loads(path.read_text())["proxy_plugins"]["snapfs"]
    assert stanza == {
        "type": "snapshot",
        "address": "/a/s.sock",
        "capabilities": ["remap-ids"],
        "exports": {"root": "/r"},
    }
    again = CliRunner().invoke(cli, words, env={"SNAPFS_ROOT": "/r"})
    assert again.exit_code == 0
    assert "nothing was changed" in again.output
    subprocess.run(["containerd", "--config", path, "config", "dump"], check=True, timeout=60)


def test_a_configuration_that_is_no_toml_is_refused_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "config.toml"
    path.write_text("= broken")
    words = ["plugin", "install", "--containerd-config", str(path)]
    refused = CliRunner().invoke(cli, words)
    assert refused.exit_code == 1
    assert refused.stderr.startswith(f"snapfs: {path} is not valid TOML")
    assert path.read_text() == "= broken"


def test_a_configuration_that_cannot_be_written_is_named_itself() -> None:
    path = "/proc/nowhere/config.toml"
    refused = CliRunner().invoke(cli, ["plugin", "install", "--containerd-config", path])
    assert refused.exit_code == 1
    why = "no such file or directory"
    assert refused.stderr.startswith(f"snapfs: {path} cannot be written ({why}); run as root")
