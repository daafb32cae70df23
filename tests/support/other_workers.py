"""Workers that are started with a module of the tests' own in place of the real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import process


@contextmanager
def workers_begin_in(module: str, patch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """Start workers by `main` of a module of tests.support meanwhile; sys.argv[1] is the real one.

    What is patched by what is given goes with the block.
    """
    real = process._command
    code = (
        f"import sys; sys.path.insert(0, {str(Path(__file__).parents[2])!r}); "
        f"from tests.support import {module} as it; it.main()"
    )

    def command(*args: Any) -> list[str]:
        python, *_, replaced = (given := real(*args))[:4]
        return [python, "-P", "-c", code, replaced, *given[4:]]

    with patch.context() as patched:
        patched.setattr(process, "_command", command)
        yield patched
