"""Images mounted through loop devices, which others take and let go at the same time."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

TRIES = 50


def mount_image(image: Path, target: Path, *options: str) -> None:
    """Mount an image; AssertionError has what mount(8) said."""
    command = ["mount", "-o", ",".join(("loop", *options)), str(image), str(target)]
    for _ in range(TRIES):
        done = subprocess.run(command, capture_output=True, text=True)
        if "loop device" not in done.stderr:
            break
        time.sleep(0.1)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"
