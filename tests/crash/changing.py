"""The processes that change directories in parallel, for test_parallel_changes.

    python -m tests.crash.changing change TOP NUMBER SEED SECONDS [--passthrough] [--set-id]
    python -m tests.crash.changing move TOP SEED SECONDS
    python -m tests.crash.changing forget MOUNTPOINT SECONDS

Each says "ready", begins at a line on its input, and says "done N" after so many changes in so many
seconds; `change` has opened the directories of TOP by then, so that they may be moved, and at the
next line looks at everything again and says "well". Status 1 when a call fails or shows something
else than expected.
"""

from __future__ import annotations

import argparse
import os
import random
import sys
import time
from collections.abc import Callable
from pathlib import Path

from tests.crash.expected_files import DIRECTORIES
from tests.crash.parallel_changes import Program
from tests.support.dentries import drop_dentries_of

MOVE_EVERY_S = 0.03
FORGET_EVERY_S = 0.2


def change(chosen: argparse.Namespace) -> None:
    os.umask(0)
    program = Program(
        chosen.top,
        chosen.number,
        chosen.seed,
        passthrough=chosen.passthrough,
        set_id=chosen.set_id,
    )
    try:
        repeat(program.change, chosen.seconds)
        sys.stdin.readline()
        program.names.check_all()
    except BaseException:
        print("last:", *program.last, sep="\n  ", flush=True)
        raise
    print("well", flush=True)


def move(chosen: argparse.Namespace) -> None:
    """Move the shared directories to and fro, and leave them where they were."""
    dice = random.Random(chosen.seed)
    places = [chosen.top / f"d{it}" for it in range(DIRECTORIES)]

    def one() -> None:
        nth = dice.randrange(DIRECTORIES)
        to = chosen.top / dice.choice([f"d{nth}", f"a/m{nth}", f"b/m{nth}"])
        os.rename(places[nth], to)
        places[nth] = to
        time.sleep(MOVE_EVERY_S)

    repeat(one, chosen.seconds)
    for nth, place in enumerate(places):
        os.rename(place, chosen.top / f"d{nth}")


def forget(chosen: argparse.Namespace) -> None:
    def one() -> None:
        drop_dentries_of(chosen.mountpoint)
        time.sleep(FORGET_EVERY_S)

    repeat(one, chosen.seconds)


def repeat(act: Callable[[], object], seconds: float) -> None:
    print("ready", flush=True)
    sys.stdin.readline()
    count, end_s = 0, time.monotonic() + seconds
    while time.monotonic() < end_s:
        act()
        count += 1
    print(f"done {count}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="tests.crash.changing")
    kinds = parser.add_subparsers(required=True)
    changing = kinds.add_parser("change", help="change files and directories of its own")
    changing.set_defaults(run=change)
    changing.add_argument("top", type=Path)
    changing.add_argument("number", type=int, help="of this program among those on the directories")
    changing.add_argument("seed", type=int)
    changing.add_argument("seconds", type=float)
    changing.add_argument("--passthrough", action="store_true", help="readers keep lower files")
    changing.add_argument("--set-id", action="store_true", help="use set-id bits as well")
    moving = kinds.add_parser("move", help="move the directories that programs change")
    moving.set_defaults(run=move)
    moving.add_argument("top", type=Path)
    moving.add_argument("seed", type=int)
    moving.add_argument("seconds", type=float)
    forgetting = kinds.add_parser("forget", help="have the kernel forget names of a mount")
    forgetting.set_defaults(run=forget)
    forgetting.add_argument("mountpoint", type=Path)
    forgetting.add_argument("seconds", type=float)
    chosen = parser.parse_args()
    chosen.run(chosen)


if __name__ == "__main__":
    main()
