"""A worker that does not wait until copies are durable, as that of `snapfs-overlay -o volatile`."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

import pytest

from tests.support.other_workers import workers_begin_in


@contextmanager
def workers_leave_syncing(patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start such workers meanwhile."""
    with workers_begin_in("unsynced_worker", patch):
        yield


def main() -> None:
    """Be a worker."""
    from snapfs.fuse import lane, worker
    from snapfs.overlay import TreeSpec

    lane.TreeSpec = partial(TreeSpec, sync=False)  # type: ignore[misc, assignment]
    del sys.argv[1]
    sys.exit(worker.main())
