"""Debian's PostgreSQL on a directory: started, loaded, asked, ended; as the user postgres."""

from __future__ import annotations

import os
import pwd
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.daemon import eventually

(BIN,) = sorted(Path("/usr/lib/postgresql").glob("*/bin"))[-1:]
USER = "postgres"
TIMEOUT_S = 90.0

BALANCES = """
    select (select sum(abalance) from pgbench_accounts) = (select sum(delta) from pgbench_history)
       and (select sum(tbalance) from pgbench_tellers) = (select sum(delta) from pgbench_history)
       and (select sum(bbalance) from pgbench_branches) = (select sum(delta) from pgbench_history)
"""
"""What holds at every end of a transaction of pgbench."""


class Cluster:
    """One database cluster; its socket and log are in `place`, beside the data."""

    def __init__(self, data: Path, place: Path) -> None:
        self.data = data
        self.place = place
        place.mkdir(mode=0o755, exist_ok=True)
        os.chown(place, pwd.getpwnam(USER).pw_uid, -1)
        self.log = place / "log"
        self.process: subprocess.Popen[bytes] | None = None

    def init(self) -> None:
        """Make a new cluster with checksums of pages."""
        os.chown(self.data.parent, pwd.getpwnam(USER).pw_uid, -1)
        self.run("initdb", "-D", self.data, "--auth=trust", "--data-checksums", "--no-sync")

    def run(self, program: str, *arguments: object) -> str:
        """Run a program of PostgreSQL's and return what it printed."""
        command = [str(BIN / program), *map(str, arguments)]
        done = subprocess.run(
            command,
            user=USER,
            extra_groups=(),
            env=self._environ(),
            cwd="/",
            capture_output=True,
            text=True,
            timeout=TIMEOUT_S,
        )
        assert done.returncode == 0, f"{command}: {done.stderr}"
        return done.stdout

    def start(self) -> None:
        """Start the server, and wait until it has recovered and answers.

        One before it, which was told to end, has ended first.
        """
        if self.process is not None:
            self.process.wait(TIMEOUT_S)
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                [str(BIN / "postgres"), "-D", str(self.data), *self._settings()],
                user=USER,
                extra_groups=(),
                env=self._environ(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        eventually(self._answers, timeout_s=TIMEOUT_S, what=f"PostgreSQL on {self.data}")

    def _answers(self) -> bool:
        assert self.process is not None
        assert self.process.poll() is None, self.log.read_text()
        ready = [str(BIN / "pg_isready"), "-q", "-h", str(self.place)]
        return subprocess.run(ready, env=self._environ(), timeout=TIMEOUT_S).returncode == 0

    def stop(self) -> None:
        """End the server in order, fast."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
            assert self.process.wait(TIMEOUT_S) == 0, self.log.read_text()

    def sql(self, query: str) -> str:
        """Run a query and return its answer, bare."""
        options = ("-h", self.place, "-d", "postgres", "-X", "-A", "-t", "-q")
        return self.run("psql", *options, "-v", "ON_ERROR_STOP=1", "-c", query).strip()

    def prepare(self) -> None:
        """Make pgbench's tables."""
        load = self.bench("-i", "-q", "-s", "1")
        output, _ = load.communicate(timeout=TIMEOUT_S)
        assert load.returncode == 0, output.decode()

    def bench(self, *arguments: object) -> subprocess.Popen[bytes]:
        """Start pgbench."""
        command = [str(BIN / "pgbench"), "-h", str(self.place), *map(str, arguments), "postgres"]
        return subprocess.Popen(
            command,
            user=USER,
            extra_groups=(),
            env=self._environ(),
            cwd="/",
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )

    def check_recovered(self) -> int:
        """Start on data as a power loss would have left it; check that nothing is wrong with it.

        Returns the number of transactions that it holds.
        """
        # It names the server that still runs on the original.
        (self.data / "postmaster.pid").unlink(missing_ok=True)
        self.start()
        assert self.sql(BALANCES) == "t"
        count = int(self.sql("select count(*) from pgbench_history"))
        self.stop()
        self.run("pg_checksums", "--check", "-D", self.data)
        bad = [line for line in self.log.read_text().splitlines() if " PANIC" in line]
        assert bad == [], bad
        return count

    def _settings(self) -> Iterator[str]:
        settings = {
            "unix_socket_directories": str(self.place),
            "listen_addresses": "",
            "shared_buffers": "32MB",
            "checkpoint_timeout": "30s",
            "max_wal_size": "64MB",
        }
        for name, value in settings.items():
            yield from ("-c", f"{name}={value}")

    def _environ(self) -> dict[str, str]:
        return {"PATH": os.environ["PATH"], "LC_ALL": "C", "PGUSER": USER}


@contextmanager
def running(data: Path, place: Path) -> Iterator[Cluster]:
    """Give a cluster; its server is ended whatever happens."""
    cluster = Cluster(data, place)
    try:
        yield cluster
    finally:
        if cluster.process is not None and cluster.process.poll() is None:
            cluster.process.send_signal(signal.SIGQUIT)
            cluster.process.wait()
