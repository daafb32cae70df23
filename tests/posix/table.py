"""The table in docs/posix.md, made from what is measured or read.

`python -m tests.posix.table` measures and writes it; with a system's name it says what fails.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from tests.posix import on_contents, on_directories, on_identity, on_rights
from tests.posix.checks import CHECKS, Case, Check, fill_lower, fill_upper
from tests.posix.systems import SYSTEMS, Ground, ground, is_served

PAGE = Path(__file__).parents[2] / "docs/posix.md"
BEGIN, END = "<!-- measured -->", "<!-- end of what was measured -->"
MODULES = (on_identity, on_directories, on_rights, on_contents)
"""Imported for the checks that they put into the list."""
AREAS = (
    "Identity",
    "Open files",
    "Directories",
    "Names and paths",
    "Rights",
    "The overlay's own",
    "Times",
    "Contents",
    "Errors",
)
YES, NO = "yes", "no"
ALONE = "## On pyfuse3 alone\n"

Row = dict[str, str]


def outcome(one: Check, place: Ground) -> str:
    """Try one check."""
    return NO if problem(one, place) else YES


def problem(one: Check, place: Ground) -> str:
    """Try one check; say why it does not hold, nothing when it does."""
    try:
        one.run(Case(place, one.name))
    except (AssertionError, OSError, subprocess.CalledProcessError) as error:
        if not is_served(place.path):
            place.remount()
        return f"{type(error).__name__}: {error}"
    return ""


def documented() -> dict[str, Row]:
    """Read each row of the page, by the title of its check."""
    text = PAGE.read_text().partition(BEGIN)[2].partition(END)[0]
    rows = {}
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == len(SYSTEMS) + 1 and cells[1] and cells[1].split()[0] in (YES, NO):
            results = (cell.split()[0] for cell in cells[1:])
            rows[cells[0]] = dict(zip(SYSTEMS, results, strict=True))
    return rows


def reasons() -> set[str]:
    """Return the titles that the page explains, each in a list item of its own."""
    return set(re.findall(r"^\* \*\*(.+?)\*\*", PAGE.read_text(), re.MULTILINE))


def different_alone() -> list[tuple[str, str]]:
    """Return the titles that the page has the other way round on pyfuse3 alone, with why."""
    section = PAGE.read_text().partition(ALONE)[2].partition("\n## ")[0]
    return re.findall(r"^\| (.+?) \| .+? \| (.+?) \|$", section, re.MULTILINE)[1:]


def written(results: Mapping[str, Row]) -> str:
    """Return the table as the page has it."""
    lines = [BEGIN]
    for area in AREAS:
        lines += ["", f"### {area}", "", "| | " + " | ".join(SYSTEMS) + " |"]
        lines.append("|---" * (len(SYSTEMS) + 1) + "|")
        for one in CHECKS:
            if one.area == area:
                cells = (results[one.title][name] for name in SYSTEMS)
                lines.append(f"| {one.title} | " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", END])


def main() -> None:
    """Measure everything, say what fails, and put the table into the page."""
    results: dict[str, Row] = {one.title: {} for one in CHECKS}
    only = sys.argv[1:]
    for name in only or SYSTEMS:
        with (
            tempfile.TemporaryDirectory(prefix="posix-") as base,
            ground(name, Path(base).resolve(), fill_lower, fill_upper) as place,
        ):
            for one in CHECKS:
                said = problem(one, place)
                results[one.title][name] = NO if said else YES
                if said:
                    sys.stderr.write(f"{name}: {one.title}: {said}\n")
    if only:
        return
    text = PAGE.read_text()
    before, _, rest = text.partition(BEGIN)
    PAGE.write_text(before + written(results) + rest.partition(END)[2])


if __name__ == "__main__":
    main()
