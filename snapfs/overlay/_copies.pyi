"""Copies of files, and calls of Linux that the os module does not offer (in C).

Every function raises OSError with the errno of the call, and the name that it was about.
"""

class Source:
    """A regular file of a lower layer, open for its copy-up; it never changes."""

    def __new__(cls, dir_fd: int, path: bytes, /) -> Source: ...
    @property
    def size_bytes(self) -> int: ...
    @property
    def allocated_bytes(self) -> int: ...
    @property
    def nlink(self) -> int: ...
    @property
    def attributes(self) -> int:
        """STATX_ATTR_*."""
    @property
    def is_metacopy(self) -> bool:
        """Its data is another file's, below."""
    def fetch(self) -> bool:
        """Take all the data if that is in memory and has no hole, without waiting; whether."""
    def copy(
        self,
        data: Source,
        work_fd: int,
        name: bytes,
        size_bytes: int,
        order: int,
        keeps_mtime: bool,
        ino: bytes,
        protattr: bytes,
        /,
    ) -> bool:
        """Make a file like this one, with so much of the data of `data`: a new name in `work_fd`.

        It gets owner, users' extended attributes, mode, the times (of a file that is cut, not
        that of its last change), the flags `A` and `S`, and of our attributes those that are not
        empty. Returns whether the data is shared with `data`, once what `order` says (Order) was
        waited for. On an error the name may be there.
        """
    def copy_metadata(self, work_fd: int, name: bytes, ino: bytes, /) -> None:
        """Make a metadata-only copy of this file: as `copy`, but a hole of its size and a mark."""
    def close(self) -> None:
        """Idempotent."""

def rename(old_fd: int, old: bytes, new_fd: int, new: bytes, flags: int = 0, /) -> None:
    """Rename `old` to `new`, each relative to a directory descriptor (renameat2(2))."""

def set_times(fd: int, path: bytes, atime_ns: int | None, mtime_ns: int | None, /) -> None:
    """Set the times of `path` (never of what a link points to); None leaves a time as it is."""

def set_times_of(fd: int, atime_ns: int | None, mtime_ns: int | None, /) -> None:
    """Set the times of an open file; None leaves a time as it is."""

def is_being_written(fd: int, /) -> bool:
    """Whether anybody has a file open for writing, or mapped so; `fd` is open for reading only.

    The kernel grants a read lease only when there is nobody (fcntl(2), F_SETLEASE). Its process
    must ignore SIGIO, which tells of somebody who opens the file in that moment.
    """

def copy_data(source: int, target: int, size_bytes: int, /) -> bool:
    """Copy a file's data, holes as holes; share it where the file system can, and return whether
    it does."""
