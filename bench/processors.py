"""How idle processors of this machine wait, on which the time of each request depends."""

from __future__ import annotations

from pathlib import Path

_DRIVER = Path("/sys/devices/system/cpu/cpuidle/current_driver")
_POLL = Path("/sys/module/haltpoll/parameters/guest_halt_poll_ns")


def idle_words() -> str:
    """Say which driver of cpuidle it is, and how long a virtual processor looks before it halts."""
    if not _DRIVER.exists():
        return "Idle processors halt."
    driver = _DRIVER.read_text().strip()
    if driver == "haltpoll" and _POLL.exists():
        return f"Idle processors: haltpoll, guest_halt_poll_ns = {_POLL.read_text().strip()}."
    return f"Idle processors: {driver}."
