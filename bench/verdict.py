"""What a run of the overlay benchmark comes to, held against what was promised."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence

from bench import report
from bench.rows import Row
from bench.systems import FUSE_OVERLAYFS, OVERLAYFS
from snapfs.model import MAIN_LANE

Times = dict[str, float]
"""Seconds of one row by system."""


def table(rows: Sequence[Row], times: Sequence[Times], lanes: Sequence[str]) -> str:
    """Return a Markdown table: each promise, the worst figure, and the rows that break it."""
    measured = [
        (row, it)
        for row, it in zip(rows, times, strict=True)
        if MAIN_LANE in it and OVERLAYFS in it
    ]
    lines = [report.line(["promise", "reached", "falls short in"]), "| --- | --- | --- |"]
    if all(FUSE_OVERLAYFS in it for _, it in measured) and measured:
        lines.append(_faster_than_peer(measured))
        mean = statistics.geometric_mean(it[FUSE_OVERLAYFS] / it[MAIN_LANE] for _, it in measured)
        lines.append(
            report.line([f"{MAIN_LANE}: 2 x fuse-overlayfs, geometric mean", f"{mean:.2f} x", ""])
        )
    data = [(row, it) for row, it in measured if row.is_data]
    rest = [(row, it) for row, it in measured if not row.is_data]

    def default(it: Times) -> float:
        return it[MAIN_LANE] / it[OVERLAYFS]

    def better(it: Times) -> float:
        return min(it[name] for name in lanes if name in it) / it[OVERLAYFS]

    lines += _within("reads, writes, mmap, exec", MAIN_LANE, data, default, 1.1)
    lines += _within("other rows", "the better lane", rest, better, 3)
    lines += _within("other rows", MAIN_LANE, rest, default, 5)
    return "\n".join(lines)


def _faster_than_peer(measured: Sequence[tuple[Row, Times]]) -> str:
    gains = [(it[FUSE_OVERLAYFS] / it[MAIN_LANE], row.name) for row, it in measured]
    short = [f"{name} ({gain:.2f} x)" for gain, name in gains if gain < 1]
    return report.line(
        [
            f"{MAIN_LANE}: faster than {FUSE_OVERLAYFS} in every row",
            _of(gains, short),
            "; ".join(short),
        ]
    )


def _within(
    what: str,
    who: str,
    measured: Sequence[tuple[Row, Times]],
    ratio: Callable[[Times], float],
    limit: float,
) -> list[str]:
    if not measured:
        return []
    found = [(ratio(it), row.name) for row, it in measured]
    short = [f"{name} ({factor:.2f}x)" for factor, name in found if factor > limit]
    title = f"{who}: {what} within {limit:g}x of {OVERLAYFS}"
    return [report.line([title, _of(found, short), "; ".join(short)])]


def _of(all_rows: Sequence[object], short: Sequence[str]) -> str:
    return f"{len(all_rows) - len(short)} of {len(all_rows)} rows"
