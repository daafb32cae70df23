"""A backup or a restore of which each call fails in turn, in a program of its own.

    python -m tests.backup.each_call WHAT BASE HOW STRIDE

WHAT is `backup` or `restore`. HOW is `EIO`, `ENOSPC`, `EDQUOT`, or one of them with `+`: then the
calls after it fail, too. BASE is an empty directory. Every STRIDEth call has its turn. Started with
the library of tests.support.failing_calls. Prints how many failed, or ends with a traceback.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from snapfs import backup, tables
from snapfs.model import AlreadyExists, DataLoss, FailedPrecondition, ResourceExhausted, SnapfsError
from snapfs.snapshots import fsck, roots
from snapfs.snapshots.faults import refusing
from tests.backup.conftest import Root
from tests.support import failing_calls
from tests.support.trees import describe, differences

DEADLINE_S = 60.0
MOST_CALLS = 3000
REFUSALS = {"EIO": DataLoss, "ENOSPC": ResourceExhausted, "EDQUOT": ResourceExhausted}
Act = Callable[[], object]


class Sweep:
    """Does an operation again and again, and lets another of its calls fail each time."""

    def __init__(self, under: Path, how: str, *, loses: str = "") -> None:
        """`loses` is what a message says where the answer is DataLoss, whatever failed."""
        self._loses = loses
        self._under = under
        self._name = how.rstrip("+")
        self._onwards = how.endswith("+")
        self.refused = self.done = 0

    def attempt(self, at: int, act: Act) -> bool:
        """Do it in a child whose `at`th call fails; False when it made no so many calls."""
        said = self._in_child(at, act)
        assert said is not None, f"call {at}: the child ended without a word"
        if said["calls"] < at:
            assert said["error"] == "", f"call {at}: {said}"
            return False
        if said["error"]:
            is_loss = self._loses and self._loses in str(said["text"])
            expected = DataLoss if is_loss else REFUSALS[self._name]
            assert said["error"] == expected.__name__, f"call {at}: {said}"
            self.refused += 1
        else:
            self.done += 1
        return True

    def _in_child(self, at: int, act: Act) -> dict[str, object] | None:
        reading, writing = os.pipe()
        pid = os.fork()
        if not pid:
            with suppress(BaseException):
                os.close(reading)
                os.write(writing, json.dumps(self._failing(at, act)).encode())
            os._exit(0)
        os.close(writing)
        os.set_blocking(reading, False)
        end = time.monotonic() + DEADLINE_S
        while not os.waitpid(pid, os.WNOHANG)[0]:
            if time.monotonic() > end:
                os.kill(pid, signal.SIGKILL)
                os.waitpid(pid, 0)
                raise AssertionError(f"call {at}: the child hangs")
            time.sleep(0.001)
        raw = os.read(reading, 1 << 16)
        os.close(reading)
        return json.loads(raw) if raw else None

    def _failing(self, at: int, act: Act) -> dict[str, object]:
        error = ""
        failing_calls.fail(self._under, at, getattr(errno, self._name), onwards=self._onwards)
        try:
            with refusing("do it"):
                act()
        except Exception as found:  # noqa: BLE001  # the parent says what is right
            error, text = type(found).__name__, str(found)
        else:
            text = ""
        return {"calls": failing_calls.counted(), "error": error, "text": text}


def copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)


def drafts(place: Path) -> list[Path]:
    return [*place.rglob("*.part"), *place.rglob("links"), *place.rglob("*.new")]


def check_root(root: Path, before: dict[str, object]) -> None:
    assert fsck(root, tables=tables.TABLES, checks=tables.CHECKS).clean
    for number, layer in before.items():
        found = describe(root / "layers" / number / "fs")
        assert differences(found, layer) == [], f"layer {number} has changed"  # type: ignore[arg-type]


def described(root: Path) -> dict[str, object]:
    return {it.name: describe(it / "fs") for it in (root / "layers").iterdir()}


def make(base: Path) -> Root:
    made = Root(base / "root", seals=False)
    made.commit("base")
    made.commit("going", "base")
    return made


def each_call_of_a_backup(base: Path, how: str, stride: int) -> Sweep:
    """Fail a second backup, which has to copy, to replace and to delete."""
    target, kept = base / "target", base / "kept"
    root = make(base)
    blob = root.write_blob(b"one")
    earlier = backup.take(root.path, kept).record
    root.snapshotter.remove("going")
    root.metadata.content.delete("default", blob)
    root.commit("top", "base")
    root.write_blob(b"two")
    assert root.snapshotter.cleanup() == ()
    root.close()
    before, sweep = described(root.path), Sweep(target, how)
    for at in range(1, MOST_CALLS, stride):
        copied(kept, target)
        if not sweep.attempt(at, lambda: backup.take(root.path, target)):
            break
        assert backup.verify(target).revision >= earlier.revision
        check_root(root.path, before)
        done = backup.take(root.path, target)
        assert backup.verify(target) == done.record
        assert len(list((target / "layers").iterdir())) == len(done.record.layers) == 2
        assert len(list((target / "content").glob("*/*"))) == 1
        assert drafts(target) == []
    return sweep


def each_call_of_a_restore(base: Path, how: str, stride: int) -> Sweep:
    target, new = base / "target", base / "new"
    root = make(base)
    root.write_blob(b"one")
    root.snapshotter.prepare("work")
    backup.take(root.path, target)
    root.snapshotter.remove("work")
    assert root.snapshotter.cleanup() == ()
    root.close()
    before, sweep = described(root.path), Sweep(new, how)
    new.mkdir()
    for at in range(1, MOST_CALLS, stride):
        if not sweep.attempt(at, lambda: backup.restore(target, new)):
            break
        backup.verify(target)
        go_on(target, new)
        roots.check_whole(new)
        check_root(new, before)
        assert drafts(new) == []
        assert not (new / roots.RESTORING).exists()
        shutil.rmtree(new)
        new.mkdir()
    return sweep


def go_on(target: Path, new: Path) -> None:
    """See that a root says that it is not whole, unless it is, and let the same command end it."""
    is_marked, is_whole = ((new / name).exists() for name in (roots.RESTORING, "metadata"))
    if is_whole:
        assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
    elif set(os.listdir(new)) - {f"{roots.RESTORING}.part"}:
        expect(FailedPrecondition, lambda: roots.check_whole(new))
    if is_whole and not is_marked:  # a root as any other
        expect(AlreadyExists, lambda: backup.restore(target, new))
    else:
        backup.restore(target, new)


def expect(refusal: type[SnapfsError], act: Act) -> None:
    try:
        act()
    except refusal:
        return
    raise AssertionError(f"no {refusal.__name__}")


ACTS = {"backup": each_call_of_a_backup, "restore": each_call_of_a_restore}


def main(what: str, base: str, how: str, stride: str) -> None:
    try:
        sweep = ACTS[what](Path(base), how, int(stride))
    except SnapfsError as error:
        raise AssertionError(f"{type(error).__name__}: {error}") from error
    print(json.dumps({"refused": sweep.refused, "done": sweep.done}))


if __name__ == "__main__":
    main(*sys.argv[1:])
