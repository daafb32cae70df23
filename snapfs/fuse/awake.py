"""Processors that do not halt while requests follow each other.

A virtual processor without work halts, and its host takes 30 to 150 us to wake it: twice for each
request, once for who asks. Linux looks for work for 200 us before it halts (cpuidle's haltpoll),
unless whoever started the machine told it not to. There the library asks for the same while
requests come one after the other (channel_src/awake.c): a PM QoS request of no latency at
/dev/cpu_dma_latency. The kernel ends it with the descriptor, however this process ends.

It holds for all processors of the machine, so by default only where these are few.
"""

from __future__ import annotations

import enum
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from snapfs.fuse import channel

FEW_PROCESSORS = 8

_LATENCY = Path("/dev/cpu_dma_latency")
_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_POLL_NS = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")


class Awake(enum.Enum):
    """When processors are kept awake."""

    AUTO = "auto"
    """Where they halt at once, and are few."""
    ON = "on"
    """Where they are a virtual machine's, however many."""
    OFF = "off"


@contextmanager
def kept_awake(wish: Awake) -> Iterator[str]:
    """Keep processors awake for a block, at busy times; yields why not, empty when it is done."""
    reason = _why_not(wish)
    if reason:
        yield reason
        return
    try:
        fd = os.open(_LATENCY, os.O_WRONLY | os.O_CLOEXEC)
    except OSError as error:
        yield f"{_LATENCY}: {error.strerror}"
        return
    library = channel.required()
    try:
        library.keep_awake(fd)
        yield ""
    finally:
        library.keep_awake(-1)
        os.close(fd)


def _why_not(wish: Awake) -> str:
    if not channel.loaded():
        return "the channel is off"
    if wish is Awake.OFF:
        return "switched off (lanes.awake)"
    driver = _read(_DRIVER)
    if driver != "haltpoll":
        return f"only where cpuidle's driver is haltpoll; here it is {driver or 'none'}"
    if wish is Awake.ON:
        return ""
    polled_ns = _read(_POLL_NS)
    if polled_ns != "0":
        return f"the kernel does it by itself (guest_halt_poll_ns = {polled_ns})"
    count = os.cpu_count() or 1
    if count > FEW_PROCESSORS:
        return f'all {count} processors would be; lanes.awake = "on" does it all the same'
    return ""


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
