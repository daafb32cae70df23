"""`python -m tests.fuzz.campaign SECONDS [TARGET...]`: libFuzzer on each target, for so long each.

Python's targets are driven by atheris, those in C by clang. What it finds is written to a file
`crash-...` in the working directory; TARGETS[name] on its bytes, or build/fuzz/NAME with the file,
shows the fault again. `programs` feeds damaged requests of programs, as root, and names the seed.
Prints a table of how many inputs each had.
"""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from tests.fuzz import native

BUILD = Path("build/fuzz")
PROGRAMS = "programs"
TARGET = "--target"


def fuzz(name: str, arguments: list[str]) -> None:
    import atheris

    with atheris.instrument_imports(include=["snapfs"]):
        from tests.fuzz.targets import TARGETS
    atheris.Setup([sys.argv[0], *arguments], TARGETS[name])
    atheris.Fuzz()


def main(seconds: str, *names: str) -> int:
    from tests.fuzz.targets import TARGETS

    rows, failed = ["| target | inputs | failed |", "|---|---|---|"], 0
    for name in names or (*TARGETS, *native.SOURCES, PROGRAMS):
        print(f"{name}: {seconds} s", flush=True)
        runs, failure = feed(name, seconds)
        rows.append(f"| {name} | {runs} | {failure:d} |")
        failed += failure
    print(*rows, sep="\n")
    return min(failed, 1)


def feed(name: str, seconds: str) -> tuple[str, bool]:
    """Feed one target; return how many inputs it had, and whether one made it fail."""
    command = [*_program(name), f"-max_total_time={seconds}", "-max_len=4096"]
    runs = "?"
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as fuzzer:
        assert fuzzer.stderr is not None
        for line in fuzzer.stderr:
            sys.stderr.write(line)
            if said := re.match(r"Done (\d+) runs", line):
                runs = said[1]
    return runs, fuzzer.returncode != 0


def _program(name: str) -> list[str]:
    if name == PROGRAMS:
        return [sys.executable, "-m", "tests.fuzz.programs"]
    if name not in native.SOURCES:
        return [sys.executable, "-m", "tests.fuzz.campaign", TARGET, name]
    BUILD.mkdir(parents=True, exist_ok=True)
    return [str(native.build(name, BUILD))]


if __name__ == "__main__":
    if sys.argv[1:2] == [TARGET]:
        fuzz(sys.argv[2], sys.argv[3:])
    else:
        sys.exit(main(*sys.argv[1:]))
