"""Opens of what is in use already that come by no name: /proc/PID/exe, /proc/self/fd, a bind mount
of one file."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from snapfs.fuse.modes import Mode
from tests.support import lanes
from tests.support.daemon import eventually, processes_below
from tests.support.dying_worker import workers_die_to_order
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

DEADLINE_S = 20.0
KILLS = 10
PROGRAM = "/usr/bin/cat"
OPENS_BY_RING = Path(__file__).parents[1] / "support/opens_by_ring.c"
NO_RING = 77
COMMAND = Path(sys.executable).with_name("snapfs-overlay")


def fill(layer: Path) -> None:
    shutil.copy(PROGRAM, layer / "program")
    shutil.copy(PROGRAM, layer / "linked")
    os.link(layer / "linked", layer / "other name")
    (layer / "file").write_text("lower")
    (layer / "mountpoint").touch()
    for number in range(60):
        (layer / f"many {number}").write_text("old")


@pytest.fixture(scope="module", params=[Mode.PASSTHROUGH, Mode.NO_OPEN, None], ids=str)
def merged(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Callable[[], Path]]:
    """Makes trees with a lower layer, in a lane or by snapfs-overlay."""
    base = tmp_path_factory.mktemp("base")
    if request.param is not None:
        with lanes.house(base, request.param) as house:
            yield lambda: house.active(fill).path
        return
    places = (base / str(number) for number in range(1000))
    try:
        yield lambda: overlay(next(places))
    finally:
        lanes.abort(base)
        eventually(lambda: not processes_below(base), what="the end of the processes")


def overlay(base: Path) -> Path:
    low, upper, work, there = (base / name for name in ("low", "upper", "work", "there"))
    for path in (low, upper, work, there):
        path.mkdir(parents=True)
    fill(low)
    options = f"lowerdir={low},upperdir={upper},workdir={work}"
    subprocess.run([COMMAND, "-o", options, there], check=True, timeout=DEADLINE_S)
    return there


@pytest.fixture
def tree(merged: Callable[[], Path]) -> Path:
    return merged()


@contextmanager
def running(program: Path) -> Iterator[Path]:
    """A program runs in the block; gives what the kernel calls its file."""
    with subprocess.Popen([program], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(b"x")
        process.stdin.flush()
        process.stdout.read(1)  # it is past its start
        yield Path(f"/proc/{process.pid}/exe")


def touch(program: Path) -> None:
    os.utime(program)


def change_mode(program: Path) -> None:
    program.chmod(0o755)


def move(program: Path) -> None:
    program.rename(program.with_name("moved"))


def link(program: Path) -> None:
    os.link(program, program.with_name("further"))


def replace(program: Path) -> None:
    shutil.copy(PROGRAM, program.with_name("new"))
    program.with_name("new").rename(program)


def upgrade(program: Path) -> None:
    """Replace it as dpkg does."""
    kept = program.with_name("p.dpkg-tmp")
    os.link(program, kept)
    replace(program)
    kept.unlink()


def remove(program: Path) -> None:
    program.unlink()


def change_and_remove(program: Path) -> None:
    program.chmod(0o755)
    program.unlink()


CHANGES = [touch, change_mode, move, link, replace, upgrade, remove, change_and_remove]


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", ["program", "linked"])
def test_a_running_program_starts_itself_again(
    tree: Path, change: Callable[[Path], None], name: str
) -> None:
    program = Path(PROGRAM).read_bytes()
    with running(tree / name) as itself:
        change(tree / name)
        for _ in range(2):
            assert itself.read_bytes() == program
            subprocess.run([itself, "/dev/null"], check=True)


def test_a_program_is_started_by_its_descriptor(tree: Path) -> None:
    held = os.open(tree / "program", os.O_PATH)
    start = f"import os; os.execve({held}, ['cat', '/dev/null'], {{}})"
    with running(tree / "program"):
        (tree / "program").chmod(0o755)
        subprocess.run([sys.executable, "-c", start], pass_fds=[held], check=True)
    os.close(held)


def test_a_descriptor_is_opened_again_after_a_copy_up(tree: Path) -> None:
    with (tree / "file").open() as held:
        (tree / "file").chmod(0o600)
        again = Path(f"/proc/self/fd/{held.fileno()}")
        assert again.read_text() == "lower"
        with again.open() as other:
            assert Path(f"/proc/self/fd/{other.fileno()}").read_text() == "lower"
    assert (tree / "file").read_text() == "lower"


@pytest.mark.parametrize("inside", [True, False], ids=["in the tree", "elsewhere"])
def test_a_bind_mount_of_one_file_is_opened_again(
    tree: Path, tmp_path: Path, *, inside: bool
) -> None:
    target = tree / "mountpoint" if inside else tmp_path / "target"
    if not inside:
        target.touch()
    with one_file(tree / "file", target), target.open():
        (tree / "file").chmod(0o600)
        for _ in range(2):
            assert target.read_text() == "lower"


@contextmanager
def one_file(source: Path, target: Path) -> Iterator[None]:
    subprocess.run(["mount", "--bind", source, target], check=True)
    try:
        yield
    finally:
        mounts.unmount(target, mounts.MNT_DETACH)


@pytest.mark.parametrize("flags", [os.O_RDONLY, os.O_RDONLY | os.O_NONBLOCK])
def test_by_name_the_copy_is_read_whatever_was_opened_before(tree: Path, flags: int) -> None:
    names = [tree / "linked", tree / "other name"]
    with names[0].open("rb") as held, names[1].open("rb"):
        written = held.read() + b"1"
        with names[0].open("ab") as writer:
            writer.write(b"1")
        past = Path(f"/proc/self/fd/{held.fileno()}")
        for name in names * 2:
            past.read_bytes()
            assert read(name, flags) == written
            assert read(name, flags) == written
        names[0].unlink()
        past.read_bytes()
        assert read(names[1], flags) == written


def test_many_opens_by_name_in_one_call_of_io_uring_read_the_copy(
    tree: Path, tmp_path: Path
) -> None:
    """Its first try is the caller's, the second one another thread's."""
    program = tmp_path / "opens"
    subprocess.run(["gcc", "-o", program, OPENS_BY_RING], check=True, timeout=DEADLINE_S)
    for number in range(5):
        file = tree / f"many {number}"
        with file.open():
            os.truncate(file, 1)
            done = subprocess.run([program, *[file] * 8], check=False, stdout=subprocess.PIPE)
        if done.returncode == NO_RING:
            pytest.skip("no io_uring here")
        assert (done.returncode, done.stdout) == (0, b"o\n" * 8)


def read(path: Path, flags: int = os.O_RDONLY) -> bytes:
    fd = os.open(path, flags)
    try:
        return os.pread(fd, 1 << 20, 0)
    finally:
        os.close(fd)


def test_opens_by_name_and_past_it_race_with_writers(tree: Path) -> None:
    names = [f"many {number}" for number in range(60)]
    held = [os.open(tree / name, os.O_RDONLY) for name in names]
    written: set[str] = set()
    failures: list[Exception] = []
    done = threading.Event()

    def read_all() -> None:
        while not done.is_set():
            for name, fd in zip(names, held, strict=True):
                try:
                    must_be_new = name in written
                    found = read(tree / name)
                    assert found == b"new" or (found == b"old" and not must_be_new)
                    assert read(Path(f"/proc/self/fd/{fd}")) in (b"old", b"new")
                except (OSError, AssertionError) as error:
                    failures.append(error)

    readers = [threading.Thread(target=read_all) for _ in range(3)]
    for thread in readers:
        thread.start()
    try:
        for name in names:
            fd = os.open(tree / name, os.O_WRONLY)
            os.pwrite(fd, b"new", 0)
            written.add(name)
            os.close(fd)
    finally:
        done.set()
        for thread in readers:
            thread.join(DEADLINE_S)
        for fd in held:
            os.close(fd)
    assert failures == []


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("change", CHANGES)
def test_a_program_starts_itself_again_when_the_worker_has_died(
    own_house: House, change: Callable[[Path], None]
) -> None:
    tree = own_house.active(fill)
    with running(tree / "linked") as itself:
        own_house.kill_worker()
        change(tree / "linked")
        own_house.kill_worker()
        for _ in range(2):
            subprocess.run([itself, "/dev/null"], check=True)
        assert read(tree / "other name") == Path(PROGRAM).read_bytes()


@pytest.fixture
def order(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[tuple[Callable[[str], None], Path]]:
    """Have the worker die at a point (tests/support/dying_worker.py); and a tree that it shows."""
    place = tmp_path / "order"
    with (
        workers_die_to_order(place, monkeypatch),
        lanes.house(tmp_path / "house", Mode.PASSTHROUGH) as house,
    ):

        def die_at(point: str) -> None:
            place.write_text(point)

        yield die_at, house.active(fill).path
        assert not place.exists(), "no worker came to that point"


@pytest.mark.channel("passthrough")
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("point", ["told", "past", "counted"])
def test_an_open_past_a_name_goes_on_when_the_worker_dies_around_its_second_try(
    order: tuple[Callable[[str], None], Path], point: str
) -> None:
    die_at, tree = order
    with (tree / "file").open() as reader:
        (tree / "file").write_text("copied up")
        die_at(point)
        assert read(Path(f"/proc/self/fd/{reader.fileno()}")) == b"lower"
        assert (tree / "file").read_text() == "copied up"


@pytest.mark.channel("passthrough")
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_an_open_by_name_reads_the_copy_when_the_worker_dies_at_its_first_try(
    order: tuple[Callable[[str], None], Path],
) -> None:
    die_at, tree = order
    with (tree / "linked").open("rb"), (tree / "other name").open("rb"):
        (tree / "linked").write_text("copied up")
        die_at("told")
        assert (tree / "other name").read_text() == "copied up"


@pytest.mark.channel("passthrough")
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_opens_past_a_name_and_by_one_go_on_while_workers_are_killed(own_house: House) -> None:
    tree = own_house.active(fill)
    done = threading.Event()
    wrong: list[object] = []

    def open_again(path: Path, expected: bytes) -> None:
        while not done.is_set():
            try:
                found = read(path)
            except OSError as error:
                found = str(error).encode()
            if found != expected:
                wrong.append(found)
                return

    with (tree / "file").open() as reader:
        (tree / "file").write_text("copied up")
        past = Path(f"/proc/self/fd/{reader.fileno()}")
        threads = [
            threading.Thread(target=open_again, args=it)
            for it in ((past, b"lower"), (tree / "file", b"copied up"))
        ]
        for thread in threads:
            thread.start()
        for _ in range(KILLS):
            own_house.kill_worker()
            own_house.worker()
        done.set()
        for thread in threads:
            thread.join(DEADLINE_S)
    assert wrong == []
