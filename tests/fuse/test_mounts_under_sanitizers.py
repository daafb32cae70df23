"""Lanes and overlays that are served by our C under sanitizers, through all that it answers."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from itertools import repeat
from pathlib import Path

import pytest

from snapfs.fuse.channel import Opcode
from snapfs.fuse.modes import Mode
from tests.fuzz import programs
from tests.support import lanes, sanitizers
from tests.support.daemon import eventually
from tests.support.lanes import House, drop_dentries
from tests.support.overlay.kernel import image_fs, tmpfs
from tests.support.sanitizers import Sanitized

pytestmark = [pytest.mark.fuse, pytest.mark.root]

DEADLINE_S = 100.0
SERVE = "import sys; from snapfs.cli.overlay import main; sys.argv[0] = 'snapfs-overlay'; main()"
COMPLAINTS = ("unexpected_error", "event_failed")

USERS = ("a", "b", "c")
LONG = "n" * 255
MIB = 1 << 20
BIG = 3 * MIB + 5
MANY = 600
"""More files than ids (here) or descriptors (desk_src/kept.h) are kept of."""

READING = {"LOOKUP", "GETXATTR", "LISTXATTR", "READDIRPLUS", "READLINK"}
CHANGING = {"GETATTR", "SETATTR", "MKDIR", "SYMLINK", "LINK", "UNLINK", "RMDIR", "RENAME"}
ANSWERED = {
    Mode.PASSTHROUGH: READING | CHANGING | {"OPEN", "RELEASE", "CREATE"},
    Mode.READONLY: READING | {"OPEN", "RELEASE"},
    Mode.NO_OPEN: READING | CHANGING | {"READ", "WRITE", "MKNOD"},
}


def built(copy: Path, sanitizer: str) -> Sanitized:
    package = Sanitized.build(copy, sanitizer)
    backing = copy / "snapfs" / "fuse" / "backing.py"
    text = backing.read_text()
    assert text.count("\nIDLE_KEPT = 8192\n") == 1
    backing.write_text(text.replace("\nIDLE_KEPT = 8192\n", "\nIDLE_KEPT = 256\n"))
    return package


@pytest.fixture(scope="module")
def ram(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """What is read and written here waits for no disk."""
    with tmpfs(tmp_path_factory.mktemp("ram") / "fs", "size=1g") as place:
        yield place


@pytest.fixture(scope="module")
def disk(ram: Path) -> Iterator[Path]:
    """What is read here may have to be waited for, and never for long."""
    with image_fs(ram, "ext4") as place:
        yield place


@pytest.fixture(scope="module")
def memory(ram: Path) -> Sanitized:
    return built(ram / "memory", sanitizers.MEMORY)


@pytest.fixture(scope="module")
def threads(ram: Path) -> Sanitized:
    return built(ram / "threads", sanitizers.THREADS)


def fill(layer: Path) -> None:
    (layer / "lower").mkdir(parents=True)
    for number in range(60):
        for user in USERS:
            (layer / "lower" / f"{user}{number}").write_text(f"{user}{number}")
    (layer / "lower" / "link").symlink_to("a0")
    os.setxattr(layer / "lower" / "a0", "user.number", b"0")
    (layer / "big").write_bytes(os.urandom(BIG))
    (layer / LONG).mkdir()
    (layer / LONG / LONG).write_text("long")
    for user in USERS:
        for number in range(20):
            below = layer / "goes" / user / f"{number}" / "below"
            below.mkdir(parents=True)
            for name in ("kept", "held", LONG):
                (below / name).write_text(name)
            (below / "link").symlink_to("kept")
    (layer / "many").mkdir()
    for number in range(MANY):
        (layer / "many" / str(number)).write_bytes(b"%d" % number)


def look(place: Path, name: str) -> None:
    """Do to files what changes none."""
    lower = place / "lower"
    assert len(os.listdir(lower)) == 60 * len(USERS) + 1
    assert os.readlink(lower / "link") == "a0"
    assert (os.listxattr(lower / "a0"), os.getxattr(lower / "a0", "user.number")) == (
        ["user.number"],
        b"0",
    )
    assert not (lower / "absent").exists()
    for number in range(60):
        assert (lower / f"{name}{number}").read_text().startswith(f"{name}{number}")
    assert (place / LONG / LONG).read_text() == "long"
    for directory in (lower, place / "many"):
        assert all(it.stat(follow_symlinks=False).st_ino for it in os.scandir(directory))
    with (place / "big").open("rb", buffering=0) as file:
        for at in range(0, 3 * MIB, MIB):
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert len(os.pread(file.fileno(), MIB, at)) == MIB


def change(place: Path, name: str) -> None:
    """Do to files what our C has a part in."""
    directory = place / name
    directory.mkdir()
    for number in range(60):
        file = directory / f"{number:03}{'x' * number}"
        file.write_bytes(b"x" * number)
        file.chmod(0o640)
        os.utime(file, (1, number))
        os.setxattr(file, "user.number", b"%d" % number)
        assert os.getxattr(file, "user.number") == b"%d" % number
        assert os.listxattr(file) == ["user.number"]
        with file.open("r+b") as held:
            file.rename(directory / "moved")
            (directory / "moved").unlink() if number % 3 else os.link(directory / "moved", file)
            held.write(b"held")
    for number in range(60):
        below = directory / f"{number}" / "below"
        below.mkdir(parents=True)
        (below / "link").symlink_to("x" * (number + 1))
        os.chown(below / "link", 1, number, follow_symlinks=False)
        below.chmod(0o750)
        assert len(os.readlink(below / "link")) == number + 1
        assert [it.stat(follow_symlinks=False).st_gid for it in os.scandir(below)] == [number]
        if number % 2:
            (below / "link").unlink()
            below.rmdir()
    for number in range(60):
        lower = place / "lower" / f"{name}{number}"
        assert lower.read_text().startswith(lower.name)
        if number % 2:
            with lower.open("a") as grown:
                grown.write("more")
    for top in (directory, place / "lower"):  # those of other threads come and go
        for above, directories, files in os.walk(top):
            for it in (*directories, *files):
                (Path(above) / it).lstat()
    change_contents(directory)
    shutil.rmtree(directory)
    remove_lower(place / "goes" / name)


def remove_lower(top: Path) -> None:
    """Change and remove what lower layers have, while one of the files is in use."""
    for number in range(20):
        below = top / f"{number}" / "below"
        listed = sorted(it.name for it in os.scandir(below))
        assert listed == sorted(["kept", "held", "link", LONG])
        held = os.open(below / "held", os.O_PATH)
        if number % 2:
            os.chown(below / "link", 1, number, follow_symlinks=False)
        elif number % 4:
            below.chmod(0o700)
        shutil.rmtree(top / f"{number}")
        assert os.fstat(held).st_nlink == 0
        assert Path(f"/proc/self/fd/{held}").read_text() == "held"
        os.close(held)
        (top / f"{number}").mkdir()
        below.mkdir()
        for name in listed:
            (below / name).write_text(name)


def change_contents(directory: Path) -> None:
    """Write, cut, map and replace files with the longest names that there are."""
    path, other = directory / LONG, directory / LONG.upper()
    path.write_bytes(b"1" * 10_000)
    with path.open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 10_000) as mapped:
        mapped[5000] = ord("m")
        mapped.flush()
        assert os.pwrite(file.fileno(), b"x" * 200_000, 8_000) == 200_000
        os.ftruncate(file.fileno(), 9_000)
        assert os.pread(file.fileno(), 2, 4999) == b"1m"
    other.write_bytes(b"other")
    os.link(other, directory / "second")
    with other.open("rb") as held:
        path.rename(other)
        assert held.read() == b"other"
    assert not path.exists()
    assert (directory / "second").read_bytes() == b"other"
    assert other.stat().st_size == 9_000
    other.unlink()


def at_once(act: Callable[[Path, str], None], place: Path) -> None:
    """Have several users do the same, each in his own files."""
    with ThreadPoolExecutor(len(USERS)) as pool:
        list(pool.map(act, repeat(place), USERS))


def read_many(place: Path) -> None:
    assert len(os.listdir(place / "many")) == MANY
    for number in range(MANY):
        fd = os.open(place / "many" / str(number), os.O_RDONLY)
        assert os.read(fd, 9) == b"%d" % number
        os.close(fd)


@contextmanager
def house_under(
    package: Sanitized, base: Path, root: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> Iterator[House]:
    """A lane whose workers are run by such a build; fails when something is found in one."""
    base.mkdir()
    python = package.python(base / "python")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        try:
            with lanes.house(base / "house", mode, root=root, watchdog_s=DEADLINE_S) as house:
                yield house
        finally:
            found = sanitizers.said(python)
            assert not found, found


def use(house: House) -> None:
    """Use a lane with two workers; the first one is killed while files are in use."""
    parent = house.base_layers(fill)
    tree = house.view(parent) if house.mode is Mode.READONLY else house.on(parent)
    at_once(look, tree.path)
    read_many(tree.path)
    eventually(lambda: house.worker().lookups <= 1 or drop_dentries(), what="FORGETs")
    at_once(look, tree.path)
    answered = set(house.worker().answered)
    with (tree / "big").open("rb") as held:
        kill_in(house, tree.path)
        assert len(held.read()) == BIG
    at_once(look, tree.path)
    if house.mode is not Mode.READONLY:
        at_once(change, tree.path)
    read_many(tree.path)
    drop_dentries()
    answered |= set(house.worker().answered)
    assert answered >= ANSWERED[house.mode]
    if house.mode is not Mode.READONLY:
        house.snapshots.commit(tree.key, house.name())


def kill_in(house: House, place: Path) -> None:
    """Kill the worker while users are at work, who go on with the next one."""
    before = sum(house.worker().answered.values())
    act = look if house.mode is Mode.READONLY else change
    with ThreadPoolExecutor(1) as pool:
        working = pool.submit(at_once, act, place)
        eventually(lambda: sum(house.worker().answered.values()) > before + 200, what="work")
        assert not working.done()
        house.kill_worker()
        working.result(DEADLINE_S)


@pytest.mark.timeout(240)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.modes(*ANSWERED)
def test_lane_touches_no_memory_that_is_not_its_own(
    memory: Sanitized, ram: Path, disk: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"memory-{mode.value}"
    with house_under(memory, ram / name, disk / name, mode, monkeypatch) as house:
        use(house)


@pytest.mark.timeout(240)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.modes(Mode.NO_OPEN)
def test_threads_of_a_lane_race_for_nothing(
    threads: Sanitized, ram: Path, disk: Path, mode: Mode, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"threads-{mode.value}"
    with house_under(threads, ram / name, disk / name, mode, monkeypatch) as house:
        use(house)


@pytest.mark.timeout(240)
@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_damaged_requests_of_programs_break_nothing(
    memory: Sanitized, ram: Path, tmp_path: Path, mode: Mode
) -> None:
    stream = programs.recorded(tmp_path / "recorded", mode)
    kernel = programs.feed(memory, ram / f"damaged-{mode.value}", mode, stream, seed=1, each=2)
    answered = {Opcode(it).name for it in (*kernel.fast, *kernel.damaged)}
    assert answered >= ANSWERED[mode] - {"READ"}  # in some streams a thread answers all there are


@contextmanager
def overlay_under(package: Sanitized, base: Path, of_python: Path) -> Iterator[Path]:
    """An overlay over `base`/lower, served by such a build; fails when that complains."""
    place = base / "mounted"
    for name in ("upper", "work", "mounted"):
        (base / name).mkdir()
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    python = package.python(of_python)
    with (base / "log").open("w") as log:
        server = subprocess.Popen([python, "-c", SERVE, "-f", "-o", layers, place], stderr=log)
        try:
            eventually(lambda: place.is_mount(), what="the mount")
            yield place
        finally:
            subprocess.run(["umount", "-l", place], check=False)
            try:
                server.wait(DEADLINE_S)
            finally:
                server.kill()
    text = (base / "log").read_text() + sanitizers.said(python)
    assert server.returncode == 0, text
    assert not sanitizers.said(python), text
    assert not any(word in text for word in COMPLAINTS), text


def test_overlay_touches_no_memory_that_is_not_its_own(
    memory: Sanitized, ram: Path, disk: Path
) -> None:
    fill(disk / "overlay" / "lower")
    with overlay_under(memory, disk / "overlay", ram / "python") as place:
        at_once(look, place)
        at_once(change, place)
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert sorted(os.listdir(place)) == sorted(["goes", "lower", "big", LONG, "many"])
        (place / "last").touch()
