"""Objects that are open until `close`, as the targets of `with`."""

from __future__ import annotations

from types import TracebackType
from typing import Self


class Closing:
    """A `with` block over it ends with its `close`, however the block ends."""

    def close(self) -> None:
        """Let go of what is held; subclasses say what, and that a second call does nothing."""
        raise NotImplementedError

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()
