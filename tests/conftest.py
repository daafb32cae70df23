"""Rules for every test: nothing is left behind, nothing is skipped in silence."""

from __future__ import annotations

import ctypes
import fnmatch
import logging
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

from snapfs import logs
from snapfs.fuse import channel, mounts
from snapfs.fuse.attach import MS_REC
from snapfs.volumes.remount import CLONE_NEWNS
from tests.support.daemon import clear, mounts_below, processes_below
from tests.support.plain import LACKS

MS_SLAVE, MS_SHARED = 1 << 19, 1 << 20
ALLOWED_SKIPS = Path(__file__).parent.parent / ".ci" / "allowed-skips"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--no-unlisted-skips",
        action="store_true",
        help="fail when a test skips that .ci/allowed-skips does not name",
    )
    parser.addoption(
        "--power-cuts", type=int, default=100, help="moments of a power cut for each file system"
    )
    parser.addoption(
        "--power-cut-seconds", type=float, default=float("inf"), help="of each file system, at most"
    )
    parser.addoption(
        "--power-cut-seed", type=int, default=1, help="which moments, and what reaches the disk"
    )
    parser.addoption("--soak-seconds", type=float, default=20, help="how long everything is used")


def pytest_configure(config: pytest.Config) -> None:
    logs.bind_structlog()
    # How fast examples are made is the machine's affair.
    settings.register_profile("busy machine", suppress_health_check=[HealthCheck.too_slow])
    settings.load_profile("busy machine")
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # a shell's background job, as whose
        signal.signal(signal.SIGINT, signal.default_int_handler)  # children nothing could be ended
    if hasattr(config, "workerinput") and os.geteuid() == 0:
        own_mounts()
    if config.getoption("--no-unlisted-skips"):
        config.pluginmanager.register(SkipRule(allowed_skips(ALLOWED_SKIPS.read_text())))


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Where pyfuse3 serves alone, skip what it cannot do, and say why."""
    for item in items:
        mark = item.get_closest_marker("channel")
        if mark is not None:
            why = LACKS[mark.args[0]]
            if not channel.loaded():
                item.add_marker(pytest.mark.skip(reason=f"without the channel: {why}"))


def own_mounts() -> None:
    """Keep the mounts of this worker's tests from those beside it, whose containers would have
    copies of them for a while."""
    if ctypes.CDLL(None, use_errno=True).unshare(CLONE_NEWNS):
        why = os.strerror(ctypes.get_errno())
        raise pytest.UsageError(f"no mounts of its own for a worker of the tests: {why}")
    if " shared:" in Path("/proc/self/mountinfo").read_text():  # then so are ours, from now on
        for how in (MS_SLAVE, MS_SHARED):
            mounts.mount("", Path("/"), "", MS_REC | how, "")


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
        needs_channel = "channel" in report.keywords and not channel.loaded()
        if not report.skipped or hasattr(report, "wasxfail") or needs_channel:
            return
        if not self._allows(report.nodeid):
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


@pytest.fixture(autouse=True)
def _same_directory() -> Iterator[None]:
    """Begin each test where the first began: programs that tests start import from there."""
    here = os.getcwd()
    yield
    os.chdir(here)


@pytest.fixture(autouse=True)
def _no_unexpected_warning(
    request: pytest.FixtureRequest, caplog: pytest.LogCaptureFixture
) -> Iterator[None]:
    """Fail a test in which snapfs logs a warning or an error that `@pytest.mark.logs` lacks."""
    yield
    expected = {name for mark in request.node.iter_markers("logs") for name in mark.args}
    if "lane.worker_died" in expected:
        expected.add("lane.backs_off")  # on a quick machine those that are killed die in a row
    records = (*caplog.get_records("setup"), *caplog.get_records("call"))
    loud = [it for it in records if it.levelno >= logging.WARNING and it.name.startswith("snapfs")]
    events = {it.msg["event"] if isinstance(it.msg, dict) else it.getMessage() for it in loud}
    assert events <= expected, f"unexpected in the log: {sorted(events - expected)}"


@pytest.fixture(autouse=True, scope="session")
def _nothing_left(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Fail the run when a mount or a process of a test outlives it; end them, for the next run."""
    base = tmp_path_factory.getbasetemp()
    yield
    processes, mounts = processes_below(base), mounts_below(base)
    clear(base)
    assert not processes, f"tests left processes running: {processes}"
    assert not mounts, f"tests left mounts: {mounts}"
