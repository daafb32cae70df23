"""flock(2) and fcntl(2) locks hold between all users of a snapshot, and between no others."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
DEADLINE_S = 20.0

TAKE = """
import fcntl, os, struct, sys
path, kind, wait = sys.argv[1:]
file = open(path, "r+b")
flags = fcntl.LOCK_EX | (0 if wait == "wait" else fcntl.LOCK_NB)
def take():
    if kind == "flock":
        fcntl.flock(file, flags)
    elif kind == "posix":
        fcntl.lockf(file, flags, 10, 5)
    else:
        command = fcntl.F_OFD_SETLKW if wait == "wait" else fcntl.F_OFD_SETLK
        fcntl.fcntl(file, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, 0, 5, 10, 0))
"""
LOCK = f"""{TAKE}
try:
    take()
except BlockingIOError:
    sys.exit(42)
print("locked", flush=True)
sys.stdin.read()
"""
CONTEND = f"""{TAKE}
tries = 0
while True:
    try:
        take()
    except BlockingIOError:
        tries += 1
        os.pwrite(1, b"%020d" % tries, 0)
    else:
        break
"""
"""Tries without a pause, counts that in its standard output, and ends with the lock."""
KINDS = ["flock", "posix", "open file description"]


def lower(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower" * 10)


class User:
    """A process in a mount namespace of its own, as one container has it."""

    def __init__(self, tree: Path, home: Path, kind: str, *, wait: bool = False) -> None:
        home.mkdir(exist_ok=True)
        script = 'mount --make-rprivate / && mount --bind "$1" "$2" && shift && cd "$1" && shift'
        words = [sys.executable, "-c", LOCK, "file", kind, "wait" if wait else "try"]
        self._process = subprocess.Popen(
            ["unshare", "--mount", "sh", "-c", f'{script} && exec "$@"', "sh", tree, home, *words],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    @property
    def has_lock(self) -> bool:
        """Wait until it has the lock, or was refused."""
        assert self._process.stdout is not None
        return self._process.stdout.readline() == "locked\n"

    def end(self) -> None:
        self._process.communicate(timeout=DEADLINE_S)


@contextmanager
def user(tree: Path, home: Path, kind: str, *, wait: bool = False) -> Iterator[User]:
    made = User(tree, home, kind, wait=wait)
    try:
        yield made
    finally:
        made.end()


@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_holds_between_two_containers_of_a_snapshot(
    house: House, tmp_path: Path, kind: str
) -> None:
    tree = house.active(lower).path
    with user(tree, tmp_path / "one", kind) as one:
        assert one.has_lock
        with user(tree, tmp_path / "two", kind) as two:
            assert not two.has_lock
    with user(tree, tmp_path / "two", kind) as two:
        assert two.has_lock


class Contender:
    """A process that tries to get a lock, again and again, until it has it."""

    def __init__(self, tree: Path, count: Path, kind: str) -> None:
        self._count = count
        with count.open("wb") as out:
            self._process = subprocess.Popen(
                [sys.executable, "-c", CONTEND, tree / "file", kind, "try"], stdout=out
            )

    def must_be_refused(self) -> None:
        """Return when it began to try, and was refused, since now."""
        before = self._tries()
        eventually(lambda: self._tries() > before + 1, what="another try")
        assert self._process.poll() is None

    def must_get_it(self) -> None:
        assert self._process.wait(DEADLINE_S) == 0

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _tries(self) -> int:
        return int(self._count.read_bytes() or 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_a_lock_keeps_others_out_while_workers_are_killed(
    own_house: House, tmp_path: Path, kind: str
) -> None:
    """One tries all the time, one waits, one comes when the next worker serves."""
    tree = own_house.active(lower).path
    with user(tree, tmp_path / "one", kind) as one:
        assert one.has_lock
        contender = Contender(tree, tmp_path / "count", kind)
        try:
            contender.must_be_refused()
            for _ in range(3):
                own_house.kill_worker()
                contender.must_be_refused()
                with user(tree, tmp_path / "two", kind) as two:
                    assert not two.has_lock
                own_house.worker()
            contender.must_be_refused()
            one.end()
            contender.must_get_it()
        finally:
            contender.end()
    with user(tree, tmp_path / "two", kind) as two:
        assert two.has_lock


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_who_waits_for_a_lock_waits_on_when_the_worker_is_killed(
    own_house: House, tmp_path: Path, kind: str
) -> None:
    tree = own_house.active(lower).path
    with user(tree, tmp_path / "one", kind) as one:
        assert one.has_lock
        with user(tree, tmp_path / "two", kind, wait=True) as two:
            own_house.kill_worker()
            own_house.worker()
            with user(tree, tmp_path / "three", kind) as three:
                assert not three.has_lock
            one.end()
            assert two.has_lock


@pytest.mark.parametrize("kind", KINDS)
def test_who_waits_gets_the_lock_when_the_other_ends(
    house: House, tmp_path: Path, kind: str
) -> None:
    tree = house.active(lower).path
    with user(tree, tmp_path / "one", kind) as one:
        assert one.has_lock
        two = User(tree, tmp_path / "two", kind, wait=True)
    assert two.has_lock
    two.end()


@pytest.mark.parametrize("kind", KINDS)
def test_two_snapshots_of_one_image_share_no_locks(house: House, tmp_path: Path, kind: str) -> None:
    parent = house.base_layers(lower)
    with (
        user(house.on(parent).path, tmp_path / "one", kind) as one,
        user(house.on(parent).path, tmp_path / "two", kind) as two,
    ):
        assert one.has_lock
        assert two.has_lock


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("kind", KINDS)
def test_a_lock_outlives_a_copy_up_and_a_worker(house: House, tmp_path: Path, kind: str) -> None:
    tree = house.active(lower)
    with user(tree.path, tmp_path / "one", kind) as one:
        assert one.has_lock
        (tree / "file").chmod(0o600)
        house.kill_worker()
        house.worker()
        with user(tree.path, tmp_path / "two", kind) as two:
            assert not two.has_lock


def test_flock_of_the_shell_excludes_another(house: House, tmp_path: Path) -> None:
    tree = house.active(lower).path
    with user(tree, tmp_path / "one", "flock") as one:
        assert one.has_lock
        tried = subprocess.run(["flock", "-n", tree / "file", "true"], check=False)
        assert tried.returncode == 1
    subprocess.run(["flock", "-n", tree / "file", "true"], check=True)
