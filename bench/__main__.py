"""Run benchmarks and print Markdown; docs/benchmarks.md holds such a run.

    python -m bench                         which there are
    python -m bench all                     all of the page, one after the other
    python -m bench NAME [ARGUMENTS]        one of them; its --help says which arguments it takes

The figures are those of a machine and a moment; what counts are the ratios, taken in one run.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

sys.path.insert(0, str(Path(__file__).parents[1]))

from bench import ending

SCRIPTS = {
    "overlay": ("Files, side by side", "overlay.py"),
    "memory": ("Memory", "memory.py"),
    "fairness": ("Waiting while a large file is copied up", "fairness.py"),
    "containers": ("Containers", "containers.py"),
    "calls": ("Calls of the snapshots service", "metastore.py"),
    "scaling": ("Cost of a metastore operation by number of snapshots", "metastore_scaling.py"),
    "store": ("The store by itself", "store.py"),
    "diff": ("Layers of a small change", "diff.py"),
    "sync": ("Moving a volume to another host", "sync.py"),
    "starting": ("How long killed processes are missed", "starting.py"),
    "gc": ("Garbage collection among many objects", "gc.py"),
}
ASIDE = {
    "usage": "usage.py",
    "operations": "overlay_operations.py",
}
"""Those that are not on the page."""
END_TIMEOUT_S = 300

_HEAD = """\
# Benchmarks

What `make bench` printed: {system}, {cores} cores, Python {python}. Each table is one run, in
which the systems take turns; the right-hand columns are ratios to kernel overlayfs. A ratio of
times below 1x, and a ratio of rates above 1x, is faster than overlayfs.
"""


def main() -> None:
    """Run one script as it is, or say which there are."""
    ending.end_on_signals()
    scripts = {**{name: script for name, (_, script) in SCRIPTS.items()}, **ASIDE}
    match sys.argv[1:]:
        case [] | ["-h" | "--help"]:
            print(__doc__)
            for name, script in scripts.items():
                about = _explanation(Path(__file__).with_name(script)).splitlines()[0]
                print(f"  {name:<12}{about}")
        case ["all"]:
            run_page()
        case [name, *arguments] if name in scripts:
            run(scripts[name], arguments, None)
        case [name, *_]:
            sys.exit(f"no benchmark {name!r}; there are all, {', '.join(scripts)}")


def run_page() -> None:
    """Run all one after the other with a page around them."""
    head = _HEAD.format(
        system=platform.platform(terse=True),
        cores=os.cpu_count(),
        python=platform.python_version(),
    )
    print(head, flush=True)
    for title, script in SCRIPTS.values():
        printed = run(script, (), subprocess.PIPE)
        path = Path(__file__).with_name(script)
        print(f"## {title}\n\n{_explanation(path)}\n\n{_body(printed)}\n", flush=True)


def run(script: str, arguments: Sequence[str], output: int | IO[str] | None) -> str:
    """Run a script in a process of its own, which is ended in order when this one is."""
    here = Path(__file__)
    argv = [sys.executable, here.with_name(script), *arguments]
    child = subprocess.Popen(argv, stdout=output, text=True, cwd=here.parents[1])
    try:
        printed: str = child.communicate()[0]
    finally:
        if child.poll() is None:
            child.terminate()
            child.wait(END_TIMEOUT_S)
    if child.returncode:
        sys.exit(child.returncode)
    return printed


def _body(printed: str) -> str:
    """Return tables as they are, other output as preformatted text."""
    printed = printed.strip()
    return printed if "| --- |" in printed else f"```\n{printed}\n```"


def _explanation(path: Path) -> str:
    """Return the docstring of a script, which says what it measures."""
    return path.read_text().split('"""')[1].strip()


if __name__ == "__main__":
    main()
