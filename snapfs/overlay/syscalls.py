"""Linux calls that the os module does not offer. No rules of the overlay live here.

Every function raises OSError with the errno of the call and the name it was about.
"""

from __future__ import annotations

from ._copies import copy_data, is_being_written, rename, set_times, set_times_of

__all__ = [
    "AT_FDCWD",
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "copy_data",
    "is_being_written",
    "rename",
    "set_times",
    "set_times_of",
]

RENAME_NOREPLACE = 1
RENAME_EXCHANGE = 2
RENAME_WHITEOUT = 4

AT_FDCWD = -100
