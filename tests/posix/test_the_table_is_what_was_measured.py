"""Every check on every system: docs/posix.md says what happens, and why where it is not right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import channel
from tests.posix import table
from tests.posix.checks import CHECKS, Check, fill_lower, fill_upper
from tests.posix.systems import SYSTEMS, Ground, ground
from tests.support import lanes
from tests.support.plain import LACKS, ROWS

STUCK_AFTER_S = 60.0
OURS = ("snapfs", "snapfs-overlay")

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
    # A remount is quicker here than the kernel may be to end the connection.
    pytest.mark.logs("lane.left_in_use", "lane.left_serving", "lane.not_adopted"),
]


TRIES = {"fuse-overlayfs": 3}
"""What it writes back, and when, depends on the machine's load; that is not ours to test."""


@pytest.fixture(autouse=True)
def _never_stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with lanes.aborting_after(tmp_path_factory.getbasetemp(), STUCK_AFTER_S):
        yield


@pytest.fixture(scope="module", params=SYSTEMS if channel.loaded() else OURS)
def place(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Ground]]:
    base = tmp_path_factory.mktemp("p").resolve()
    for above in (base, *base.parents):  # ordinary users walk there
        above.chmod(above.stat().st_mode | 0o111)
    with ground(request.param, base, fill_lower, fill_upper) as made:
        yield request.param, made


@pytest.mark.plain
@pytest.mark.parametrize("one", [pytest.param(it, id=it.title) for it in CHECKS])
def test_a_check_has_the_outcome_that_the_page_says(place: tuple[str, Ground], one: Check) -> None:
    name, made = place
    expected = expected_of(one.title, name)
    for _ in range(TRIES.get(name, 1)):
        said = table.problem(one, made)
        measured = table.NO if said else table.YES
        if measured == expected:
            return
    assert measured == expected, said


def expected_of(title: str, name: str) -> str:
    """Return the outcome that the page says: its row, or the other where pyfuse3 serves alone."""
    documented = table.documented()[title][name]
    if channel.loaded() or title not in ROWS:
        return documented
    return table.NO if documented == table.YES else table.YES


def test_the_page_says_what_is_different_on_pyfuse3_alone() -> None:
    assert table.different_alone() == [(title, LACKS[what]) for title, what in ROWS.items()]


def test_the_page_has_a_row_for_each_check_and_no_other() -> None:
    assert list(table.documented()) == [
        one.title for area in table.AREAS for one in CHECKS if one.area == area
    ]


def test_where_we_differ_the_page_says_why() -> None:
    missing = {
        title
        for title, row in table.documented().items()
        if any(row[name] == table.NO for name in OURS)
    }
    assert missing <= table.reasons()


def test_titles_are_unique() -> None:
    assert len({one.title for one in CHECKS}) == len(CHECKS)
    assert {one.area for one in CHECKS} == set(table.AREAS)


def test_this_file_is_where_the_page_says() -> None:
    assert str(Path(__file__).parent.relative_to(table.PAGE.parents[1])) in table.PAGE.read_text()
