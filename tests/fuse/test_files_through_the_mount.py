"""Every operation through a real mount, with the system calls that programs use."""

from __future__ import annotations

import errno
import mmap
import os
import socket
import stat
import subprocess
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.overlay import RENAME_EXCHANGE, RENAME_NOREPLACE
from snapfs.overlay.syscalls import AT_FDCWD
from snapfs.overlay.syscalls import rename as renameat2
from tests.support.lanes import House, Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)


def lower(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower")
    (layer / "dir").mkdir()
    (layer / "dir" / "inner").write_bytes(b"inner")
    (layer / "link").symlink_to("file")
    (layer / "big").write_bytes(os.urandom(3 << 20))


@pytest.fixture
def layered(house: House) -> Tree:
    return house.active(lower)


def test_created_file_reads_back_and_lies_in_the_upper_layer(tree: Tree) -> None:
    (tree / "new").write_bytes(b"content")
    assert (tree / "new").read_bytes() == b"content"
    assert (tree.upper / "new").read_bytes() == b"content"


def test_lower_file_is_copied_up_by_a_write_and_keeps_its_inode_number(layered: Tree) -> None:
    before = (layered / "file").stat()
    with (layered / "file").open("ab") as file:
        file.write(b" and more")
    after = (layered / "file").stat()
    assert (layered / "file").read_bytes() == b"lower and more"
    assert after.st_ino == before.st_ino
    assert after.st_size == 14


def test_open_reader_sees_what_a_later_writer_writes(layered: Tree) -> None:
    """Except past us, where it keeps the lower file, as on kernel overlayfs."""
    seen = b"lower" if layered.house.passes_through else b"UPPER"
    with (layered / "file").open("rb", buffering=0) as reader:
        assert reader.read() == b"lower"
        (layered / "file").write_bytes(b"UPPER")
        assert os.pread(reader.fileno(), 10, 0) == seen
        os.posix_fadvise(reader.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(reader.fileno(), 10, 0) == seen
        assert (layered / "file").read_bytes() == b"UPPER"


def test_truncating_open_of_a_lower_file_leaves_it_empty(layered: Tree) -> None:
    os.close(os.open(layered / "file", os.O_WRONLY | os.O_TRUNC))
    assert (layered / "file").stat().st_size == 0
    assert (layered / "file").read_bytes() == b""


@pytest.mark.parametrize("size", [0, 3, 4096, 20 << 20, 40 << 20])
def test_truncate_sets_the_size(layered: Tree, size: int) -> None:
    content = (layered / "big").read_bytes()
    os.truncate(layered / "big", size)
    assert (layered / "big").stat().st_size == size
    assert (layered / "big").read_bytes() == content[:size].ljust(size, b"\0")


def test_truncate_by_descriptor(tree: Tree) -> None:
    with (tree / "f").open("wb+") as file:
        file.write(b"0123456789")
        file.flush()
        os.ftruncate(file.fileno(), 4)
        file.seek(0)
        assert file.read() == b"0123"


def test_big_writes_and_reads_are_whole(tree: Tree) -> None:
    content = os.urandom(5 << 20)
    (tree / "f").write_bytes(content)
    assert (tree / "f").read_bytes() == content
    assert (tree.upper / "f").read_bytes() == content


def test_read_past_the_end_is_empty_and_across_it_is_short(tree: Tree) -> None:
    (tree / "f").write_bytes(b"x" * 5000)
    with (tree / "f").open("rb") as file:
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(file.fileno(), 100, 6000) == b""
        assert os.pread(file.fileno(), 4096, 4096) == b"x" * 904


def test_appending_writers_do_not_overwrite_each_other(tree: Tree) -> None:
    one = os.open(tree / "f", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    other = os.open(tree / "f", os.O_WRONLY | os.O_APPEND)
    for turn in range(3):
        os.write(one, b"a%d" % turn)
        os.write(other, b"b%d" % turn)
    os.close(one)
    os.close(other)
    assert (tree / "f").read_bytes() == b"a0b0a1b1a2b2"


def test_direct_io_reads_and_writes(tree: Tree) -> None:
    fd = os.open(tree / "f", os.O_RDWR | os.O_CREAT | os.O_DIRECT)
    page = mmap.mmap(-1, 4096)
    page.write(b"d" * 4096)
    assert os.writev(fd, [page]) == 4096
    into = mmap.mmap(-1, 4096)
    assert os.preadv(fd, [into], 0) == 4096
    os.close(fd)
    assert into[:] == b"d" * 4096


def test_shared_mapping_writes_reach_the_layer(layered: Tree) -> None:
    with (layered / "file").open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        mapped[0:5] = b"MMAP!"
        mapped.flush()
    assert (layered.upper / "file").read_bytes() == b"MMAP!"


def test_program_runs_from_the_mount(tree: Tree) -> None:
    script = tree / "run"
    script.write_bytes(Path("/bin/true").read_bytes())
    script.chmod(0o755)
    assert os.spawnv(os.P_WAIT, script, ["run"]) == 0


def test_unlinked_file_stays_usable_while_open(layered: Tree) -> None:
    fd = os.open(layered / "file", os.O_RDWR)
    (layered / "file").unlink()
    os.pwrite(fd, b"still", 0)
    os.fsync(fd)
    assert os.pread(fd, 100, 0) == b"still"
    assert os.fstat(fd).st_nlink == 0
    assert not (layered / "file").exists()
    os.close(fd)


def test_unlinked_lower_file_stays_readable_while_open(layered: Tree) -> None:
    fd = os.open(layered / "file", os.O_RDONLY)
    (layered / "file").unlink()
    assert os.pread(fd, 100, 0) == b"lower"
    assert os.fstat(fd).st_nlink == 0
    os.close(fd)


def test_handle_follows_its_file_through_renames(layered: Tree) -> None:
    with (layered / "file").open("r+b", buffering=0) as file:
        os.rename(layered / "file", layered / "moved")
        os.rename(layered / "dir", layered / "dir2")
        os.rename(layered / "moved", layered / "dir2" / "deep")
        file.write(b"LOWER")
    assert (layered / "dir2" / "deep").read_bytes() == b"LOWER"
    assert sorted(os.listdir(layered.path)) == ["big", "dir2", "link"]


def test_directory_of_a_lower_layer_can_be_renamed(layered: Tree) -> None:
    os.rename(layered / "dir", layered / "renamed")
    assert (layered / "renamed" / "inner").read_bytes() == b"inner"
    with pytest.raises(FileNotFoundError):
        (layered / "dir").stat()


def test_rename_flags(layered: Tree) -> None:
    def rename(old: str, new: str, flags: int) -> None:
        paths = (os.fsencode(layered / old), os.fsencode(layered / new))
        renameat2(AT_FDCWD, paths[0], AT_FDCWD, paths[1], flags)

    with pytest.raises(FileExistsError):
        rename("file", "big", RENAME_NOREPLACE)
    rename("file", "dir", RENAME_EXCHANGE)
    assert (layered / "dir").read_bytes() == b"lower"
    assert (layered / "file" / "inner").read_bytes() == b"inner"


def test_hard_links_share_number_and_content(layered: Tree) -> None:
    os.link(layered / "file", layered / "other")
    (layered / "other").write_bytes(b"both")
    one, other = (layered / "file").stat(), (layered / "other").stat()
    assert (layered / "file").read_bytes() == b"both"
    assert one.st_ino == other.st_ino
    assert one.st_nlink == other.st_nlink == 2
    (layered / "file").unlink()
    assert (layered / "other").stat().st_nlink == 1


def test_symbolic_links(layered: Tree) -> None:
    assert os.readlink(layered / "link") == "file"
    long = "x" * 3000
    (layered / "long").symlink_to(long)
    assert os.readlink(layered / "long") == long


def test_special_files(tree: Tree) -> None:
    os.mkfifo(tree / "fifo", 0o640)
    os.mknod(tree / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "disk", stat.S_IFBLK | 0o600, os.makedev(259, 70000))
    os.mknod(tree / "plain", stat.S_IFREG | 0o604)
    server = socket.socket(socket.AF_UNIX)
    here = Path.cwd()
    os.chdir(tree.path)
    try:
        server.bind("socket")
        server.listen()
        with socket.socket(socket.AF_UNIX) as client:
            client.connect("socket")
    finally:
        os.chdir(here)
        server.close()
    assert stat.S_ISFIFO((tree / "fifo").stat().st_mode)
    assert stat.S_ISSOCK((tree / "socket").stat().st_mode)
    assert (tree / "disk").stat().st_rdev == os.makedev(259, 70000)
    assert (tree / "null").read_bytes() == b""
    assert stat.S_IMODE((tree / "plain").stat().st_mode) == 0o604


def test_fifo_passes_data(tree: Tree) -> None:
    os.mkfifo(tree / "fifo")
    reader = os.open(tree / "fifo", os.O_RDONLY | os.O_NONBLOCK)
    writer = os.open(tree / "fifo", os.O_WRONLY)
    os.write(writer, b"through")
    assert os.read(reader, 10) == b"through"
    os.close(writer)
    os.close(reader)


def test_directories_are_made_and_removed(layered: Tree) -> None:
    (layered / "a" / "b").mkdir(parents=True)
    with pytest.raises(OSError, match="not empty"):
        (layered / "a").rmdir()
    (layered / "a" / "b").rmdir()
    (layered / "a").rmdir()
    (layered / "dir" / "inner").unlink()
    (layered / "dir").rmdir()
    assert sorted(os.listdir(layered.path)) == ["big", "file", "link"]
    (layered / "dir").mkdir()
    assert os.listdir(layered / "dir") == []


def test_listing_has_dots_types_and_numbers(layered: Tree) -> None:
    with os.scandir(layered.path) as found:
        entries = {entry.name: entry for entry in found}
        assert entries["dir"].is_dir()
        assert entries["link"].is_symlink()
        assert entries["file"].inode() == (layered / "file").stat().st_ino
    listed = subprocess.run(
        ["ls", "-fai", layered.path], capture_output=True, text=True, check=True
    )
    numbers = dict(line.split()[::-1] for line in listed.stdout.splitlines())
    assert int(numbers["."]) == layered.path.stat().st_ino
    assert ".." in numbers


def test_listing_of_20_000_entries_is_whole(tree: Tree) -> None:
    inside = tree.upper / "many"
    inside.mkdir()
    for number in range(20_000):
        os.close(os.open(inside / f"entry-{number:05}", os.O_CREAT | os.O_WRONLY))
    assert len(set(os.listdir(tree / "many"))) == 20_000


def test_removing_while_listing_removes_everything(tree: Tree) -> None:
    (tree / "d").mkdir()
    for number in range(1000):
        (tree / "d" / str(number)).touch()
    with os.scandir(tree / "d") as entries:
        for entry in entries:
            os.unlink(entry.path)
    (tree / "d").rmdir()


def test_sync_of_files_and_directories(layered: Tree) -> None:
    with (layered / "file").open("ab") as file:
        file.write(b"x")
        file.flush()
        os.fdatasync(file.fileno())
        os.fsync(file.fileno())
    for name in ("", "dir"):
        fd = os.open(layered / name, os.O_RDONLY | os.O_DIRECTORY)
        os.fsync(fd)
        os.close(fd)


def test_space_is_that_of_the_layers(tree: Tree) -> None:
    ours, real = os.statvfs(tree.path), os.statvfs(tree.upper)
    assert ours.f_blocks == real.f_blocks
    assert ours.f_namemax == 255


def test_absent_names_stay_absent_until_they_are_made(tree: Tree) -> None:
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            (tree / "name").stat()
    (tree / "name").touch()
    assert (tree / "name").exists()


def test_names_that_are_too_long_and_wrong_types_are_refused(layered: Tree) -> None:
    with pytest.raises(OSError) as refused:
        (layered / ("n" * 256)).touch()
    assert refused.value.errno == errno.ENAMETOOLONG
    with pytest.raises(NotADirectoryError):
        (layered / "file" / "below").touch()
    with pytest.raises(IsADirectoryError):
        (layered / "dir").write_bytes(b"")
    with pytest.raises(FileExistsError):
        (layered / "dir").mkdir()


def test_names_of_odd_bytes_come_through(tree: Tree) -> None:
    names = [b"\xff\xfe", b"new\nline", b" ", "ü".encode(), b"n" * 255]
    for name in names:
        os.close(os.open(os.fsencode(tree.path) + b"/" + name, os.O_CREAT | os.O_WRONLY))
    assert sorted(os.listdir(os.fsencode(tree.path))) == sorted(names)


def test_500_layers(house: House) -> None:
    def fill(number: int) -> None:
        (house.layer(house.snapshots.stat(key).id) / f"f{number}").write_text(str(number))
        (house.layer(house.snapshots.stat(key).id) / "top").write_text(str(number))

    parent = ""
    for number in range(500):
        key = house.name()
        house.snapshots.prepare(key, parent)
        fill(number)
        parent = house.name()
        house.snapshots.commit(key, parent)
    deep = house.on(parent)
    assert len(os.listdir(deep.path)) == 501
    assert (deep / "f0").read_text() == "0"
    assert (deep / "top").read_text() == "499"
    (deep / "f0").write_text("changed")
    assert (deep / "f0").read_text() == "changed"
