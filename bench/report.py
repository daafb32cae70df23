"""Tables of figures with ratios to a reference, in Markdown so that docs can hold them."""

from __future__ import annotations

from collections.abc import Sequence


def table(unit: str, rows: Sequence[tuple[str, dict[str, float]]], *, reference: str) -> str:
    """Return a Markdown table of `rows`: figures in `unit`, and each as a ratio to `reference`."""
    names = list(dict.fromkeys(name for _, figures in rows for name in figures))
    others = [name for name in names if name != reference]
    head = [unit, *names, *(f"{name} / {reference}" for name in others)]
    lines = [line(head), line(["---"] + ["---:"] * (len(head) - 1))]
    for title, figures in rows:
        cells = [_figure(figures.get(name)) for name in names]
        ratios = [_ratio(figures.get(name), figures.get(reference)) for name in others]
        lines.append(line([title, *cells, *ratios]))
    return "\n".join(lines)


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _ratio(value: float | None, reference: float | None) -> str:
    return "-" if value is None or not reference else f"{value / reference:.2f}x"


def line(cells: Sequence[str]) -> str:
    """Return one line of a table."""
    return "| " + " | ".join(cells) + " |"
