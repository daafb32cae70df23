"""`snapfs plugin install`, and a containerd that is started with what it wrote."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support import daemon
from tests.support.containerd import Containerd
from tests.support.daemon import clear

pytestmark = [pytest.mark.root, pytest.mark.fuse, pytest.mark.containerd, pytest.mark.slow]


def test_containerd_loads_what_the_command_installed(tmp_path: Path) -> None:
    (tmp_path / "d").mkdir()
    engine = Containerd(tmp_path / "e", {})
    engine.configure()
    with daemon.running(tmp_path / "d") as serving:
        serving.run(
            *("plugin", "install", "--containerd-config", engine.config),
            *("--address", serving.address),
        )
        try:
            engine.start()
            assert engine.plugins()["snapfs"] == "ok"
            assert engine.snapshots("snapfs") == {}
            engine.stop()
        finally:
            clear(engine.base)
    # Older containerds do not know this table; they start all the same.
    assert "[proxy_plugins.snapfs.exports]" in engine.config.read_text()
