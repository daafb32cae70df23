"""The checked-in gRPC modules are what `make proto` makes of the protos today."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]
PLACES = ("snapfs/service", "plugin/snapfs_containerd")


@pytest.mark.slow
def test_generated_modules_are_up_to_date(tmp_path: Path) -> None:
    for place in PLACES:
        (tmp_path / place).mkdir(parents=True)
    subprocess.run(
        ["make", "--no-print-directory", "proto", f"PROTO_OUT={tmp_path}"],
        cwd=REPOSITORY,
        check=True,
        timeout=100,
    )
    for place in PLACES:
        made = {it.name: it.read_text() for it in (tmp_path / place).iterdir()}
        kept = {it.name: it.read_text() for it in (REPOSITORY / place).glob("*_pb2*.py*")}
        assert made.keys() == kept.keys()
        assert [name for name in made if made[name] != kept[name]] == [], "run `make proto`"
