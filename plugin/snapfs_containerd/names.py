"""What the stanza in containerd's configuration may be called."""

from __future__ import annotations

import re

NAME = "snapfs"
"""The usual name: proxy_plugins.snapfs."""

_ACCEPTED = re.compile(rf"{NAME}(-[A-Za-z0-9_-]+)?")


def is_accepted(name: str) -> bool:
    """Say whether a snapshotter of this name is ours: `snapfs`, or `snapfs-` and a suffix.

    The suffix lets one containerd use several snapfs daemons, each under a stanza of its own.
    """
    return _ACCEPTED.fullmatch(name) is not None
