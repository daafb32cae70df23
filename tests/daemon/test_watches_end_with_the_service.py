"""A stopping service does not wait for watches, and a watch goes on after a restart."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from snapfs.model import Unavailable
from snapfs.service.store_client import StoreClient, Wanted
from tests.support.daemon import running


def test_a_watch_ends_with_the_service_and_goes_on_after_its_restart(tmp_path: Path) -> None:
    with running(tmp_path) as daemon:
        with StoreClient(daemon.address) as client:
            stream = client.watch(0, [Wanted("snapshot")])
            next(stream)
            daemon.run("snapshot", "prepare", "one")
            revision, [event] = next(stream)
            assert event.row.name == "one"
            assert daemon.stop(signal.SIGTERM) == 0
            with pytest.raises(Unavailable, match="watch again from revision") as ended:
                list(stream)
            named = int(str(ended.value).split("from revision ")[1].split()[0])
            assert named >= revision  # later ones changed nothing that was asked for
        daemon.start()
        daemon.run("snapshot", "prepare", "two")
        with StoreClient(daemon.address) as client:
            stream = client.watch(named, [Wanted("snapshot")])
            assert [next(stream)[1], next(stream)[1][0].row.name] == [[], "two"]
            stream.close()  # type: ignore[attr-defined]  # a generator
        daemon.run("snapshot", "remove", "one", "two")
