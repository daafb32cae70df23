"""A worker that does not wait until copies are durable, as that of `snapfs-overlay -o volatile`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import process

_CODE = (
    "import sys; sys.path.insert(0, {!r}); from tests.support import unsynced_worker as it; "
    "it.main()"
)


@contextmanager
def workers_leave_syncing(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start such workers meanwhile."""
    real = process._command
    code = _CODE.format(str(Path(__file__).parents[2]))

    def command(*args: Any) -> list[str]:
        python, *_, module = (given := real(*args))[:4]
        return [python, "-P", "-c", code, module, *given[4:]]

    with patch.context() as patched:
        patched.setattr(process, "_command", command)
        yield


def main() -> None:
    """Be a worker."""
    from snapfs.fuse import lane, worker
    from snapfs.overlay import TreeSpec

    lane.TreeSpec = partial(TreeSpec, sync=False)  # type: ignore[misc, assignment]
    del sys.argv[1]
    sys.exit(worker.main())
