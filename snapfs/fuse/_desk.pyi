"""Answers for one tree what needs no rules (in C)."""

from collections.abc import Callable

from snapfs.overlay import Dir, Handed

class Desk:
    """What it declines (None) is to be asked of Python; what it answers, it has counted."""

    def __init__(
        self,
        handed: Handed,
        timeout_s: float,
        caches_absence: bool,
        xattrs: bool,
        entry_of: Callable[[Dir, bytes], bytes | None],
    ) -> None:
        """`xattrs`: attributes of files are for all to see. `entry_of` counts a lookup and returns
        the entry of what needs a node, None for what is gone."""
    def lookup(self, parent: int, name: bytes, /) -> bytes | None:
        """The reply to LOOKUP; FileNotFoundError for an absence that is not to be kept."""
    def list(self, ino: int, after: int, size: int, plus: bool, /) -> bytes | None:
        """The reply to READDIR, or with `plus` to READDIRPLUS, of at most `size` bytes."""
    def begin(self) -> None:
        """Answer in the fast lane, if there is one."""
    def end(self) -> None:
        """Answer there no more; to be called before the tree is closed."""
