"""Adding the stanza: what is written, what is kept, what is refused."""

from __future__ import annotations

import os
import stat
import tomllib
from pathlib import Path

import pytest
from snapfs_containerd.install import install

from snapfs.model import FailedPrecondition, InvalidArgument

ADDRESS = Path("/run/snapfs/snapfs.sock")
PLUGIN = Path(__file__).parents[2] / "plugin"

VERSION_2 = """\
# The administrator's words.
version = 2
root = "/var/lib/containerd"

[plugins]
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs" # for now

[proxy_plugins]

[timeouts]
  "io.containerd.timeout.shim.load" = "5s"
"""

VERSION_3 = """\
version = 3
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'overlayfs'
[proxy_plugins.stargz]
  type = 'snapshot'
  address = '/run/stargz.sock'
"""


@pytest.fixture
def config(tmp_path: Path) -> Path:
    return tmp_path / "containerd" / "config.toml"


def _written(config: Path, text: str) -> None:
    config.parent.mkdir(exist_ok=True)
    config.write_text(text)


@pytest.mark.parametrize("text", [VERSION_2, VERSION_3, 'version = 2\nroot = "/x"', "root = '/x'"])
def test_the_stanza_is_added_and_the_rest_stays_as_it_is(text: str, config: Path) -> None:
    _written(config, text)
    said = install(config, ADDRESS, root=Path("/var/lib/snapfs"))
    assert config.read_text().startswith(text.rstrip())
    before, after = tomllib.loads(text), tomllib.loads(config.read_text())
    assert after["proxy_plugins"].pop("snapfs") == {
        "type": "snapshot",
        "address": "/run/snapfs/snapfs.sock",
        "capabilities": ["remap-ids"],
        "exports": {"root": "/var/lib/snapfs"},
    }
    assert after["proxy_plugins"] == before.pop("proxy_plugins", {})
    after.pop("proxy_plugins")
    assert after == before
    assert "systemctl restart containerd" in said
    assert Path(f"{config}.before-snapfs").read_text() == text


def test_a_missing_file_is_made(config: Path) -> None:
    said = install(config, ADDRESS)
    assert tomllib.loads(config.read_text()) == {
        "version": 2,
        "proxy_plugins": {
            "snapfs": {
                "type": "snapshot",
                "address": str(ADDRESS),
                "capabilities": ["remap-ids"],
            }
        },
    }
    assert stat.S_IMODE(config.stat().st_mode) == 0o644
    assert "the file is new" in said
    assert list(config.parent.iterdir()) == [config]


def test_twice_changes_nothing(config: Path) -> None:
    _written(config, VERSION_2)
    install(config, ADDRESS)
    once = config.read_text()
    assert "already" in install(config, ADDRESS, root=Path("/elsewhere"))
    assert config.read_text() == once
    assert len(list(config.parent.iterdir())) == 2


def test_an_older_backup_is_kept(config: Path) -> None:
    _written(config, VERSION_2)
    install(config, ADDRESS)
    install(config, ADDRESS, name="snapfs-two")
    backups = sorted(it.name for it in config.parent.iterdir() if it != config)
    assert backups == ["config.toml.before-snapfs", "config.toml.before-snapfs.1"]
    assert (config.parent / backups[0]).read_text() == VERSION_2


def test_owner_mode_and_symbolic_link_stay(config: Path, tmp_path: Path) -> None:
    real = tmp_path / "real.toml"
    real.write_text(VERSION_2)
    real.chmod(0o640)
    os.chown(real, 0, 6)
    config.parent.mkdir()
    config.symlink_to(real)
    install(config, ADDRESS)
    assert config.is_symlink()
    status = real.stat()
    assert (stat.S_IMODE(status.st_mode), status.st_uid, status.st_gid) == (0o640, 0, 6)
    assert "snapfs" in real.read_text()


def test_a_stanza_with_another_address_is_left_to_the_administrator(config: Path) -> None:
    text = VERSION_2 + '[proxy_plugins.snapfs]\ntype = "snapshot"\naddress = "/old.sock"\n'
    _written(config, text)
    with pytest.raises(FailedPrecondition, match=r"address is '/old\.sock', not '/run/snapfs"):
        install(config, ADDRESS)
    assert config.read_text() == text


def test_a_file_that_cannot_be_appended_to_is_handed_back_with_the_stanza(config: Path) -> None:
    text = "version = 2\nproxy_plugins = {}\n"
    _written(config, text)
    with pytest.raises(FailedPrecondition, match=r"by hand(.|\n)*\[proxy_plugins\.snapfs\]"):
        install(config, ADDRESS)
    assert config.read_text() == text


def test_a_file_that_is_no_toml_is_left_alone(config: Path) -> None:
    _written(config, "version = \n")
    with pytest.raises(InvalidArgument, match=r"config\.toml is not valid TOML"):
        install(config, ADDRESS)
    assert config.read_text() == "version = \n"


def test_a_file_that_is_not_utf8_is_left_alone(config: Path) -> None:
    config.parent.mkdir(parents=True, exist_ok=True)
    config.write_bytes(b"# caf\xe9\n")
    with pytest.raises(InvalidArgument, match=r"config\.toml is not UTF-8"):
        install(config, ADDRESS)
    assert config.read_bytes() == b"# caf\xe9\n"


@pytest.mark.parametrize("version", ["4", '"2"', "0"])
def test_a_version_that_is_unknown_is_refused(version: str, config: Path) -> None:
    _written(config, f"version = {version}\n")
    with pytest.raises(FailedPrecondition, match="does not know"):
        install(config, ADDRESS)


@pytest.mark.parametrize("name", ["zfs", "snapfs-a.b", "snapfs]"])
def test_names_that_the_service_would_refuse_are_refused(name: str, config: Path) -> None:
    with pytest.raises(InvalidArgument, match="snapshotter name"):
        install(config, ADDRESS, name=name)


def test_an_odd_path_of_the_socket_survives(config: Path) -> None:
    odd = Path('/run/a "quoted" ü\\🦥/s')
    install(config, odd)
    assert tomllib.loads(config.read_text())["proxy_plugins"]["snapfs"]["address"] == str(odd)


@pytest.mark.parametrize("name", ["config-1.6.toml", "config-2.x.toml"])
def test_the_shipped_stanzas_are_what_is_installed(name: str, config: Path) -> None:
    install(config, ADDRESS, root=Path("/var/lib/snapfs"))
    shipped = tomllib.loads((PLUGIN / name).read_text())
    assert shipped["proxy_plugins"] == tomllib.loads(config.read_text())["proxy_plugins"]


def test_the_differ_is_asked_before_the_one_that_walks(config: Path) -> None:
    _written(config, VERSION_2)
    said = install(config, ADDRESS, differ=True)
    after = tomllib.loads(config.read_text())
    assert after["proxy_plugins"]["snapfs-diff"] == {"type": "diff", "address": str(ADDRESS)}
    order = after["plugins"]["io.containerd.service.v1.diff-service"]["default"]
    assert order == ["snapfs-diff", "walking"]
    assert "proxy_plugins.snapfs-diff" in said
    assert "nothing was changed" in install(config, ADDRESS, differ=True)


def test_an_order_of_differs_that_is_there_is_the_administrators(config: Path) -> None:
    order = "[plugins.'io.containerd.service.v1.diff-service']\ndefault = ['walking']\n"
    _written(config, f"version = 2\n{order}")
    with pytest.raises(FailedPrecondition, match=r"put \"snapfs-diff\" first"):
        install(config, ADDRESS, differ=True)
    assert "snapfs-diff" not in tomllib.loads(config.read_text())["proxy_plugins"]
