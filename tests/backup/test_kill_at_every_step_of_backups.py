"""kill -9 at every step of a backup and of a restore.

A child kills itself before its Nth effect, as in the tests of images. Whatever the moment, the
backup that was complete before can be verified and restored, a root is whole or says that it is
not, and the same command, given again, ends as if nothing had happened and leaves nothing over.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs import backup, tables
from snapfs.model import AlreadyExists, DataLoss, FailedPrecondition
from snapfs.snapshots import fsck, roots
from tests.backup.conftest import Root
from tests.crash.test_kill_at_every_step_of_images_and_collections import Killer
from tests.support.trees import describe, differences

pytestmark = [pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(300)]

DEADLINE_S = 60.0


def is_killed_at(step: int, operation: Callable[[], object]) -> bool:
    """Do the operation in a child; say whether it was killed rather than done."""
    pid = os.fork()
    if not pid:
        status = 1
        try:
            Killer(step).arm()
            operation()
            status = 0
        finally:
            os._exit(status)
    end = time.monotonic() + DEADLINE_S
    while not (ended := os.waitpid(pid, os.WNOHANG))[0]:
        if time.monotonic() > end:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            raise AssertionError(f"the child hangs at step {step}")
        time.sleep(0.002)
    if os.WIFSIGNALED(ended[1]):
        return os.WTERMSIG(ended[1]) == signal.SIGKILL
    assert os.WEXITSTATUS(ended[1]) == 0, f"step {step}: the operation failed"
    return False


def copied(source: Path, target: Path) -> None:
    shutil.rmtree(target, ignore_errors=True)
    subprocess.run(["cp", "-a", source, target], check=True)


def drafts(place: Path) -> list[Path]:
    return [*place.rglob("*.part"), *place.rglob("links"), *place.rglob("*.new")]


def test_a_killed_backup_leaves_the_earlier_one_and_is_finished_by_the_next(
    root: Root, tmp_path: Path
) -> None:
    target, kept = tmp_path / "target", tmp_path / "kept"
    root.commit("base")
    root.commit("going", "base")
    blob = root.write_blob(b"one")
    earlier = backup.take(root.path, kept).record
    root.snapshotter.remove("going")
    root.metadata.content.delete("default", blob)
    root.commit("top", "base")
    root.write_blob(b"two")
    root.close()
    copied(kept, target)
    step = 1
    while is_killed_at(step, lambda: backup.take(root.path, target)):
        found = backup.verify(target)
        assert found.revision >= earlier.revision
        done = backup.take(root.path, target)
        assert backup.verify(target) == done.record
        assert len(list((target / "layers").iterdir())) == len(done.record.layers) == 2
        assert len(list((target / "content").glob("*/*"))) == 1
        assert drafts(target) == []
        copied(kept, target)
        step += 1
    assert step > 20, f"only {step} steps were counted"


def test_a_killed_restore_says_so_and_is_finished_by_the_next(root: Root, tmp_path: Path) -> None:
    target, new = tmp_path / "target", tmp_path / "new"
    root.commit("base")
    root.commit("top", "base")
    root.write_blob(b"one")
    backup.take(root.path, target)
    root.close()
    step = 1
    while is_killed_at(step, lambda: backup.restore(target, new)):
        if (new / "metadata").exists() and not (new / roots.RESTORING).exists():
            with pytest.raises(AlreadyExists):
                backup.restore(target, new)
        else:
            if (new / roots.RESTORING).exists() and not (new / "metadata").exists():
                with pytest.raises(FailedPrecondition, match="restored in part only"):
                    roots.check_whole(new)
            backup.restore(target, new)
        roots.check_whole(new)
        assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
        for number in ("1", "2"):
            here, there = new / "layers" / number / "fs", root.path / "layers" / number / "fs"
            assert differences(describe(here), describe(there)) == []
        assert drafts(new) == []
        shutil.rmtree(new)
        step += 1
    assert step > 20, f"only {step} steps were counted"


def test_a_killed_restore_over_what_an_earlier_backup_left_is_finished_by_the_next(
    root: Root, tmp_path: Path
) -> None:
    target, new, kept = tmp_path / "target", tmp_path / "new", tmp_path / "kept"
    root.commit("base")
    root.commit("going", "base")
    going, damaged = root.write_blob(b"going"), root.write_blob(b"damaged")
    backup.take(root.path, target)
    held = target / "content" / damaged.replace(":", "/")
    held.unlink()  # it is the root's own file
    held.write_bytes(b"other")
    with pytest.raises(DataLoss):
        backup.restore(target, kept)
    (kept / "layers" / "9.part" / "fs").mkdir(parents=True)
    root.snapshotter.remove("going")
    root.metadata.content.delete("default", going)
    root.commit("top", "base")
    record = backup.take(root.path, target, recheck=True).record
    root.close()
    copied(kept, new)
    step = 1
    while is_killed_at(step, lambda: backup.restore(target, new)):
        if (new / "metadata").exists() and not (new / roots.RESTORING).exists():
            with pytest.raises(AlreadyExists):
                backup.restore(target, new)
        else:
            backup.restore(target, new)
        roots.check_whole(new)
        assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
        assert sorted(os.listdir(new / "layers")) == [str(layer.id) for layer in record.layers]
        for layer in record.layers:
            here, there = (place / "layers" / str(layer.id) / "fs" for place in (new, root.path))
            assert differences(describe(here), describe(there)) == []
        assert [it.name for it in new.glob("content/blobs/*/*")] == [damaged.partition(":")[2]]
        assert drafts(new) == []
        copied(kept, new)
        step += 1
    assert step > 20, f"only {step} steps were counted"
