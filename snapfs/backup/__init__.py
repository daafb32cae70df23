"""Copies of a root: taken beside a live service, incremental, verified, and restored.

See docs/backup.md.
"""

from snapfs.backup.damaged import Damaged, DamagedContent
from snapfs.backup.layout import Record
from snapfs.backup.progress import Progress
from snapfs.backup.restoring import Restored, restore
from snapfs.backup.taking import Taken, take
from snapfs.backup.verifying import verify

__all__ = [
    "Damaged",
    "DamagedContent",
    "Progress",
    "Record",
    "Restored",
    "Taken",
    "restore",
    "take",
    "verify",
]
