"""Times on the command line: absolute to the nanosecond, local without a zone, ages, refusals."""

from __future__ import annotations

import time
from collections.abc import Iterator

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.cli import output
from snapfs.cli.moments import Moment

SECOND = 1_000_000_000
NOW = 1_000_000 * SECOND


def read(text: str) -> int:
    return Moment(lambda: NOW).convert(text, None, None)


@pytest.fixture(autouse=True)
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Europe/Vienna")
        time.tzset()
        yield
    time.tzset()


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1970-01-01T00:00:01Z", SECOND),
        ("1970-01-01T00:00:01.5Z", SECOND * 3 // 2),
        ("1970-01-01T00:00:00.000000001Z", 1),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 01:00", 0),
        ("1970-01-02", 23 * 3600 * SECOND),
        ("2026-07-01 02:00", 1_782_864_000 * SECOND),
        ("90s", NOW - 90 * SECOND),
        ("15m", NOW - 900 * SECOND),
        ("2h", NOW - 7200 * SECOND),
        ("1d", NOW - 86_400 * SECOND),
        ("1w", NOW - 604_800 * SECOND),
    ],
)
def test_time_is_read(text: str, expected: int) -> None:
    assert read(text) == expected


@pytest.mark.parametrize("text", ["", "now", "30", "1y", "2026-13-01", "1969-12-31T23:00Z", "99w"])
def test_what_is_no_time_is_wrong_usage(text: str) -> None:
    with pytest.raises(click.UsageError, match=r"no time|before 1970"):
        read(text)


@given(st.integers(0, 253_402_300_799 * SECOND))
def test_time_that_json_shows_is_read_back(at_ns: int) -> None:
    assert read(output.iso(at_ns)) == at_ns
