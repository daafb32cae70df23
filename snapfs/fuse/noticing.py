"""Notice when a handler first waits."""

from __future__ import annotations

from collections.abc import Callable, Coroutine, Generator
from typing import Any, TypeVar

Result = TypeVar("Result")


def noticing(
    waiting: Callable[[], None], handling: Coroutine[Any, Any, Result]
) -> Generator[Any, Any, Result]:
    """Drive a handler by hand; call `waiting` once, as soon as it waits for something."""
    try:
        wish = handling.send(None)
        waiting()
        while True:
            wish = handling.send((yield wish))
    except StopIteration as finished:
        return finished.value  # type: ignore[no-any-return]
    finally:
        handling.close()
