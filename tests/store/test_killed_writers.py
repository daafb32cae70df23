"""A writer killed at any moment: what was acknowledged is there, the rest whole or not at all."""

from __future__ import annotations

import random
import time
from pathlib import Path

import pytest

from snapfs.store import Store
from tests.store.kit import DOCS, SCOPE, TABLES, child


@pytest.mark.parametrize("seed", range(6))
def test_acknowledged_updates_survive_a_kill(path: Path, seed: int) -> None:
    acknowledged: dict[str, int] = {}
    chance = random.Random(seed)
    for _ in range(2):
        lines = run_and_kill(
            path, after_lines=chance.randrange(1, 400), pause_s=chance.random() / 50
        )
        new = {name: int(revision) for name, revision in (line.split() for line in lines)}
        with Store.open(path, TABLES) as store:
            assert store.check() == []
            with store.view() as tx:
                rows = {row.name: row for row in tx.rows(DOCS, SCOPE)}
            for name, revision in (acknowledged | new).items():
                assert rows[name].mod_rev == revision
                assert len(rows[name].body.text) == 500
            store.update(lambda tx: [tx.delete(row) for row in tx.rows(DOCS, SCOPE)])
        acknowledged = {}


def run_and_kill(path: Path, *, after_lines: int, pause_s: float) -> list[str]:
    """Let a child write until it has acknowledged some updates, kill it, return all it said."""
    with child("write", str(path)) as writer:
        assert writer.stdout is not None
        lines = [writer.stdout.readline() for _ in range(after_lines)]
        time.sleep(pause_s)  # the moment of the kill is to be any
        writer.kill()
        lines += writer.stdout.readlines()
    return [line for line in lines if line.endswith("\n")]


def test_store_is_made_whole_or_not_at_all(path: Path) -> None:
    path.mkdir()
    leftover = path / "new.dead"
    leftover.mkdir()
    (leftover / "data.mdb").write_bytes(b"half a store")
    (path / "writer.lock").write_text("1 dead\n")
    with Store.open(path, TABLES) as store:
        assert store.check() == []
    assert not leftover.exists()
