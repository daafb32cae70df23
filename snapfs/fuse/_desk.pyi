"""Answers for one tree what needs no rules (in C)."""

from collections.abc import Callable, Sequence

from snapfs.overlay import Dir, Handed
from snapfs.overlay._names import Index

def descriptors() -> int:
    """How many files are open that desks read and write in the fast lane."""

class Desk:
    """What it declines (None) is to be asked of Python; what it answers, it has counted."""

    def __init__(
        self,
        handed: Handed,
        timeout_s: float,
        caches_absence: bool,
        xattrs: bool,
        entry_of: Callable[[Dir, bytes], bytes | None],
        main: tuple[int, int],
    ) -> None:
        """`xattrs`: attributes of files are for all to see. `entry_of` counts a lookup and returns
        the entry of what needs a node, None for what is gone. `main` is device and base of the
        numbers that are shown as they are (identity.Numbers)."""
    def lookup(self, parent: int, name: bytes, /) -> bytes | None:
        """The reply to LOOKUP; FileNotFoundError for an absence that is not to be kept."""
    def list(self, ino: int, after: int, size: int, plus: bool, pid: int, /) -> bytes | None:
        """The reply to READDIR, or with `plus` to READDIRPLUS, of at most `size` bytes. That has
        attributes where what the thread `pid` lists is looked up (listers.c)."""
    def list_known(
        self, directory: Dir, index: Index, ino: int, above: int, after: int, size: int, /
    ) -> tuple[bytes, Sequence[int]]:
        """The reply to READDIRPLUS of a directory with an upper part that shows what is in `index`,
        and the nodes in it that are to be counted; the others were, by `entry_of`."""
    refuses_labels: bool
    """Who asks for a label of SELinux that is not there is told that there are none (labels.py)."""
    passes_upper: bool
    """Files of the upper layer may be opened past us."""
    takes_writers: bool
    """... and for writing, now."""
    takes_names: bool
    """Files may be made and removed there, now."""
    awaits_space: bool
    """Set when a big file was removed and there is little other room: then neither of these is so
    until Python says it again, which waits for what that file holds."""
    order: int
    """What the data of a copy waits for (overlay.ordering)."""
    leaves_data: bool
    """A change of attributes copies none; the upper layer is marked for that."""
    leaves_first: bool
    """It is not marked yet: the first such change is left to Python."""
    leaves_forgets: bool
    """A FORGET of what an earlier worker gave the kernel may be late: Python decides what it takes
    back, also of a file without a node."""
    keeps_in: int
    """Descriptor of the directory where removed files are kept for whoever uses them; or -1."""
    def note(
        self,
        ino: int,
        fd: int,
        path: bytes,
        kind: int,
        is_upper: bool,
        parent: int,
        data_fd: int = ...,
        data: bytes = ...,
        /,
    ) -> None:
        """Note where the file of a node is that Python keeps, a regular one or a symbolic link
        (`kind`: S_IFMT bits), so that its attributes are answered and it is opened without Python.
        This is a name of it that Python knows, in the directory `parent`; `fd` lives as long as the
        tree. What is found there later counts only if it is the same file. Of a metadata-only copy
        the data is at `data` below `data_fd`."""
    def note_directory(self, ino: int, fd: int, path: bytes, index: Index | None, /) -> None:
        """Likewise for a directory of the upper layer, `index` being the names of its lower ones if
        it has any: names that are absent are answered too."""
    def strike(self, ino: int, /) -> None:
        """Forget that again; no error if it was not noted."""
    def strike_all(self) -> None:
        """Forget all notes."""
    def begin(self) -> None:
        """Answer in the fast lane, if there is one."""
    def end(self) -> None:
        """Answer there no more; to be called before the tree is closed."""
