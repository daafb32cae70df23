"""Names of merged directories, packed (in C)."""

from collections.abc import Callable, Sequence

from snapfs.overlay.node import Dir

api: object

class Index:
    """Merged names of a stack of directories; never changed once built.

    `get` and `items` give what lower.Entry is.
    """

    def __init__(
        self,
        places: Sequence[tuple[bytes, int, bool, bool]],
        main: int,
        low: Callable[[int, int], int],
        hash_bits: int = ...,
    ) -> None: ...
    def get(self, name: bytes, /) -> int | tuple[int, ...] | None: ...
    def after(self, key: int, limit: int, /) -> list[tuple[int, bytes, int]]: ...
    def items(self) -> list[tuple[bytes, int | tuple[int, ...]]]: ...
    def __len__(self) -> int: ...
    def __contains__(self, name: object, /) -> bool: ...

class Handed:
    """Files of one tree that the kernel knows and that have no Node."""

    linked: bool
    protects: bool
    """The upper layer may have immutable and append-only files."""
    protects_below: bool
    """So may lower layers, by attributes."""

    def __init__(self, prefix: int, places: Places | None = None) -> None: ...
    def open(
        self,
        ino: int,
        above: int,
        directory: Dir,
        index: Index,
        places: tuple[tuple[int, bytes], ...],
        /,
    ) -> None: ...
    def close(self, ino: int, /) -> None: ...
    def has_room(self, ino: int, /) -> bool: ...
    def take(self, ino: int, /) -> int: ...
    def claim(self, ino: int, /) -> None: ...
    def disclaim(self, ino: int, /) -> None: ...
    def peek(self, ino: int, /) -> tuple[Dir, bytes, bool] | None:
        """Return directory and name of a file, and whether that name, its only one, is gone."""

    def forget(self, ino: int, count: int, /) -> int: ...
    def touched(self) -> list[int]:
        """Return the numbers of files whose data was read."""
    def clear(self) -> None: ...
    def moved(self) -> None:
        """Say that a directory has moved: what was noted by path may be another name now."""
    @property
    def total(self) -> int: ...
    @property
    def rooms(self) -> int: ...
    def __len__(self) -> int: ...

class Places:
    """In which directory each file is that the kernel knows, by numbers; a hint.

    The memory behind `fd` outlives the process: what it holds then is found by the next one.
    """

    def __init__(self, fd: int) -> None: ...
    @property
    def damaged(self) -> bool:
        """Whether what was left made no sense; then it is gone."""
    @property
    def is_short(self) -> bool:
        """Whether numbers may be missing that were noted: so it stays, for later processes too."""
    def lose(self) -> None:
        """Make it so."""
    def note(self, ino: int, parent: int, /) -> None: ...
    def drop(self, ino: int, /) -> None: ...
    def get(self, ino: int, /) -> int:
        """Return the number of the directory, 0 when it is not known."""
    def is_inherited(self, ino: int, /) -> bool:
        """Whether the kernel may have references to a number that nobody has counted: it was there
        when this process began, and was not dropped since; or so many as are missing may be."""
    def below(self, root: int, low_bits: int, /) -> list[int]:
        """Return the numbers that are like `root` but for their lower bits."""
    def take_most(self) -> int:
        """Return how many there were at most since this was asked before."""

    def __len__(self) -> int: ...
