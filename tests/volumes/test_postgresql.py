"""PostgreSQL on a volume: snapshots under load recover, branches diverge, nothing is lost.

`make postgresql` takes a snapshot a second for a minute and recovers all; here it is a few.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.snapshots import roots
from tests.support import postgresql
from tests.support.daemon import RunningDaemon, running
from tests.support.postgresql import Cluster

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]

SECONDS = int(os.environ.get("POSTGRESQL_TEST_SECONDS", "6"))
CHECKED = int(os.environ.get("POSTGRESQL_TEST_CHECKED", "3"))
"""How many of the snapshots are recovered."""
GIB = 1 << 30


@pytest.fixture
def base() -> Iterator[Path]:
    """A directory that the user postgres can reach."""
    path = Path(tempfile.mkdtemp(prefix="snapfs-postgresql-", dir="/var/tmp"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def service(base: Path) -> Iterator[RunningDaemon]:
    """A service on xfs, which clones files."""
    roots.init(base / "root", image_bytes=8 * GIB, file_system="xfs")
    with running(base) as daemon:
        yield daemon
        for volume in daemon.json("volume", "list"):
            daemon.run("volume", "umount", volume["name"])


@pytest.fixture
def cluster(service: RunningDaemon, base: Path) -> Iterator[Cluster]:
    """A cluster on the volume `db`, with pgbench's tables."""
    service.run("volume", "create", "db", "--path", str(base / "db"), "--mount")
    with postgresql.running(base / "db" / "data", base / "run") as made:
        made.init()
        made.start()
        made.prepare()
        yield made


def recovered(service: RunningDaemon, base: Path, name: str, ref: str) -> int:
    """Run another PostgreSQL on a snapshot; return the transactions that it holds."""
    service.run("volume", "clone", "db", name, ref)
    service.run("volume", "mount", name, str(base / name))
    with postgresql.running(base / name / "data", base / f"run-{name}") as second:
        count = second.check_recovered()
    service.run("volume", "umount", name)
    service.run("volume", "remove", "--discard", name)
    return count


def test_every_snapshot_under_load_is_recovered(
    service: RunningDaemon, cluster: Cluster, base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    load = cluster.bench("-c", "4", "-T", str(SECONDS + 2))
    end = time.monotonic() + SECONDS
    taken = []
    while (left := end - time.monotonic()) > 0:
        began = time.monotonic()
        taken.append(service.json("volume", "snapshot", "db", "-m", f"{left:.0f} s left"))
        until = min(began + 1.0, end)
        while time.monotonic() < until and load.poll() is None:
            time.sleep(0.01)
    output, _ = load.communicate(timeout=60)
    assert load.returncode == 0, output.decode()
    step = max(len(taken) // CHECKED, 1)
    counts = [
        recovered(service, base, f"s{number}", made["id"])
        for number, made in enumerate(taken[::step])
    ]
    assert counts == sorted(counts)
    assert counts[-1] > 0
    assert counts[-1] <= int(cluster.sql("select count(*) from pgbench_history"))
    pauses = sorted(made["pause_ms"] for made in taken)
    (tps,) = [line for line in output.decode().splitlines() if line.startswith("tps")]
    with capsys.disabled():
        print(
            f"\n{len(taken)} snapshots, {len(counts)} recovered; pause median "
            f"{pauses[len(pauses) // 2]:.1f} ms, longest {pauses[-1]:.1f} ms; {tps}"
        )
    assert service.json("fsck") == []


def test_a_database_is_branched_switched_and_reset(
    service: RunningDaemon, cluster: Cluster, base: Path
) -> None:
    cluster.sql("create table who (name text)")
    service.run("volume", "snapshot", "db", "-m", "empty")
    cluster.sql("insert into who values ('main')")
    service.run("volume", "snapshot", "db", "-m", "main")
    service.run("branch", "create", "db", "side", "HEAD^")
    refused = service.run("branch", "switch", "db", "side", check=False)
    assert "postgres (" in refused.stderr
    switched = service.run("branch", "switch", "db", "side", "--discard", "--signal", "INT")
    assert "empty" in switched.stdout
    assert cluster.process is not None
    assert cluster.process.wait(60) == 0
    cluster.start()
    assert cluster.sql("select count(*) from who") == "0"
    cluster.sql("insert into who values ('side')")
    service.run("volume", "snapshot", "db", "-m", "side")
    cluster.sql("insert into who values ('in no snapshot')")
    service.run("volume", "reset", "--hard", "db", "HEAD", "--signal", "INT")
    cluster.start()
    assert cluster.sql("select name from who") == "side"
    service.run("branch", "switch", "db", "main", "--discard", "--signal", "INT")
    cluster.start()
    assert cluster.sql("select name from who") == "main"
    cluster.stop()
    names = {it["name"]: it["tip"] for it in service.json("branch", "list", "db")}
    assert len(set(names.values())) == 2
