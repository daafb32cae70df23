"""Files that the kernel reads and writes by itself: what goes past us, and what never may."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.model import SnapshotId
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, bind_mount, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root]

DEADLINE_S = 20.0
STOPPED_S = 5.0
SIZE = 64 * 1024


def fill(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower" * 1000)
    os.setxattr(layer / "file", "user.kind", b"lower")
    os.utime(layer / "file", ns=(1_000_000_007, 2_000_000_009))
    (layer / "dir").mkdir()
    for number in range(40):
        (layer / "dir" / str(number)).write_bytes(b"%d" % number * 100)
    os.link(layer / "file", layer / "other name")


@pytest.fixture
def layered(house: House) -> Tree:
    return house.active(fill)


@contextmanager
def worker_stopped(house: House) -> Iterator[None]:
    """Nobody answers the kernel in the block."""
    pid = house.worker().pid
    timer = threading.Timer(STOPPED_S, os.kill, (pid, signal.SIGCONT))  # else a test hangs
    os.kill(pid, signal.SIGSTOP)
    timer.start()
    try:
        yield
    finally:
        assert timer.is_alive(), "the worker was needed"
        timer.cancel()
        os.kill(pid, signal.SIGCONT)


def lower_of(tree: Tree) -> Path:
    """The layer below a snapshot, made just before it."""
    return tree.house.layer(SnapshotId(tree.id - 1))


def lower_state(tree: Tree) -> tuple[object, ...]:
    """All of the lower file; reading it here leaves its times alone."""
    file = lower_of(tree) / "file"
    fd = os.open(file, os.O_RDONLY | os.O_NOATIME)
    try:
        found = os.fstat(fd)
        names = sorted(os.listxattr(fd))
        return (
            os.pread(fd, SIZE, 0),
            found.st_mtime_ns,
            found.st_ctime_ns,
            found.st_atime_ns,
            found.st_ino,
            found.st_mode,
            [(name, os.getxattr(fd, name)) for name in names],
        )
    finally:
        os.close(fd)


def test_lower_file_is_read_and_mapped_without_the_worker(house: House, layered: Tree) -> None:
    with (
        (layered / "file").open("rb") as file,
        mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as it,
        worker_stopped(house),
    ):
        assert os.pread(file.fileno(), 5, 0) == b"lower"
        assert it[:5] == b"lower"


def test_upper_file_is_written_and_mapped_without_the_worker(house: House, layered: Tree) -> None:
    with (layered / "file").open("r+b", buffering=0) as file, mmap.mmap(file.fileno(), 5) as mapped:
        os.pwrite(file.fileno(), b"first", 0)  # for which the kernel asks for security.capability
        with worker_stopped(house):
            os.pwrite(file.fileno(), b"UPPER", 0)
            mapped[0:2] = b"MM"
            assert os.pread(file.fileno(), 5, 0) == b"MMPER"
        assert (layered.upper / "file").read_bytes()[:5] == b"MMPER"


def test_new_file_is_written_without_the_worker(house: House, layered: Tree) -> None:
    with (layered / "new").open("wb", buffering=0) as file:
        os.write(file.fileno(), b"x" * SIZE)
        with worker_stopped(house):
            os.write(file.fileno(), b"x" * SIZE)
        assert (layered / "new").stat().st_size == 2 * SIZE


def test_program_runs_and_pages_in_without_the_worker(house: House, layered: Tree) -> None:
    (layered / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (layered / "sleep").chmod(0o755)
    with subprocess.Popen([layered / "sleep", "0.3"]) as running, worker_stopped(house):
        running.wait(DEADLINE_S)
    assert running.returncode == 0


def test_running_program_cannot_be_written(layered: Tree) -> None:
    (layered / "sleep").write_bytes(Path("/bin/sleep").read_bytes())
    (layered / "sleep").chmod(0o755)
    with subprocess.Popen([layered / "sleep", "60"]) as running:
        try:
            eventually(lambda: b"sleep" in Path(f"/proc/{running.pid}/cmdline").read_bytes())
            with pytest.raises(OSError) as refused:
                os.open(layered / "sleep", os.O_WRONLY)
            assert refused.value.errno == errno.ETXTBSY
        finally:
            running.kill()
    with (layered / "sleep").open("r+b"), pytest.raises(OSError) as refused:
        subprocess.run([layered / "sleep", "0"], check=True)
    assert refused.value.errno == errno.ETXTBSY


def test_times_and_size_are_those_of_the_file_after_native_writes(layered: Tree) -> None:
    with (layered / "new").open("w+b", buffering=0) as file:
        file.truncate(4096)
        mapped = mmap.mmap(file.fileno(), 4096)
        before = (layered / "new").stat()
        mapped[0:4] = b"late"
        mapped.flush()
        real = (layered.upper / "new").stat()
        assert real.st_mtime_ns > before.st_mtime_ns
        assert (layered / "new").stat().st_mtime_ns == real.st_mtime_ns
        assert (layered / "new").stat().st_blocks == real.st_blocks
        os.pwrite(file.fileno(), b"end", 10_000)
        assert os.lseek(file.fileno(), 0, os.SEEK_END) == 10_003
        mapped.close()
    real = (layered.upper / "new").stat()
    assert (layered / "new").stat().st_mtime_ns == real.st_mtime_ns


@pytest.mark.parametrize("flags", [os.O_APPEND, os.O_SYNC, os.O_DSYNC, os.O_NOATIME, os.O_DIRECT])
def test_flags_of_an_open_hold_past_the_worker(layered: Tree, flags: int) -> None:
    page = mmap.mmap(-1, 4096)
    page.write(b"p" * 4096)
    (layered / "f").write_bytes(b"-" * 4096)
    fd = os.open(layered / "f", os.O_RDWR | flags)
    os.writev(fd, [page])
    assert os.preadv(fd, [page], 0) == 4096
    os.close(fd)
    assert (layered / "f").stat().st_size == (8192 if flags == os.O_APPEND else 4096)
    fd = os.open(layered / "file", os.O_RDONLY | (flags if flags != os.O_APPEND else 0))
    assert os.preadv(fd, [page], 0) == 4096
    os.close(fd)


def test_truncating_opens_cut_what_is_open_elsewhere(layered: Tree) -> None:
    with (layered / "new").open("w+b", buffering=0) as first:
        first.write(b"long text")
        with (layered / "new").open("wb", buffering=0) as second:
            assert os.fstat(first.fileno()).st_size == 0
            second.write(b"x")
        assert os.pread(first.fileno(), 100, 0) == b"x"
    os.close(os.open(layered / "new", os.O_RDONLY | os.O_TRUNC))
    assert (layered / "new").read_bytes() == b""


def _write(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.pwrite(fd, b"WRITE", 0)
    os.close(fd)


def _truncate(path: Path) -> None:
    fd = os.open(path, os.O_RDWR | os.O_TRUNC)
    os.pwrite(fd, b"WRITE", 0)
    os.close(fd)


def _append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"WRITE")


def _map(path: Path) -> None:
    with path.open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        mapped[0:5] = b"WRITE"
        mapped.flush()


def _splice(path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"WRITE")
    fd = os.open(path, os.O_RDWR)
    os.splice(read, fd, 5, offset_dst=0)
    for it in (read, write, fd):
        os.close(it)


def _sendfile(path: Path) -> None:
    source = os.memfd_create("source")
    os.write(source, b"WRITE")
    fd = os.open(path, os.O_RDWR)
    os.sendfile(fd, source, 0, 5)
    os.close(fd)
    os.close(source)


def _copy_range(path: Path) -> None:
    fd = os.open(path, os.O_RDWR)
    os.copy_file_range(fd, fd, 5, 0, 4000)
    os.close(fd)


def _shell(path: Path) -> None:
    subprocess.run(["sh", "-c", 'echo WRITE 1<>"$0"', path], check=True)


def _touch(path: Path) -> None:
    os.utime(path, ns=(5, 5))
    os.setxattr(path, "user.kind", b"upper")
    path.chmod(0o600)
    os.truncate(path, 3)


WRITERS = [_write, _truncate, _append, _map, _splice, _sendfile, _copy_range, _shell, _touch]


@pytest.mark.parametrize("write", WRITERS, ids=lambda it: it.__name__.strip("_"))
@pytest.mark.parametrize("reader", [True, False], ids=["read meanwhile", "not open"])
def test_lower_layer_is_never_written(
    layered: Tree, write: Callable[[Path], None], *, reader: bool
) -> None:
    before = lower_state(layered)
    held = [os.open(layered / "file", os.O_RDONLY)] if reader else []
    for fd in held:
        assert os.pread(fd, 5, 0) == b"lower"
    number = (layered / "file").stat().st_ino
    write(layered / "file")
    write(layered / "other name")
    for fd in held:
        assert os.pread(fd, 5000, 0) == b"lower" * 1000
        assert os.fstat(fd).st_ino == number
        os.close(fd)
    assert lower_state(layered) == before
    assert (layered / "file").stat().st_ino == number
    assert (layered / "file").read_bytes() == (layered / "other name").read_bytes()
    assert (layered.upper / "file").exists()


def test_descriptor_of_a_lower_file_cannot_be_made_writable(layered: Tree) -> None:
    """Opened again by its descriptor, it is the copy, or refused while somebody has it open."""
    before = lower_state(layered)
    fd = os.open(layered / "file", os.O_RDONLY)
    for flags in (os.O_RDWR, os.O_WRONLY, os.O_RDWR | os.O_TRUNC, os.O_WRONLY | os.O_APPEND):
        with pytest.raises(OSError) as refused:
            os.open(f"/proc/self/fd/{fd}", flags)
        assert refused.value.errno == errno.ESTALE
    with pytest.raises(PermissionError):
        mmap.mmap(fd, 5, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    with pytest.raises(OSError, match=r"."):
        os.ftruncate(fd, 0)
    os.close(fd)
    assert lower_state(layered) == before
    _write(layered / "file")
    assert lower_state(layered) == before


def test_racing_opens_and_copy_ups_neither_fail_nor_write_below(house: House) -> None:
    tree = house.active(fill)
    layer = lower_of(tree)
    before = {it.name: (it.read_bytes(), it.stat().st_mtime_ns) for it in (layer / "dir").iterdir()}
    failures: list[Exception] = []
    done = threading.Event()

    def read() -> None:
        while not done.is_set():
            for name, (content, _) in before.items():
                try:
                    found = (tree / "dir" / name).read_bytes()
                    assert found in (content, b"new" + content[3:])
                except (OSError, AssertionError) as error:
                    failures.append(error)

    def write() -> None:
        try:
            for name in before:
                with (tree / "dir" / name).open("r+b") as file:
                    file.write(b"new")
        except (OSError, AssertionError) as error:
            failures.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    writers = [threading.Thread(target=write) for _ in range(2)]
    for thread in readers + writers:
        thread.start()
    for thread in writers:
        thread.join(DEADLINE_S)
    done.set()
    for thread in readers:
        thread.join(DEADLINE_S)
    assert failures == []
    for name, (content, mtime_ns) in before.items():
        assert (tree / "dir" / name).read_bytes() == b"new" + content[3:]
        file = layer / "dir" / name
        assert (file.read_bytes(), file.stat().st_mtime_ns) == (content, mtime_ns)


def test_both_names_of_a_copied_up_file_show_its_new_attributes(layered: Tree) -> None:
    for name in ("file", "other name"):
        assert (layered / name).stat().st_size == 5000
    with (layered / "file").open("rb") as reader:
        _append(layered / "file")
        for name in ("file", "other name"):
            assert (layered / name).stat().st_size == 5005
        (layered / "other name").chmod(0o640)
        _append(layered / "other name")
        for name in ("file", "other name"):
            assert (layered / name).stat().st_size == 5010
            assert (layered / name).stat().st_mode & 0o777 == 0o640
        assert os.fstat(reader.fileno()).st_nlink == 2


def test_reads_leave_the_access_time_of_a_lower_file_alone(layered: Tree) -> None:
    before = lower_state(layered)
    for _ in range(3):
        assert (layered / "file").read_bytes()[:5] == b"lower"
    assert lower_state(layered) == before


def test_removed_file_frees_its_blocks(house: House) -> None:
    tree = house.active(fill)
    with (tree / "big").open("wb") as file:
        file.write(os.urandom(64 << 20))
        file.flush()
        os.fsync(file.fileno())
    (tree / "big").read_bytes()
    assert (tree.upper / "big").stat().st_blocks * 512 >= 64 << 20
    held = held_files(house)
    assert held
    (tree / "big").unlink()
    eventually(lambda: held_files(house) < held, what="the end of its backing id")


def held_files(house: House) -> int:
    return house.worker().backing


def test_removed_snapshot_lets_go_of_its_files(house: House, tmp_path: Path) -> None:
    tree = house.active(fill)
    before = held_files(house)

    def opened() -> bool:
        """The kernel may forget some at any time, of which others on the machine are the cause."""
        for number in range(20):
            (tree / "dir" / str(number)).read_bytes()
            (tree / f"new{number}").write_bytes(b"x")
        return held_files(house) >= before + 40

    eventually(opened, what="an id for each file")
    with bind_mount(tree.path, tmp_path / "held"):
        house.snapshots.remove(tree.key)
        eventually(lambda: held_files(house) <= before, what="the end of its backing ids")


def test_forgotten_files_are_let_go(house: House, layered: Tree) -> None:
    drop_dentries()
    before = held_files(house)
    for number in range(20):
        (layered / "dir" / str(number)).read_bytes()
    assert held_files(house) >= before + 20

    def gone() -> bool:
        drop_dentries()
        return held_files(house) <= before

    eventually(gone, what="the end of their backing ids")


def test_locks_hold_between_processes_on_one_file(layered: Tree) -> None:
    script = (
        "import fcntl, sys; f = open(sys.argv[1], 'r+b')\n"
        "try: fcntl.flock(f, fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
        "except BlockingIOError: print('held')"
    )
    with (layered / "file").open("r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        said = subprocess.run(
            [sys.executable, "-c", script, layered / "file"],
            capture_output=True,
            text=True,
            check=True,
        )
    assert said.stdout == "held\n"
