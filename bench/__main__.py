"""Run every benchmark and print one page in Markdown; docs/benchmarks.md holds such a run.

The figures are those of a machine and a moment; what counts are the ratios, taken in one run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

SCRIPTS = (
    ("Containers", "containers.py"),
    ("Calls of the snapshots service", "metastore.py"),
    ("Cost of a metastore operation by number of snapshots", "metastore_scaling.py"),
    ("The store by itself", "store.py"),
    ("Files", "files.py"),
)

_HEAD = """\
# Benchmarks

What `make bench` printed: {system}, {cores} cores, Python {python}. Each table is one run, in
which the systems take turns; the right-hand columns are ratios to kernel overlayfs. A ratio of
times below 1x, and a ratio of rates above 1x, is faster than overlayfs.
"""


def main() -> None:
    """Run the scripts one after the other, each in a process of its own."""
    head = _HEAD.format(
        system=platform.platform(terse=True),
        cores=os.cpu_count(),
        python=platform.python_version(),
    )
    print(head, flush=True)
    for title, script in SCRIPTS:
        path = Path(__file__).with_name(script)
        done = subprocess.run([sys.executable, path], stdout=subprocess.PIPE, check=True, text=True)
        print(f"## {title}\n\n{_explanation(path)}\n\n{_body(done.stdout)}\n", flush=True)


def _body(printed: str) -> str:
    """Return tables as they are, other output as preformatted text."""
    printed = printed.strip()
    return printed if "| --- |" in printed else f"```\n{printed}\n```"


def _explanation(path: Path) -> str:
    """Return the docstring of a script, which says what it measures."""
    return path.read_text().split('"""')[1].strip()


if __name__ == "__main__":
    main()
