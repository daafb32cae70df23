"""`python -m tests.fuzz.campaign SECONDS [TARGET...]`: atheris on each target, for so long each.

What it finds is written to a file `crash-...` in the working directory; TARGETS[name] on its bytes
shows the fault again.
"""

from __future__ import annotations

import subprocess
import sys

TARGET = "--target"


def fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["snapfs"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def main(seconds: str, *names: str) -> int:
    from tests.fuzz.targets import TARGETS

    failed = 0
    for name in names or TARGETS:
        print(f"{name}: {seconds} s", flush=True)
        command = [sys.executable, "-m", "tests.fuzz.campaign", TARGET, name]
        failed += subprocess.call([*command, f"-max_total_time={seconds}", "-max_len=4096"]) != 0
    return min(failed, 1)


if __name__ == "__main__":
    if sys.argv[1:2] == [TARGET]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(*sys.argv[1:]))
