"""What is said to an ioctl(2) that a file system does not have."""

from __future__ import annotations

import errno

NO_SUCH = frozenset({errno.ENOTTY, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS})
"""A file system that has another call of this number says EINVAL, a filter of calls ENOSYS."""
