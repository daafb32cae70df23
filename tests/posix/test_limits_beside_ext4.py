"""What programs are told at the limits, on ours, on ext4 alone, and on kernel overlayfs.

Each program has its files in a lower layer, and once more in the upper one. A line that is neither
ext4's nor overlayfs's is named in DIFFERENT with its reason, which docs/posix.md has too.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from snapfs.fuse import channel
from tests.posix import limits_of_contents, limits_of_names, limits_of_rights
from tests.posix.limits import PROGRAMS, Program, said_in
from tests.posix.systems import Ground, ground
from tests.support import lanes
from tests.support.plain import LACKS

STUCK_AFTER_S = 60.0
PROGRAMS_OF = (limits_of_rights, limits_of_names, limits_of_contents)
"""Imported for what they put into the list."""
OURS = ("snapfs", "snapfs-overlay")
LOWER, UPPER = "lower", "upper"

DIFFERENT = {
    ("chown", r"mode after nothing|other nothing|ctime nothing"): "chown(2) of neither",
    ("types", r"links"): "st_nlink of a directory is 1, or 2 and its directories",
    ("links", r"tmpfile"): "a nameless file may be made in a removed directory, as on xfs",
    (
        "locks_and_controls",
        r"lease reader",
    ): "a reader from before a copy-up has an inode of his own",
    ("locks_and_controls", r"FS_IOC_GETFLAGS file"): "the ioctl opens that inode again",
    ("locks_and_controls", r"FS_IOC_GETFSUUID"): "other ioctls are ENOTTY",
}
"""Lines of ours that are nobody else's."""
DIFFERENT_ALONE = {
    ("sizes", r"fallocate|size"): "fallocate",
    ("sizes", r"seek (data|hole)"): "SEEK_DATA",
    ("times_that_changes_leave", r"fallocate|punch"): "fallocate",
    ("links", r"tmpfile"): "O_TMPFILE",
    ("locks_and_controls", r"FS_IOC"): "flags of inodes",
}
"""The same on pyfuse3 alone, by what of LACKS."""

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.slow,
    pytest.mark.plain,
    pytest.mark.logs("lane.left_in_use", "lane.left_serving", "lane.not_adopted"),
]

Tell = Callable[[str, Program, str], list[str]]
"""What a program is told on a system, with its files in that layer."""


@pytest.fixture(autouse=True)
def _never_stuck(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with lanes.aborting_after(tmp_path_factory.getbasetemp(), STUCK_AFTER_S):
        yield


def fill(top: Path, where: str, one: Program) -> None:
    directory = top / f"{where}-{one.name}"
    directory.mkdir()
    directory.chmod(0o777)
    said_in(directory, lambda _: one.fill())


def fill_all(layer: Path) -> None:
    for one in PROGRAMS:
        fill(layer, LOWER, one)


def nothing(_: Path) -> None:
    """Leave a layer empty."""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("limits").resolve()
    for above in (made, *made.parents):  # ordinary users walk there
        above.chmod(above.stat().st_mode | 0o111)
    return made


@pytest.fixture(scope="module")
def told(base: Path) -> Iterator[Tell]:
    """Have a program run on one of SYSTEMS, which is mounted when it is first needed."""
    places: dict[str, Ground] = {}
    known: dict[tuple[str, str, str], list[str]] = {}

    with ExitStack() as stack:

        def ask(system: str, one: Program, where: str) -> list[str]:
            if system not in places:
                mounted = ground(system, base / system, fill_all, nothing)
                places[system] = stack.enter_context(mounted)
            key = system, one.name, where
            if key not in known:
                top = places[system].path
                if where == UPPER:
                    fill(top, UPPER, one)
                known[key] = said_in(top / f"{where}-{one.name}", one.run)
            return known[key]

        yield ask


@pytest.fixture(scope="module")
def on_ext4(base: Path) -> dict[str, list[str]]:
    top = base / "ext4"
    top.mkdir()
    fill_all(top)
    return {one.name: said_in(top / f"{LOWER}-{one.name}", one.run) for one in PROGRAMS}


def parameter(one: Program) -> object:
    needs = [pytest.mark.channel("O_TMPFILE")] if one.name == "nameless" else []
    return pytest.param(one, id=one.name, marks=needs)


def is_known(one: Program, line: str) -> bool:
    known = [*DIFFERENT, *(() if channel.loaded() else DIFFERENT_ALONE)]
    return any(it == one.name and re.match(pattern, line) for it, pattern in known)


@pytest.mark.parametrize("where", [LOWER, UPPER])
@pytest.mark.parametrize("system", OURS)
@pytest.mark.parametrize("one", [parameter(it) for it in PROGRAMS])
def test_a_program_is_told_what_it_is_told_on_ext4_or_on_overlayfs(
    on_ext4: dict[str, list[str]],
    told: Tell,
    one: Program,
    system: str,
    where: str,
) -> None:
    expected = on_ext4[one.name]
    also, found = (told(it, one, where) for it in ("overlayfs", system))
    assert not [line for line in (*expected, *found) if "Traceback" in line]
    assert len(found) == len(expected) == len(also)
    wrong = [
        f"{expected[number - 1]!r}, then {line!r}, on ext4 {expected[number]!r}"
        for number, line in enumerate(found)
        if line not in (expected[number], also[number]) and not is_known(one, line)
    ]
    assert not wrong, "\n".join(wrong)


def test_what_is_different_alone_has_a_reason() -> None:
    assert set(DIFFERENT_ALONE.values()) <= set(LACKS)
