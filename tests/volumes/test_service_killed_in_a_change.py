"""The service is killed inside switch, reset and snapshot: the volume is whole on one side."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.daemon import clear
from tests.support.dying_service import COPYING, REPLACING, DyingService

pytestmark = [pytest.mark.root, pytest.mark.fuse]

BEFORE = ("prepared", "unbound")
"""Moments at which nothing has happened yet, whatever is done."""


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DyingService]:
    base = tmp_path_factory.mktemp("dying")
    daemon = DyingService(base)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        clear(base)


@pytest.fixture
def db(service: DyingService) -> Iterator[Path]:
    """A volume with two snapshots on main, one of which is the end of side, and a change."""
    service.run("volume", "create", "db", "--mount")
    path = service.state / "volumes" / "db"
    for text in ("one", "two"):
        (path / "file").write_text(text)
        service.run("volume", "snapshot", "db", "-m", text)
    service.run("branch", "create", "db", "side", "HEAD^")
    (path / "file").write_text("unsaved")
    yield path
    service.run("volume", "umount", "db")
    service.run("volume", "remove", "--history", "db")
    assert service.json("snapshot", "list") == []
    assert service.mounts_beside_lanes() == []


def working_copies(service: DyingService) -> int:
    return sum(it["kind"] == "active" for it in service.json("snapshot", "list"))


def tips(service: DyingService) -> dict[str, str]:
    return {it["name"]: it["tip"] for it in service.json("branch", "list", "db")}


@pytest.mark.parametrize("moment", REPLACING)
@pytest.mark.parametrize("change", ["switch", "reset"])
def test_a_volume_is_where_it_was_or_where_it_was_to_be(
    service: DyingService, db: Path, change: str, moment: str
) -> None:
    two, one = (it["id"] for it in service.json("volume", "log", "db"))
    command = {
        "switch": ("branch", "switch", "db", "side", "--discard"),
        "reset": ("volume", "reset", "--hard", "db", "HEAD^"),
    }[change]
    service.dies_at(moment, *command)
    service.start()
    info = service.json("volume", "info", "db")
    assert info["mounted_at"] == str(db)
    assert service.json("fsck") == []
    assert working_copies(service) == 1
    if moment in BEFORE:
        assert (db / "file").read_text() == "unsaved"
        assert (info["snapshot"], info["branch"]) == (two, "main")
        assert tips(service) == {"main": two, "side": one}
        service.run(*command)
    info = service.json("volume", "info", "db")
    assert (db / "file").read_text() == "one"
    assert (info["snapshot"], info["branch"]) == (one, "side" if change == "switch" else "main")
    assert tips(service) == {"main": two if change == "switch" else one, "side": one}
    (db / "file").write_text("later")
    service.run("volume", "snapshot", "db", "-m", "later")


@pytest.mark.parametrize("moment", COPYING)
def test_a_snapshot_is_there_whole_or_not_at_all(
    service: DyingService, db: Path, moment: str
) -> None:
    service.dies_at(moment, "volume", "snapshot", "db", "-m", "three")
    # Nothing holds writers any more, before the service is back.
    subprocess.run(["sh", "-c", f"echo more > {db}/more"], check=True, timeout=20)
    service.start()
    messages = [it["message"] for it in service.json("volume", "log", "db")]
    assert messages == ["three", "two", "one"][moment != "copy.recorded" :]
    assert (db / "file").read_text() == "unsaved"
    assert service.json("fsck") == []
    assert working_copies(service) == 1
    service.run("volume", "snapshot", "db", "-m", "four")
    (db / "more").unlink()
    service.run("volume", "reset", "--hard", "db", "HEAD")
    assert (db / "file").read_text() == "unsaved"
    assert (db / "more").read_text() == "more\n"
    if moment == "copy.recorded":
        service.run("volume", "reset", "--hard", "db", "HEAD^")
        assert [it.name for it in db.iterdir()] == ["file"]


def test_a_removal_with_its_history_is_finished_at_the_next_start(
    service: DyingService, db: Path
) -> None:
    """FlockerHub destroyed data after its rows, and forgot what it had not come to (D11)."""
    service.run("volume", "umount", "db")
    service.dies_at("discarded", "volume", "remove", "--history", "db")
    service.start()
    assert service.json("volume", "list") == service.json("volume", "sets") == []
    assert service.json("snapshot", "list") == service.json("fsck") == []
    service.run("volume", "create", "db")
    service.run("volume", "snapshot", "db", "-m", "for the end of the test")
