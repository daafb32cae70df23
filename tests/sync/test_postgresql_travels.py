"""A PostgreSQL under load is pushed to another service, which is killed in the middle."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.support import postgresql
from tests.support.daemon import SNAPFS, eventually
from tests.sync.sites import Ground, Site

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]

MIB = 1 << 20
ROWS = "select md5(string_agg(t::text, ',' order by t::text)) from {} t"
TABLES = ("pgbench_accounts", "pgbench_history", "pgbench_tellers")


@pytest.fixture
def ground() -> Iterator[Ground]:
    """Two services in a directory that the user postgres can reach."""
    base = Path(tempfile.mkdtemp(prefix="snapfs-travel-", dir="/var/tmp"))
    base.chmod(0o755)
    with ExitStack() as stack:
        stack.callback(shutil.rmtree, base)
        yield Ground(base, stack)


def test_a_database_is_pushed_through_a_kill_and_started_there(ground: Ground) -> None:
    ann, bob = Site(ground.ann, "db"), Site(ground.bob, "db")
    ann.run("volume", "create", "db", "--path", ground.base / "db", "--mount")
    with postgresql.running(ground.base / "db" / "data", ground.base / "run") as original:
        original.init()
        original.start()
        original.prepare()
        ann.snapshot("loaded")
        load = original.bench("-c", "2", "-T", "3")
        ann.snapshot("under load")
        output, _ = load.communicate(timeout=90)
        assert load.returncode == 0, output.decode()
        ann.snapshot("after")
        rows = [original.sql(ROWS.format(table)) for table in TABLES]
        _push_through_a_kill(ann, bob)
        bob.run("volume", "clone", "db", "db", "main")
        source = bob.run("volume", "mount", "db", ground.base / "copy")
        assert source.exit_code == 0
        with postgresql.running(ground.base / "copy" / "data", ground.base / "run2") as copy:
            (copy.data / "postmaster.pid").unlink()
            copy.start()
            assert [copy.sql(ROWS.format(table)) for table in TABLES] == rows
            assert copy.sql(postgresql.BALANCES) == "t"
            copy.stop()
        original.stop()
    for site in (ann, bob):
        site.run("volume", "umount", "db")
        assert site.json("fsck") == []


def _push_through_a_kill(ann: Site, bob: Site) -> None:
    command = [SNAPFS, "push", f"--address={ann.daemon.address}", "db", "tls"]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as pushing:
        eventually(
            lambda: bob.received_bytes() > 4 * MIB or pushing.poll() is not None, what="a part"
        )
        bob.daemon.kill()
        assert pushing.wait(60) == 1
    bob.daemon.start()
    (report,) = ann.json("push", "db", "tls")
    assert report["ok"], report
    assert [(it["name"], it["fate"]) for it in report["branches"]] == [("main", "pushed")]
