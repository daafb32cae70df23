"""The command lines of the benchmarks: each is `python -m bench NAME`, with its module's words."""

from __future__ import annotations

import argparse
from collections.abc import Sequence


def parser(name: str, doc: str | None) -> argparse.ArgumentParser:
    """Return a parser whose --help shows the docstring of a benchmark as it is."""
    return argparse.ArgumentParser(
        prog=f"python -m bench {name}",
        description=doc,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def sizes(name: str, doc: str | None, default: Sequence[int], what: str) -> Sequence[int]:
    """Return the numbers that a command line gives, each of which is measured; or the default."""
    made = parser(name, doc)
    usual = " ".join(map(str, default))
    made.add_argument("sizes", type=int, nargs="*", metavar="N", help=f"{what} ({usual})")
    given: list[int] = made.parse_args().sizes
    return given or default
