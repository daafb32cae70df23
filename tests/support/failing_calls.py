"""Calls of the system that fail in a process, at the border of libc: failing_calls.c.

A program that is started with `preloaded` may fork; in the child `fail` chooses the call.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")


def build(directory: Path) -> Path:
    """Compile the library into a directory."""
    library = directory / "failing_calls.so"
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror", "-Wno-nonnull-compare")
    subprocess.run(["gcc", *flags, "-o", library, SOURCE], check=True, timeout=60)
    return library


def preloaded(library: Path) -> dict[str, str]:
    """Return the environment of a program whose calls can fail."""
    return {**os.environ, "LD_PRELOAD": str(library)}


def fail(under: Path, at: int, error: int, *, onwards: bool) -> None:
    """Let the `at`th call that changes something below `under` fail, and all after it if asked."""
    ctypes.CDLL(None).calls_fail(os.fsencode(under), at, error, int(onwards))


def counted() -> int:
    """Return how many such calls there were."""
    return int(ctypes.CDLL(None).calls_counted())
