"""Rules for every test: nothing is left behind, nothing is skipped in silence."""

from __future__ import annotations

import fnmatch
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs import logs

ALLOWED_SKIPS = Path(__file__).parent.parent / ".ci" / "allowed-skips"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unlisted-skips",
        action="store_true",
        help="fail when a test skips that .ci/allowed-skips does not name",
    )


def pytest_configure(config: pytest.Config) -> None:
    logs.bind_structlog()
    if config.getoption("--no-unlisted-skips"):
        config.pluginmanager.register(SkipRule(allowed_skips(ALLOWED_SKIPS.read_text())))


def allowed_skips(text: str) -> list[str]:
    """Return the test name patterns of .ci/allowed-skips; each line must give its reason."""
    patterns = []
    for line in text.splitlines():
        if line.strip() and not line.startswith("#"):
            pattern, mark, reason = line.partition("#")
            if not mark or not reason.strip():
                raise pytest.UsageError(f".ci/allowed-skips: {line!r} gives no reason after a #")
            patterns.append(pattern.strip())
    return patterns


class SkipRule:
    """Turns a skip that nobody allowed into a failed run."""

    def __init__(self, patterns: list[str]) -> None:
        self._patterns = patterns
        self._unlisted: list[str] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.skipped and not hasattr(report, "wasxfail") and not self._allows(report.nodeid):
            self._unlisted.append(report.nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        if report.skipped and not self._allows(report.nodeid):
            self._unlisted.append(report.nodeid)

    def _allows(self, nodeid: str) -> bool:
        return any(fnmatch.fnmatchcase(nodeid, pattern) for pattern in self._patterns)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        if self._unlisted and session.exitstatus == pytest.ExitCode.OK:
            session.exitstatus = pytest.ExitCode.TESTS_FAILED

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        for nodeid in self._unlisted:
            terminalreporter.write_line(f"UNLISTED SKIP {nodeid}: see .ci/allowed-skips", red=True)


@pytest.fixture(autouse=True, scope="session")
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when a mount or a process of a test outlives it; end them, for the next run."""
    base = tmp_path_factory.getbasetemp()
    yield
    processes, mounts = _processes_of(base), _mounts_below(base)
    for pid in processes:
        os.kill(pid, signal.SIGKILL)
    for target in reversed(mounts):
        os.system(f"umount -l '{target}'")
    assert not processes, f"tests left processes running: {processes}"
    assert not mounts, f"tests left mounts: {mounts}"


def _mounts_below(base: Path) -> list[str]:
    lines = Path("/proc/self/mountinfo").read_text("utf-8", "surrogateescape").splitlines()
    targets = (line.split(" ")[4] for line in lines)
    return [target for target in targets if target.startswith(f"{base}/")]


def _processes_of(base: Path) -> dict[int, str]:
    """Return what runs with the tests' temporary directory in its arguments."""
    found = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdecimal() and int(entry.name) != os.getpid():
            try:
                command = (entry / "cmdline").read_bytes()
                zombie = b") Z " in (entry / "stat").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            if os.fsencode(f"{base}/") in command and not zombie:
                found[int(entry.name)] = command.replace(b"\0", b" ").decode(errors="replace")
    return found
