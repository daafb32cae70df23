"""C that reads what a dead worker left, as programs of libFuzzer, with sanitizers (clang).

The targets are tests/fuzz/c/*.c; each includes the source that it feeds.
"""

from __future__ import annotations

import subprocess
import sysconfig
from pathlib import Path

SOURCES = {it.name: it for it in sorted((Path(__file__).parent / "c").glob("*.c"))}
_FLAGS = (
    "-g",
    "-O1",
    "-fsanitize=fuzzer,address,undefined",
    "-fno-sanitize-recover=undefined",
)


def build(name: str, into: Path) -> Path:
    """Compile a target; return the program, which takes libFuzzer's options."""
    program = into / Path(name).stem
    include, libraries, version = (
        sysconfig.get_config_var(it) for it in ("INCLUDEPY", "LIBDIR", "LDVERSION")
    )
    python = (f"-I{include}", f"-L{libraries}", f"-lpython{version}")
    subprocess.run(["clang", *_FLAGS, "-o", program, SOURCES[name], *python], check=True)
    return program
