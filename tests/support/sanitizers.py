"""The package with its C built under a sanitizer, Pythons that run it, and what that says."""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
BUILD = "from setuptools import setup; setup(script_args=['-q', 'build_ext', '--inplace', '-j2'])"
BUILT_S = 100.0

MEMORY = "address,undefined"
THREADS = "thread"
LIBRARIES = {MEMORY: "libasan.so", THREADS: "libtsan.so"}
OPTIONS = {"ASAN_OPTIONS": "detect_leaks=0", "UBSAN_OPTIONS": "", "TSAN_OPTIONS": ""}
"""Leaks: what Python keeps until its end would be one."""


@dataclass(frozen=True, slots=True)
class Sanitized:
    """A copy of the package whose C has a sanitizer built in."""

    copy: Path
    sanitizer: str

    @classmethod
    def build(cls, copy: Path, sanitizer: str) -> Sanitized:
        """Make one in a new directory."""
        ours = shutil.ignore_patterns("*.so", "*.pyc.*")  # half-written by who runs beside us
        for name in ("snapfs", "plugin"):
            shutil.copytree(ROOT / name, copy / name, ignore=ours)
        for name in ("pyproject.toml", "README.md", "LICENSE"):
            shutil.copy(ROOT / name, copy)
        flags = f"-O1 -g -fno-omit-frame-pointer -fsanitize={sanitizer} -fno-sanitize-recover=all"
        subprocess.run(
            [sys.executable, "-c", BUILD],
            env={**os.environ, "CFLAGS": flags},
            cwd=copy,
            check=True,
            timeout=BUILT_S,
        )
        return cls(copy, sanitizer)

    def python(self, place: Path, *preloaded: Path) -> Path:
        """Make an interpreter that runs this copy, with libraries loaded before all others; what is
        found goes to files beside it."""
        place.mkdir()
        file = f"-print-file-name={LIBRARIES[self.sanitizer]}"
        library = subprocess.check_output(["gcc", file], text=True).strip()
        environ = {name: f"{it}:log_path={place}/said" for name, it in OPTIONS.items()}
        environ |= {
            "LD_PRELOAD": ":".join([library, *map(str, preloaded)]),
            "PYTHONPATH": str(self.copy),
            "PYTHONMALLOC": "malloc",
        }
        settings = [f"{name}={value}" for name, value in environ.items()]
        program = place / "python"
        command = shlex.join(["exec", "env", *settings, sys.executable])
        program.write_text(f'#!/bin/sh\n{command} "$@"\n')
        program.chmod(0o755)
        return program


def said(python: Path) -> str:
    """All that was found in processes of such an interpreter."""
    return "\n".join(it.read_text() for it in sorted(python.parent.glob("said.*")))
