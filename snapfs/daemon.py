"""Runs a house from the first to the last signal.

The service says that it is ready when the house stands. A second signal ends calls at once; what
hangs beyond its deadline is left by leaving the process.

The event loop (trio) holds signals and health; everything that blocks runs in threads, with
deadlines of its own.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time

import grpc
import structlog
import trio

from snapfs import confinement, heap, preflight
from snapfs.config import Config
from snapfs.house import House
from snapfs.model import SnapfsError
from snapfs.systemd import DescriptorStore, Notifier, take_descriptors

log = structlog.get_logger(__name__)

HEALTH_INTERVAL_S = 10.0
STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""The last comes when a terminal closes over a service in the foreground."""
UPGRADE_SIGNAL = signal.SIGUSR2
"""Ends the service as the others do, and begins it anew in the same process."""
SIGNALS = (*STOP_SIGNALS, UPGRADE_SIGNAL)
FORCED_EXIT_S = 3.0
"""After a second signal, for what can still be ended in order."""
MARGIN_S = 5.0
"""Beyond the deadlines of the single steps, before the process leaves without them."""


class Daemon:
    """The event loop around a house: signals, health, the service manager."""

    def __init__(self, house: House, config: Config, notifier: Notifier) -> None:
        self._house = house
        self._config = config
        self._notifier = notifier
        self._stop = trio.Event()
        self._failure: Exception | None = None
        self.begins_anew = False
        """The process is to go on with the code that is installed now."""

    async def run(self) -> None:
        """Serve until a signal; raises what kept the house from opening or closing."""
        async with trio.open_nursery() as nursery:
            await nursery.start(self._signals)
            try:
                await self._serve(nursery)
            except (SnapfsError, OSError, grpc.RpcError) as error:
                self._failure = error
            nursery.cancel_scope.cancel()
        if self._failure is not None:
            raise self._failure

    async def _serve(self, nursery: trio.Nursery) -> None:
        began = time.monotonic()
        self._notifier.extend(self._config.timeouts.start_s + MARGIN_S)
        await trio.to_thread.run_sync(self._house.open)
        try:
            log.info(
                "daemon.ready",
                address=str(self._config.address),
                root=str(self._config.root),
                dur_ms=round((time.monotonic() - began) * 1000),
            )
            self._notifier.ready(f"serving on {self._config.address}")
            nursery.start_soon(self._watch_health)
            await self._stop.wait()
        finally:
            with trio.CancelScope(shield=True):
                await self._close()

    async def _close(self) -> None:
        timeouts = self._config.timeouts
        limit_s = timeouts.drain_s + timeouts.stop_s + MARGIN_S
        log.info("daemon.stopping", limit_s=limit_s)
        if self.begins_anew:
            self._notifier.reloading()
        else:
            self._notifier.stopping()
        self._notifier.extend(limit_s)
        leave_after(limit_s)
        await trio.to_thread.run_sync(self._house.close)
        log.info("daemon.stopped")

    async def _signals(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        # What the receiver puts back at its end: nothing may kill a process that leaves by itself.
        for handled in SIGNALS:
            signal.signal(handled, self._signalled_late)
        with trio.open_signal_receiver(*SIGNALS) as signals:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, SIGNALS)  # held since the code before us
            task_status.started()
            async for number in signals:
                name = signal.Signals(number).name
                if not self._stop.is_set():
                    log.info("daemon.signal", signal=name)
                    self.begins_anew = number == UPGRADE_SIGNAL
                    self._stop.set()
                    continue
                self._signalled_late(number, None)
                log.warning("daemon.hurried", signal=name)
                leave_after(FORCED_EXIT_S)
                await trio.to_thread.run_sync(self._house.hurry, abandon_on_cancel=True)

    def _signalled_late(self, number: int, _: object) -> None:
        """Who wants an end while the service is about to begin anew gets it."""
        if number in STOP_SIGNALS:
            self.begins_anew = False

    async def _watch_health(self) -> None:
        """Probe; say so to health checks and to the manager's watchdog, which ends a sick one."""
        every_s = min(HEALTH_INTERVAL_S, (self._notifier.watchdog_s or HEALTH_INTERVAL_S) / 3)
        limiter = trio.CapacityLimiter(1)
        ready = True
        while not self._stop.is_set():
            was, well = ready, await self._is_well(limiter)
            ready = well and self._house.is_ready
            if ready != was:
                self._house.set_serving(serving=ready)
            if well:  # a restart would not bring a lane back that is in use
                self._notifier.watchdog()
            with trio.move_on_after(every_s):
                await self._stop.wait()

    def _check(self) -> None:
        self._house.mend()
        self._house.probe()
        heap.give_back()

    async def _is_well(self, limiter: trio.CapacityLimiter) -> bool:
        with trio.move_on_after(self._config.timeouts.probe_s * 2):
            try:
                await trio.to_thread.run_sync(self._check, abandon_on_cancel=True, limiter=limiter)
            except (SnapfsError, OSError) as error:
                log.error("daemon.unwell", error=str(error))
                return False
            return True
        log.error("daemon.unwell", error="the health check itself hangs")
        return False


def leave_after(timeout_s: float) -> None:
    """End the process after `timeout_s` whatever its threads do: a stop never hangs."""

    def leave() -> None:
        log.error("daemon.left", reason="a part did not end within its deadline")
        os._exit(1)

    timer = threading.Timer(timeout_s, leave)
    timer.daemon = True
    timer.start()


def serve(config: Config) -> None:
    """Run the service until SIGTERM or SIGINT; raises SnapfsError when it cannot serve."""
    preflight.check_privileges()
    preflight.check_fuse_device()
    if config.service.group:
        preflight.group_number(config.service.group)
    heap.limit()
    kept = confinement.confine(confinement.CONTROL)
    if kept:
        log.warning("daemon.not_confined", kept=kept)
    notifier = Notifier.from_environment()
    store = DescriptorStore(notifier, take_descriptors())
    house = House(config, store, kept)
    daemon = Daemon(house, config, notifier)
    try:
        trio.run(daemon.run)
        if daemon.begins_anew:
            _begin_anew(daemon, house)
    finally:
        for number in SIGNALS:
            signal.signal(number, signal.SIG_IGN)


def _begin_anew(daemon: Daemon, house: House) -> None:
    """Go on in this process with what is installed now, unless an end is wanted meanwhile.

    A signal that comes from now on is held until the next code has its handlers: it neither kills
    that half-way nor is lost. But other threads still take signals, and hand them to this one.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, SIGNALS)
    if daemon.begins_anew:
        log.info("daemon.begins_anew", command=sys.orig_argv)
    if daemon.begins_anew:  # asked again: whoever waited for that line may have sent one since
        house.hand_on()
        # No shell, and the same arguments.
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])  # noqa: S606
