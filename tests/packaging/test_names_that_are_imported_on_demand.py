"""Packages that import what they re-export when it is asked for have all that they promise."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module

import pytest

PACKAGES = ["snapfs.snapshots", "snapfs.store"]
NOT_FOR_WORKERS = [
    *("snapfs.snapshots.lifecycle", "snapfs.snapshots.copying", "snapfs.store.writing"),
    *("snapfs.store.store", "snapfs.metadata", "snapfs.service", "re2", "rich", "grpc"),
]


@pytest.mark.parametrize("name", PACKAGES)
def test_each_name_is_there_and_no_other(name: str) -> None:
    package = import_module(name)
    for it in package.__all__:
        assert getattr(package, it) is not None
    with pytest.raises(AttributeError, match=f"module '{name}' has no attribute 'Nothing'"):
        _ = package.Nothing


def test_worker_loads_nothing_that_only_the_service_needs() -> None:
    code = (
        "import sys\n"
        "from snapfs.loading import quickly\n"
        "with quickly():\n"
        "    import snapfs.fuse.worker\n"
        "print(*sys.modules)"
    )
    said = subprocess.run([sys.executable, "-P", "-c", code], stdout=subprocess.PIPE, check=True)
    assert set(NOT_FOR_WORKERS) & set(said.stdout.decode().split()) == set()
