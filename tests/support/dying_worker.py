"""A worker that ends itself, as a kill -9 would, at a point that a test names.

The test writes the name of a point into the file `ORDER` names; the first worker that comes to the
point removes the file and dies. Points:

    begun      a request was found to need a note, and has none yet
    intended   it is noted, and has had no effect
    done       it has had its effect, and is not answered
    counted    an open or a release is counted, and not answered
    told       an open past a copy is about to be refused, which the kernel tries again
    past       it came again, and is not counted
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from pathlib import Path
from typing import Any

import pytest

from tests.support.other_workers import workers_begin_in

ORDER = "SNAPFS_TEST_DIES_AT"


@contextmanager
def workers_die_to_order(order: Path, patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Start such workers meanwhile, which look at `order`."""
    with workers_begin_in("dying_worker", patch) as patched:
        patched.setenv(ORDER, str(order))
        yield


def main() -> None:
    """Be a worker."""
    from snapfs.fuse import worker
    from snapfs.fuse.backing import BackingIds
    from snapfs.fuse.hot import Hot
    from snapfs.fuse.inflight import Noting
    from snapfs.fuse.reopening import Reopening

    Noting.__enter__ = _dying("begun", Noting.__enter__)  # type: ignore[method-assign]
    Noting.intend = _dying("intended", Noting.intend)  # type: ignore[method-assign]
    Noting.__exit__ = _dying("done", Noting.__exit__)  # type: ignore[method-assign]
    BackingIds.enter = _dying("counted", BackingIds.enter)  # type: ignore[method-assign]
    BackingIds.leave = _dying("counted", BackingIds.leave)  # type: ignore[method-assign]
    told = _dying("told", Reopening.is_past_names, only=False)
    Reopening.is_past_names = _dying("past", told, only=True)  # type: ignore[method-assign]
    Hot.passes = _nothing  # type: ignore[method-assign]  # Python answers all opens, to be ordered
    del sys.argv[1]
    sys.exit(worker.main())


def _nothing(*args: object) -> None:
    pass


def _dying(point: str, method: Callable[..., Any], only: bool | None = None) -> Callable[..., Any]:
    """Have a method die at a point, when it has run; with `only` if it says so."""
    order = Path(os.environ[ORDER])

    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        is_it = only is None or result is only
        if is_it and order.exists() and order.read_text() == point:
            order.unlink()
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return wrapped
