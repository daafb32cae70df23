"""The channel under AddressSanitizer and UBSan, fed with damaged requests."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "snapfs" / "fuse" / "channel_src"
NEED_PYTHON = {"module.c", "hotmodule.c", "openedmodule.c"}
ROUNDS = 60_000
DEADLINE_S = 100


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness and all sources that do without Python, with sanitizers built in."""
    program = tmp_path_factory.mktemp("sanitized") / "channel_stream"
    sources = [it for it in SOURCES.glob("*.c") if it.name not in NEED_PYTHON]
    subprocess.run(
        [
            "gcc",
            "-std=c11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-o",
            program,
            HERE / "channel_stream.c",
            *sources,
            "-lm",
        ],
        check=True,
        timeout=DEADLINE_S,
    )
    return program


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_streams_of_requests_break_nothing(stream: Path, seed: int) -> None:
    done = subprocess.run(
        [stream, str(seed), str(ROUNDS)],
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},  # tables live as long as the process
        cwd=stream.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ROUNDS}\n"
