"""`make demo` runs through, twice, well under two minutes, and leaves nothing."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.daemon import clear, mounts_below, processes_below

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(300),
]


@pytest.mark.parametrize("run", [1, 2])
def test_the_demo_ends_well_and_leaves_nothing(
    tmp_path_factory: pytest.TempPathFactory, run: int
) -> None:
    place = tmp_path_factory.mktemp("d")  # short: sockets are below it
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("demo.py")],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin", "TMPDIR": str(place)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    try:
        assert done.returncode == 0, done.stdout + done.stderr
        assert "nobody serves gRPC now, and I write" in done.stdout
        assert "clean: metadata and layers agree" in done.stdout
        assert mounts_below(place) == []
        assert processes_below(place) == []
        assert list(place.iterdir()) == []
    finally:
        clear(place)
