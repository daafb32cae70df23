"""The rule that no test skips in silence, tried on a small run of its own."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parents[2]
CONFTEST = HERE / "tests" / "conftest.py"


def run(tmp_path: Path, allowed: str) -> subprocess.CompletedProcess[str]:
    (tmp_path / ".ci").mkdir()
    (tmp_path / ".ci" / "allowed-skips").write_text(allowed)
    tests = tmp_path / "tests"
    tests.mkdir()
    (tests / "conftest.py").write_text(CONFTEST.read_text())
    (tests / "test_some.py").write_text(
        "import pytest\n"
        "def test_good(): pass\n"
        "@pytest.mark.skip(reason='no such kernel')\n"
        "def test_skipped(): pass\n"
    )
    return subprocess.run(
        [
            *(sys.executable, "-m", "pytest", "-c", "/dev/null", "--rootdir", tmp_path),
            *("-o", f"pythonpath={HERE}", "--no-unlisted-skips", "-p", "no:cacheprovider", tests),
        ],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=60,
    )


def test_an_unlisted_skip_fails_the_run(tmp_path: Path) -> None:
    done = run(tmp_path, "# nothing\n")
    assert done.returncode == 1
    assert "UNLISTED SKIP tests/test_some.py::test_skipped" in done.stdout


def test_a_listed_skip_passes(tmp_path: Path) -> None:
    done = run(tmp_path, "tests/test_some.py::test_skipped  # needs a kernel of its own\n")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("line", ["tests/test_some.py::*", "tests/test_some.py::* #  "])
def test_a_listed_skip_without_a_reason_is_an_error(tmp_path: Path, line: str) -> None:
    assert run(tmp_path, f"{line}\n").returncode not in (0, 1)
