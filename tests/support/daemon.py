"""A real `snapfs serve` in a directory of its own, for tests: started, spoken to, ended."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from click.testing import CliRunner, Result

from snapfs.cli.main import cli

SNAPFS = Path(sys.executable).with_name("snapfs")
START_TIMEOUT_S = 90.0
STOP_TIMEOUT_S = 40.0


def eventually(check: Callable[[], Any], *, timeout_s: float = 20.0, what: str = "it") -> Any:
    """Return the first true answer of `check`, asked until the deadline."""
    end = time.monotonic() + timeout_s
    while not (answer := check()):
        assert time.monotonic() < end, f"{what} did not come within {timeout_s} s"
        time.sleep(0.02)
    return answer


class RunningDaemon:
    """One `snapfs serve`; its root, state, socket and log are below `base`."""

    def __init__(
        self,
        base: Path,
        *,
        arguments: Sequence[str] = (),
        environ: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """`prefix` is a command that runs the daemon's in its place, as nsenter does."""
        self.base = base
        self.prefix = prefix
        self.root = base / "root"
        self.state = base / "state"
        self.address = self.state / "snapfs.sock"
        self.log = base / "serve.log"
        self.arguments = list(arguments)
        self.environ = {**os.environ, "SNAPFS_CONFIG": "", **(environ or {})}
        self.ready_mark = " daemon.ready "
        self.pass_fds: tuple[int, ...] = ()
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def lane(self) -> Path:
        return self.state / "mnt" / "main"

    def mounts_beside_lanes(self) -> list[str]:
        """Return what is mounted below its directory other than lanes."""
        lanes = f"{self.state}/mnt/"
        return [it for it in mounts_below(self.base) if not it.startswith(lanes)]

    @property
    def pid(self) -> int:
        assert self.process is not None
        return self.process.pid

    def command(self) -> list[str]:
        return [
            *self.prefix,
            *(str(SNAPFS), "serve", "--root", str(self.root), "--state", str(self.state)),
            *("--log-level", "debug", *self.arguments),
        ]

    def start(self) -> None:
        """Start it and wait until it says that it is ready."""
        already = self._count_ready()
        with self.log.open("ab") as log:
            command = self.command()
            self.process = subprocess.Popen(
                command,
                stdout=log,
                stderr=log,
                stdin=subprocess.DEVNULL,
                env=self.environ,
                pass_fds=self.pass_fds,
            )
        end = time.monotonic() + START_TIMEOUT_S
        while self._count_ready() == already:
            assert self.process.poll() is None, f"snapfs serve ended:\n{self.log.read_text()}"
            assert time.monotonic() < end, f"snapfs serve is not ready:\n{self.log.read_text()}"
            time.sleep(0.02)

    def stop(self, number: signal.Signals = signal.SIGTERM) -> int:
        """Send a signal and return the exit status; a daemon that hangs fails the test."""
        assert self.process is not None
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(STOP_TIMEOUT_S)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise AssertionError(f"snapfs serve hangs:\n{self.log.read_text()}") from None

    def kill(self) -> None:
        """End it as a crash would."""
        assert self.process is not None
        self.process.kill()
        self.process.wait()

    def _count_ready(self) -> int:
        return self.log.read_text().count(self.ready_mark) if self.log.exists() else 0

    def events(self, name: str) -> list[str]:
        """Return the lines of its log that tell of the event `name`."""
        if not self.log.exists():
            return []
        return [line for line in self.log.read_text().splitlines() if f" {name} " in f"{line} "]

    def run(self, *arguments: str | Path, check: bool = True) -> Result:
        """Run `snapfs ARGUMENTS` against it, in this process: a new interpreter costs 0.3 s."""
        environ = {**self.environ, "SNAPFS_ADDRESS": str(self.address)}
        done = CliRunner().invoke(cli, list(map(str, arguments)), env=environ, prog_name="snapfs")
        if done.exception is not None and not isinstance(done.exception, SystemExit):
            raise done.exception
        if check:
            assert done.exit_code == 0, f"{arguments}: {done.stderr}\n{self.log.read_text()}"
        return done

    def json(self, *arguments: str | Path) -> Any:
        """Run `snapfs ARGUMENTS --json` and return what it printed."""
        return json.loads(self.run(*arguments, "--json").stdout)

    def worker_pid(self, lane: str = "main") -> int:
        (pid,) = (it["worker_pid"] for it in self.json("status")["lanes"] if it["name"] == lane)
        assert isinstance(pid, int)
        return pid


def mounts_below(path: Path) -> list[str]:
    """Return the mount points at and below `path`."""
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    targets = (line.split(" ")[4] for line in lines)
    return [it for it in targets if it == str(path) or it.startswith(f"{path}/")]


def processes_below(path: Path) -> list[int]:
    """Return the processes that have `path` in their arguments, zombies left out."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                zombie = b") Z " in (entry / "stat").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(f"{path}/") in command and not zombie:
                found.append(int(entry.name))
    return found


def clear(base: Path) -> None:
    """End every process and mount of a test's directory, whatever the test did."""
    for pid in processes_below(base):
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    for target in reversed(mounts_below(base)):
        subprocess.run(["umount", "-l", target], check=False, capture_output=True)
    eventually(lambda: not processes_below(base), what="the end of all processes")


@contextmanager
def running(base: Path, **options: Any) -> Iterator[RunningDaemon]:
    """A started daemon, ended at the end however the test went."""
    daemon = RunningDaemon(base, **options)
    try:
        daemon.start()
        yield daemon
        daemon.stop()
    finally:
        clear(base)
