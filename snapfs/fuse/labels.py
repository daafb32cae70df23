"""Labels of SELinux where there is no SELinux.

`ls -l` asks for the label of each file, and the kernel keeps no answer about an attribute that is
not there, for no FUSE file system. Who is told that labels are not supported (EOPNOTSUPP in place
of ENODATA) asks no more in the whole mount. A label that a layer has is shown as it is to
who asks for it. Where SELinux is active the kernel answers by its policy, or asks whether labels
are supported.
"""

from __future__ import annotations

import errno
from pathlib import Path

LABEL = b"security.selinux"
_FILE_SYSTEM = Path("/sys/fs/selinux")
"""A mount point that the kernel makes where SELinux is active."""


def are_unknown() -> bool:
    """Say whether nobody on this machine knows what a label is."""
    return not _FILE_SYSTEM.exists()


def absence(name: bytes) -> int:
    """Return the errno for an attribute that a file does not have."""
    return errno.EOPNOTSUPP if name == LABEL and are_unknown() else errno.ENODATA
