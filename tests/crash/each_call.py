"""Changes of a root of which each call fails in turn, in a program of its own.

    python -m tests.crash.each_call BASE HOW STRIDE

A child opens a root, prepares, writes, labels, commits and removes, and one of its calls below the
root fails; HOW is as in tests.backup.each_call, whose library and rules these are. What the child
was told is done must be so when the next one opens the root, and the same changes must end.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

from snapfs import seals, tables
from snapfs.model import AlreadyExists, NotFound, SnapfsError
from snapfs.snapshots import NoTrees, Snapshotter
from tests.backup.each_call import MOST_CALLS, Sweep, copied

LABEL = {"k": "v" * 4000}
STEPS: dict[str, Callable[[Snapshotter], object]] = {
    "view": lambda opened: opened.view("look", "base"),
    "prepare": lambda opened: opened.prepare("new", "base"),
    "write": lambda opened: (upper(opened, "new") / "file").write_bytes(b"data" * 1000),
    "label": lambda opened: opened.update("base", LABEL),
    "commit": lambda opened: opened.commit("new", "made"),
    "remove": lambda opened: opened.remove("going"),
}


def upper(opened: Snapshotter, key: str) -> Path:
    return opened.root / "layers" / str(opened.stat(key).id) / "fs"


def opened(root: Path) -> Snapshotter:
    return Snapshotter(root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS)


def change(root: Path, told: Path) -> None:
    """Do all steps that are not done yet; `told` says which of them were acknowledged."""
    with opened(root) as snapshotter, told.open("a") as out:
        for name, step in STEPS.items():
            try:
                step(snapshotter)
            except (AlreadyExists, NotFound):
                if name in acknowledged(told):
                    continue
                if not is_done(snapshotter, name):
                    raise
            print(name, file=out, flush=True)


def acknowledged(told: Path) -> list[str]:
    return told.read_text().split() if told.exists() else []


def is_done(snapshotter: Snapshotter, name: str) -> bool:
    found = {it.name: it for it in snapshotter.walk()}
    match name:
        case "view":
            return "look" in found
        case "prepare":
            return "new" in found or "made" in found
        case "write":
            return True  # what is not committed may be lost
        case "label":
            return found["base"].labels == LABEL
        case "commit":
            return "made" in found and "new" not in found
        case _:
            return "going" not in found


def sweep(base: Path, how: str, stride: int) -> Sweep:
    kept, root, told = base / "kept", base / "root", base / "told"
    with opened(kept) as snapshotter:
        for name in ("base", "going"):
            snapshotter.prepare(f"{name}-key")
            (upper(snapshotter, f"{name}-key") / "file").write_bytes(name.encode() * 1000)
            snapshotter.commit(f"{name}-key", name)
        digest = seals.measure(upper(snapshotter, "base"))
    done = Sweep(root, how, loses="did not reach the disk")
    for at in range(1, MOST_CALLS, stride):
        copied(kept, root)
        told.unlink(missing_ok=True)
        if not done.attempt(at, lambda: change(root, told)):
            break
        check(root, told, digest)
    return done


def check(root: Path, told: Path, digest: bytes) -> None:
    with opened(root) as snapshotter:
        assert snapshotter.cleanup() == ()
        report = snapshotter.fsck()
        assert report.clean, report
        assert seals.measure(upper(snapshotter, "base")) == digest
        for name in acknowledged(told):
            assert is_done(snapshotter, name), f"{name} was acknowledged and is lost"
    if "made" not in names(root):
        (told.parent / "again").unlink(missing_ok=True)
        change(root, told.parent / "again")
    assert names(root) >= {"base", "made"}


def names(root: Path) -> set[str]:
    with opened(root) as snapshotter:
        return {it.name for it in snapshotter.walk()}


def main(base: str, how: str, stride: str) -> None:
    try:
        found = sweep(Path(base), how, int(stride))
    except SnapfsError as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    print(json.dumps({"refused": found.refused, "done": found.done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
