"""Calls of the system that fail in a process, or end it, at the border of libc: failing_calls.c.

A program that is started with `preloaded` may fork; in the child `fail` or `kill` chooses the call.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(directory: Path) -> Path:
    """Compile the library into a directory."""
    library = directory / "failing_calls.so"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-nonnull-compare")
    subprocess.run(["gcc", *flags, "-o", library, SOURCE], check=True, timeout=60)
    return library


def run(library: Path, module: str, *arguments: str | Path) -> dict[str, int]:
    """Run a module whose calls can fail; return what its last line says: how many of them were
    `refused`, and how often it was `done` all the same, or what else it counted."""
    done = subprocess.run(
        [sys.executable, "-m", module, *arguments],
        env=preloaded(library),
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=800,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


def preloaded(library: Path) -> dict[str, str]:
    """Return the environment of a program whose calls can fail."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def fail(under: Path, at: int, error: int, *, onwards: bool) -> None:
    """Let the `at`th call that changes something below `under` fail, and all after it if asked."""
    ctypes.CDLL(None).calls_fail(os.fsencode(under), at, error, int(onwards))


def lie(under: Path, at: int, error: int) -> None:
    """Let the `at`th call that changes something below `under` say that it failed, and all after it
    fail."""
    ctypes.CDLL(None).calls_lie(os.fsencode(under), at, error)


def kill(at: int, status: int) -> None:
    """End the process with an exit status in place of its `at`th call that changes something."""
    ctypes.CDLL(None).calls_kill(at, status)


def counted() -> int:
    """Return how many such calls there were."""
    return int(ctypes.CDLL(None).calls_counted())
