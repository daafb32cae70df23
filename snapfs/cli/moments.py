"""Times as people write them on the command line: a date and time, or how long ago."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import click

_SECOND_NS = 1_000_000_000
_AGE = re.compile(r"(\d+)(s|m|h|d|w)")
_UNIT_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400, "w": 604_800}
_FRACTION = re.compile(r"(?<=:\d\d)[.,](\d{1,9})")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


class Moment(click.ParamType[int]):
    """A time in nanoseconds since 1970: `2026-11-20 09:00` (local), RFC 3339, or an age: `30d`."""

    name = "time"

    def __init__(self, clock_ns: Callable[[], int] = time.time_ns) -> None:
        self._clock_ns = clock_ns

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        if isinstance(value, int):
            return value
        at_ns = self._age(value) if _AGE.fullmatch(value) else _absolute(value)
        if at_ns is None:
            self.fail(
                f"{value!r} is no time; write one as 2026-11-20 09:00, 2026-11-20T08:00:00Z, "
                "or as an age such as 90s, 15m, 2h, 30d, 4w",
                param,
                ctx,
            )
        if at_ns < 0:
            self.fail(f"{value!r} is before 1970", param, ctx)
        return at_ns

    def _age(self, text: str) -> int:
        number, unit = text[:-1], text[-1]
        return self._clock_ns() - int(number) * _UNIT_S[unit] * _SECOND_NS


def _absolute(text: str) -> int | None:
    """Return a written date and time, to the nanosecond, or None; without a zone it is local."""
    found = _FRACTION.search(text)
    fraction_ns = int(found[1].ljust(9, "0")) if found else 0
    try:
        moment = datetime.fromisoformat(_FRACTION.sub("", text, count=1)).astimezone(UTC)
    except (ValueError, OverflowError):
        return None
    return (moment - _EPOCH) // timedelta(seconds=1) * _SECOND_NS + fraction_ns


MOMENT = Moment()
