"""The first five minutes of README.md, run as they stand; and every page it names is there."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from snapfs.config import Config
from tests.support.daemon import SNAPFS, RunningDaemon

HERE = Path(__file__).parents[2]


@pytest.mark.root
@pytest.mark.fuse
def test_the_first_five_minutes_run_as_written(daemon: RunningDaemon, target: Path) -> None:
    blocks = re.findall(r"(?:^    .*\n|^\n)+", (HERE / "README.md").read_text(), re.MULTILINE)
    (block,) = (it for it in blocks if "snapshot prepare work" in it)
    script = "\n".join(line.strip() for line in block.splitlines()).replace("/mnt/", f"{target}/")
    done = subprocess.run(
        ["bash", "-eux", "-c", script],
        env={
            **daemon.environ,
            "SNAPFS_ADDRESS": str(daemon.address),
            "PATH": f"{SNAPFS.parent}:/usr/bin:/bin",
        },
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    assert "D greeting\n" in done.stdout
    assert "└── next" in done.stdout


def test_who_has_a_clone_is_told_how_to_run_it_and_where_things_are_kept() -> None:
    page, makefile = (HERE / "README.md").read_text(), (HERE / "Makefile").read_text()
    for target in set(re.findall(r"^    (?:[A-Z]\S* )*make ([a-z]+)", page, re.MULTILINE)):
        assert f"\n{target}: " in makefile
    assert "    make run " in page
    assert f"$PWD/{SNAPFS.parent.relative_to(HERE)}" in page
    for place in (Config().root, Config().state):
        assert f"`{place}`" in page


@pytest.mark.parametrize(
    "page", [HERE / "README.md", *sorted((HERE / "docs").glob("*.md"))], ids=lambda it: it.name
)
def test_every_page_that_a_page_names_is_there(page: Path) -> None:
    for name in re.findall(r"(?<![\w/.<-])(?:docs/)?([a-z][a-z-]*\.md)\b", page.read_text()):
        assert (HERE / "docs" / name).exists(), f"{page.name} names {name}"
