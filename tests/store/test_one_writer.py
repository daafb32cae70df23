"""One writer a store: the second is told who the first is, and a dead one is no obstacle."""

from __future__ import annotations

import os
import re
import subprocess
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs.model import FailedPrecondition
from snapfs.store import Store, lock
from tests.store.kit import DOCS, SCOPE, TABLES, Doc, child


def test_second_writer_is_told_the_process_and_the_command_of_the_first(path: Path) -> None:
    with child("hold", str(path)) as holder:
        assert holder.stdin is not None
        assert holder.stdout is not None
        holder.stdout.readline()
        expected = re.escape(f"store {path} is in use by process {holder.pid} (") + ".*child hold"
        with pytest.raises(FailedPrecondition, match=expected):
            Store.open(path, TABLES)
        assert lock.is_held(path)
        holder.stdin.close()
        assert holder.wait(20) == 0
    assert not lock.is_held(path)
    Store.open(path, TABLES).close()


def test_second_writer_in_the_same_process_is_refused(path: Path) -> None:
    with (
        Store.open(path, TABLES) as store,
        pytest.raises(FailedPrecondition, match=f"process {os.getpid()}"),
    ):
        Store.open(path, TABLES)
    assert store.path == path


def test_of_many_that_make_a_store_at_once_one_becomes_its_writer(path: Path) -> None:
    holders = [child("hold", str(path), stderr=subprocess.PIPE) for _ in range(4)]
    with ExitStack() as stack:
        for holder in holders:
            stack.enter_context(holder)
            stack.callback(holder.kill)
        first = [holder.stdout.readline() for holder in holders if holder.stdout is not None]
        assert sorted(first) == ["", "", "", "open\n"]
        for holder, line in zip(holders, first, strict=True):
            _, errors = holder.communicate(timeout=20)
            assert line or "FailedPrecondition: store" in errors
    with Store.open(path, TABLES) as store:
        assert store.check() == []


def test_killed_holder_is_no_obstacle(path: Path) -> None:
    with child("hold", str(path)) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        holder.kill()
    assert (path / lock.FILE_NAME).read_text().startswith(f"{holder.pid} ")
    with Store.open(path, TABLES) as store:
        assert (path / lock.FILE_NAME).read_text().startswith(f"{os.getpid()} ")
        assert store.check() == []


def test_holder_that_has_not_signed_yet_is_another_process(path: Path) -> None:
    with Store.open(path, TABLES):
        (path / lock.FILE_NAME).write_text("")
        with pytest.raises(FailedPrecondition, match="in use by another process"):
            Store.open(path, TABLES)


def test_refused_open_leaves_the_lock_free(path: Path) -> None:
    with Store.open(path, TABLES) as store:
        store.update(lambda tx: tx.create(DOCS, SCOPE, "a", Doc()))
    with pytest.raises(FailedPrecondition, match="does not know"):
        Store.open(path, [])
    assert not lock.is_held(path)


def test_files_are_private_to_their_owner(path: Path) -> None:
    with Store.open(path, TABLES):
        assert path.stat().st_mode & 0o777 == 0o700
        for file in path.iterdir():
            assert file.stat().st_mode & 0o077 == 0, file
