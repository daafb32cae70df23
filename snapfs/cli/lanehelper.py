"""`mount.fuse.snapfs`: what mount(8) runs for the type fuse.snapfs, which it can neither mount nor
remount.

Without it fuse3's `mount.fuse` would run `snapfs` with arguments that are none of its commands.
"""

from __future__ import annotations

import shlex
import sys

PROGRAM = "mount.fuse.snapfs"
WRONG_USE = 1


def main() -> None:
    """Say what mounts, and what changes a mount; exit status 1."""
    given = [it for it in sys.argv[1:] if not it.startswith("-")]
    target = shlex.quote(given[1]) if len(given) > 1 else "MOUNTPOINT"
    print(
        f"{PROGRAM}: {target}: `snapfs serve` and `snapfs mount` make mounts of this type, with "
        f"options of their own; `mount -i -o remount,bind,ro {target}` makes one read-only, and "
        "the same with rw writable again",
        file=sys.stderr,
    )
    sys.exit(WRONG_USE)


if __name__ == "__main__":
    main()
