"""The link in a root by which ssh's command finds the root's service."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.config import Config
from snapfs.service.exchanging import Exchanging, address_of
from tests.sync.kit import Host


@pytest.fixture
def config(tmp_path: Path) -> Config:
    root, state = tmp_path / "root", tmp_path / "state"
    root.mkdir()
    state.mkdir(mode=0o700)
    return Config(root=root, state=state)


def full(_self: Path, _target: Path) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_link_of_a_killed_service_is_kept_where_none_can_be_made(
    config: Config, host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = host("ann").replica
    Exchanging(config, replica).close()
    link = address_of(config.root)
    assert not os.path.lexists(link)
    link.symlink_to(config.state / "sync.sock")  # as one that was killed leaves it
    monkeypatch.setattr(Path, "symlink_to", full)
    with Exchanging(config, replica):
        assert link.is_socket()
    assert not os.path.lexists(link)


@pytest.mark.logs("exchange.not_linked")
def test_link_to_another_place_is_not_kept(
    config: Config, host: Callable[[str], Host], monkeypatch: pytest.MonkeyPatch
) -> None:
    replica = host("ann").replica
    link = address_of(config.root)
    link.symlink_to("/elsewhere/sync.sock")
    with Exchanging(config, replica):
        assert link.is_socket()
    link.symlink_to("/elsewhere/sync.sock")
    monkeypatch.setattr(Path, "symlink_to", full)
    with Exchanging(config, replica):
        assert not os.path.lexists(link)
