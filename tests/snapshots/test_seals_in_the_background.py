"""Each committed layer gets a digest, once, and what rots below it is named."""

from __future__ import annotations

import os
import select
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from snapfs import seals
from snapfs.model import Committed, FailedPrecondition, NotFound
from snapfs.snapshots import NoTrees, Snapshotter, Verdict, fsck, verify
from tests.support.daemon import eventually

pytestmark = pytest.mark.root


def commit(snapshotter: Snapshotter, name: str, data: bytes = b"data") -> Path:
    snapshotter.prepare(f"{name}-key")
    upper = snapshotter.root / "layers" / str(snapshotter.stat(f"{name}-key").id) / "fs"
    (upper / "etc").mkdir()
    (upper / "etc" / "file").write_bytes(data)
    snapshotter.commit(f"{name}-key", name)
    return upper


def digest(snapshotter: Snapshotter, name: str) -> bytes:
    found = snapshotter.stat(name)
    assert isinstance(found, Committed)
    return found.digest


def rot(path: Path) -> None:
    times = path.stat()
    path.write_bytes(bytes([path.read_bytes()[0] ^ 1]) + path.read_bytes()[1:])
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def test_a_commit_is_sealed_and_stays_what_it_was(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        upper = commit(snapshotter, "base")
        made = eventually(lambda: digest(snapshotter, "base"), timeout_s=90, what="the digest")
        assert made == seals.measure(upper) == seals.digest_of(upper.parent / seals.SEAL)
        snapshotter.remove("base")
        assert snapshotter.cleanup() == ()
        assert not upper.parent.exists()
    assert fsck(root).clean


SERVICE = """
import os, signal, sys, time
from pathlib import Path
from snapfs.snapshots import NoTrees, Snapshotter
snapshotter = Snapshotter(Path(sys.argv[1]), trees=NoTrees(), seals=True)
while snapshotter._sealer._process is None:
    time.sleep(0.001)
os.kill(snapshotter._sealer._process.pid, signal.SIGSTOP)
os.write(1, b"%d" % snapshotter._sealer._process.pid)
time.sleep(600)
"""


def test_what_seals_dies_with_its_service(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        upper = commit(snapshotter, "base")
        for number in range(20_000):
            (upper / str(number)).touch()
    service = subprocess.Popen([sys.executable, "-c", SERVICE, root], stdout=subprocess.PIPE)
    assert service.stdout is not None
    sealing = os.pidfd_open(int(service.stdout.read1()))
    service.kill()
    service.wait()
    service.stdout.close()
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(sealing, signal.SIGCONT)
    ended, _, _ = select.select([sealing], [], [], 60)
    os.close(sealing)
    assert ended
    assert not (upper.parent / seals.SEAL).exists()
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        eventually(lambda: digest(snapshotter, "base"), timeout_s=120, what="the digest")


def test_what_a_stop_left_unsealed_is_sealed_by_the_next_run(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        commit(snapshotter, "old")
        commit(snapshotter, "other")
        assert digest(snapshotter, "old") == b""
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        for name in ("old", "other"):
            eventually(lambda name=name: digest(snapshotter, name), timeout_s=90, what="the digest")
        commit(snapshotter, "last")  # closing does not wait for this one
    assert fsck(root).clean


def test_rot_is_found_and_the_file_named(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        sound, rotten = commit(snapshotter, "sound"), commit(snapshotter, "rotten")
        for name in ("sound", "rotten"):
            eventually(lambda name=name: digest(snapshotter, name), timeout_s=90, what="the digest")
        assert {it.verdict for it in verify(root)} == {Verdict.SOUND}
        rot(rotten / "etc" / "file")
        found = {it.name: it for it in verify(root)}
        assert found["sound"].verdict is Verdict.SOUND
        assert found["rotten"].verdict is Verdict.DAMAGED
        assert [(it.path, it.what) for it in found["rotten"].damages] == [
            (b"etc/file", "differs in content")
        ]
        assert sound.exists()


@pytest.mark.parametrize("harm", [Path.unlink, rot])
def test_a_list_that_rotted_is_made_anew_while_the_layer_is_sound(
    root: Path, harm: Callable[[Path], None]
) -> None:
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        upper = commit(snapshotter, "base")
        eventually(lambda: digest(snapshotter, "base"), timeout_s=90, what="the digest")
        harm(upper.parent / seals.SEAL)
        assert [it.verdict for it in verify(root)] == [Verdict.SOUND]
        rot(upper / "etc" / "file")
        (found,) = verify(root)
        assert [(it.path, it.what) for it in found.damages] == [(b"etc/file", "differs in content")]


@pytest.mark.parametrize("sealed", [False, True])
def test_a_layer_that_is_gone_is_damaged_sealed_or_not(root: Path, sealed: bool) -> None:
    with Snapshotter(root, trees=NoTrees(), seals=sealed) as snapshotter:
        upper = commit(snapshotter, "base")
        if sealed:
            eventually(lambda: digest(snapshotter, "base"), timeout_s=90, what="the digest")
        shutil.rmtree(upper)
        (found,) = verify(root)
        assert found.verdict is Verdict.DAMAGED
        assert [(it.path, it.what) for it in found.damages] == [(b"", "is gone")]


def test_a_check_leaves_out_what_was_found_sound_lately(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        rotten = commit(snapshotter, "a")
        commit(snapshotter, "b")
        for name in ("a", "b"):
            eventually(lambda name=name: digest(snapshotter, name), timeout_s=90, what="the digest")
        before = time.time_ns()
        assert [it.verdict for it in verify(root, ["b"])] == [Verdict.SOUND]
        rot(rotten / "etc" / "file")
        again = {it.name: it.verdict for it in verify(root, since_ns=before)}
        assert again == {"a": Verdict.DAMAGED, "b": Verdict.RECENT}
        later = {it.name: it.verdict for it in verify(root, since_ns=time.time_ns())}
        assert later["b"] is Verdict.SOUND


def test_only_committed_snapshots_that_exist_are_verified(root: Path) -> None:
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        commit(snapshotter, "plain")
        snapshotter.prepare("active")
        assert [it.verdict for it in verify(root)] == [Verdict.UNSEALED]
        with pytest.raises(FailedPrecondition, match="'active' is active"):
            list(verify(root, ["active"]))
        with pytest.raises(NotFound):
            list(verify(root, ["nothing"]))


@pytest.mark.logs("layer.seal_failed")
def test_a_layer_that_cannot_be_read_stays_without_a_digest(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        upper = commit(snapshotter, "base")
    (upper.parent / "seal.new").mkdir()  # nothing can be written there
    with Snapshotter(root, trees=NoTrees(), seals=True) as snapshotter:
        eventually(lambda: "layer.seal_failed" in caplog.text, what="the warning")
        assert digest(snapshotter, "base") == b""
        commit(snapshotter, "next")
        eventually(lambda: digest(snapshotter, "next"), timeout_s=90, what="the other's digest")
