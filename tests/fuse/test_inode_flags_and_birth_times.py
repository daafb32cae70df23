"""lsattr, chattr, birth times, files without a name, and what df says, through a mount."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import mmap
import os
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.fuse.attributes import View
from snapfs.fuse.channel import Opcode, Request
from snapfs.fuse.modes import Mode
from snapfs.fuse.operations import OverlayOperations
from snapfs.fuse.trees import SingleForest
from snapfs.overlay import Tree as OverlayTree
from snapfs.overlay import TreeSpec, identity
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, drop_dentries
from tests.support.overlay.kernel import overlay
from tests.support.overlay.operations import outcome

pytestmark = [pytest.mark.fuse, pytest.mark.root]

MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)
DEADLINE_S = 20.0
REFUSED = ("EPERM", "EACCES", "EIO")
"""An open, a mapping, or what is written through it."""


def lower(layer: Path) -> None:
    (layer / "file").write_bytes(b"lower")
    (layer / "dir").mkdir()
    (layer / "dir" / "inner").write_bytes(b"inner")
    (layer / "link").symlink_to("file")


@pytest.fixture
def layered(house: House) -> Tree:
    return house.active(lower)


def run(*words: str | Path) -> str:
    return subprocess.run(words, check=True, capture_output=True, text=True).stdout


def flags(path: Path) -> str:
    """Return what lsattr shows, without the dashes."""
    return run("lsattr", "-d", path).split()[0].replace("-", "")


# Inode flags


@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
@pytest.mark.parametrize("name", ["file", "dir", "new"])
def test_flags_are_set_shown_and_kept(layered: Tree, name: str) -> None:
    (layered / "new").touch()
    before = flags(layered / name)
    run("chattr", "+iad", layered / name)
    assert flags(layered / name) == "".join(sorted(f"iad{before}", key="siadAe".index))
    drop_dentries()
    layered.house.kill_worker()
    assert set(flags(layered / name)) == set(f"iad{before}")
    run("chattr", "-iad", layered / name)
    assert flags(layered / name) == before


def test_an_immutable_file_is_not_changed_by_anybody(layered: Tree) -> None:
    run("chattr", "+i", layered / "file")
    for step in (
        lambda: (layered / "file").write_bytes(b"new"),
        lambda: (layered / "file").unlink(),
        lambda: (layered / "file").rename(layered / "other"),
        lambda: (layered / "file").chmod(0o600),
        lambda: os.link(layered / "file", layered / "other"),
        lambda: os.setxattr(layered / "file", "user.a", b"1"),
        lambda: os.truncate(layered / "file", 0),
        lambda: os.utime(layered / "file"),
    ):
        assert outcome(step) == "EPERM"
    assert (layered / "file").read_bytes() == b"lower"


def overwrite(path: Path) -> None:
    with path.open("r+b", buffering=0) as file:
        file.write(b"new")


def test_an_append_only_file_takes_what_is_appended(layered: Tree) -> None:
    run("chattr", "+a", layered / "file")
    assert outcome(lambda: overwrite(layered / "file")) == "EPERM"
    assert outcome(lambda: (layered / "file").write_bytes(b"")) == "EPERM"
    with (layered / "file").open("a") as file:
        file.write(" and more")
    assert (layered / "file").read_bytes() == b"lower and more"


def touched(*words: str | Path) -> bool:
    return subprocess.run(["touch", *words], capture_output=True).returncode == 0


def times(file: Path) -> list[str | bool]:
    """What is said to who sets times of an append-only file, in each way that there is."""
    run("chattr", "+a", file)
    try:
        return [
            outcome(lambda: os.utime(file, (1, 2))),
            outcome(lambda: os.utime(file)),
            touched(file),
            *(touched(*words, file) for words in (["-a"], ["-m"], ["-d", "2001-01-01"])),
        ]
    finally:
        run("chattr", "-a", file)


def test_times_of_an_append_only_file_are_set_to_the_present_one_only(
    layered: Tree, tmp_path: Path
) -> None:
    (layered / "new").write_bytes(b"")
    found = [times(layered / name) for name in ("file", "new")]
    (tmp_path / "low").mkdir()
    lower(tmp_path / "low")
    (tmp_path / "upper").mkdir()
    with overlay(
        tmp_path / "kernel", [tmp_path / "low"], tmp_path / "upper", tmp_path / "work"
    ) as merged:
        (merged / "new").write_bytes(b"")
        assert found == [times(merged / name) for name in ("file", "new")]
    assert found[0][:2] == ["EPERM", "ok"]


def scribble(path: Path) -> None:
    """Change what is there through a shared mapping of a file that is open for appending."""
    fd = os.open(path, os.O_RDWR | os.O_APPEND)
    try:
        with mmap.mmap(fd, 5) as mapped:
            mapped[:5] = b"HACKD"
            mapped.flush()
    finally:
        os.close(fd)


def clear_append(path: Path) -> None:
    """Stop appending, and write at the start."""
    fd = os.open(path, os.O_WRONLY | os.O_APPEND)
    try:
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        os.pwrite(fd, b"HACKD", 0)
    finally:
        os.close(fd)


def append(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b" and more")


def kept_through(file: Path, way: Callable[[Path], None]) -> bytes:
    """Make a file append-only, try a way round with and without a reader; return what it has."""
    append(file)
    run("chattr", "+a", file)
    try:
        assert outcome(lambda: way(file)) in REFUSED
        append(file)
        drop_dentries()
        with file.open("rb"):
            assert outcome(lambda: way(file)) in REFUSED
            append(file)
        drop_dentries()
        return file.read_bytes()
    finally:
        run("chattr", "-a", file)


@pytest.mark.parametrize("way", [scribble, clear_append])
def test_no_way_round_changes_what_an_append_only_file_has(
    layered: Tree, tmp_path: Path, way: Callable[[Path], None]
) -> None:
    """Nor does it in kernel overlayfs, which refuses earlier (posix.md)."""
    kept = kept_through(layered / "file", way)
    (tmp_path / "low").mkdir()
    lower(tmp_path / "low")
    (tmp_path / "upper").mkdir()
    with overlay(
        tmp_path / "kernel", [tmp_path / "low"], tmp_path / "upper", tmp_path / "work"
    ) as merged:
        assert kept_through(merged / "file", way) == kept
    assert kept == b"lower and more and more and more"


@pytest.mark.modes(Mode.NO_OPEN)
def test_an_immutable_file_is_not_changed_by_a_mapping_in_a_lane_without_opens(
    layered: Tree,
) -> None:
    (layered / "new").write_bytes(b"content")
    run("chattr", "+i", layered / "new")
    assert outcome(lambda: scribble(layered / "new")) in REFUSED
    drop_dentries()
    assert (layered.upper / "new").read_bytes() == b"content"
    run("chattr", "-i", layered / "new")


@pytest.mark.modes(Mode.PASSTHROUGH)
@pytest.mark.logs("lane.worker_died", "lane.worker_restarted")
def test_who_appends_goes_on_and_cannot_do_more_after_a_worker_s_death(layered: Tree) -> None:
    file = layered / "file"
    run("chattr", "+a", file)
    fd = os.open(file, os.O_WRONLY | os.O_APPEND)
    try:
        layered.house.kill_worker()
        assert os.write(fd, b" and more") == 9
        fcntl.fcntl(fd, fcntl.F_SETFL, 0)
        assert outcome(lambda: os.pwrite(fd, b"HACKD", 0)) == "EPERM"
        assert file.read_bytes() == b"lower and more"
    finally:
        os.close(fd)
    run("chattr", "-a", file)


def test_an_immutable_directory_takes_no_file_without_a_name(layered: Tree) -> None:
    run("chattr", "+i", layered / "dir")
    flags = os.O_TMPFILE | os.O_RDWR
    assert outcome(lambda: os.close(os.open(layered / "dir", flags))) == "EPERM"
    run("chattr", "-i", layered / "dir")


def test_an_append_only_directory_loses_no_names(layered: Tree) -> None:
    run("chattr", "+a", layered / "dir")
    (layered / "dir" / "new").touch()
    assert outcome((layered / "dir" / "inner").unlink) == "EPERM"
    assert outcome((layered / "dir" / "new").unlink) == "EPERM"


def test_only_who_may_sets_flags(layered: Tree) -> None:
    os.chown(layered / "file", 1000, 1000)
    layered.path.chmod(0o755)
    code = "chattr +i file; chattr +d file; chattr +d dir"
    said = subprocess.run(
        ["setpriv", "--reuid=1000", "--regid=1000", "--clear-groups", "sh", "-c", code],
        cwd=layered.path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert said.stderr.count("Operation not permitted") == 2
    assert set(flags(layered / "file")) - {"e"} == {"d"}


def test_a_snapshot_with_immutable_files_is_committed_built_on_and_removed(house: House) -> None:
    tree = house.active(lower)
    run("chattr", "+i", tree / "file", tree / "dir")
    parent = house.name()
    house.snapshots.commit(tree.key, parent)
    above = house.on(parent)
    assert "i" in flags(above / "file")
    assert outcome((above / "file").unlink) == "EPERM"
    assert outcome((above / "dir" / "new").touch) == "EPERM"
    run("chattr", "-i", above / "file", above / "dir")
    (above / "file").unlink()
    house.snapshots.remove(above.key)
    house.snapshots.remove(parent)
    house.snapshots.cleanup()
    assert not tree.upper.exists()


def test_a_view_shows_flags(house: House) -> None:
    tree = house.active(lower)
    run("chattr", "+i", tree / "file")
    parent = house.name()
    house.snapshots.commit(tree.key, parent)
    assert "i" in flags(house.view(parent) / "file")


def test_extended_fields_are_shown_and_set(layered: Tree) -> None:
    run("xfs_io", "-c", "chattr +i", layered / "file")
    assert "i" in run("xfs_io", "-r", "-c", "lsattr", layered / "file").split()[0]
    run("xfs_io", "-r", "-c", "chattr -i", layered / "file")
    (layered / "file").unlink()


def test_no_file_is_a_terminal(layered: Tree) -> None:
    with (layered / "file").open() as file:
        assert not os.isatty(file.fileno())


def test_flags_of_a_frozen_snapshot_are_set_after_the_thaw(house: House) -> None:
    tree = house.active(lower)
    (tree / "new").touch()
    house.lane.freeze(tree.id, timeout_s=5)
    writer = threading.Thread(target=run, args=("chattr", "+d", tree / "new"))
    writer.start()
    assert house.worker().frozen == (tree.id,)
    assert "d" not in flags(tree.upper / "new")
    house.lane.thaw(tree.id)
    writer.join(DEADLINE_S)
    assert "d" in flags(tree.upper / "new")


# Birth times


def birth(path: Path) -> str:
    return run("stat", "-c", "%w", path).strip()


@pytest.mark.parametrize("name", ["file", "dir", "link", "new"])
def test_birth_times_are_those_of_the_layers(layered: Tree, name: str) -> None:
    (layered / "new").touch()
    base = layered.upper if name == "new" else layered.house.layer(layered.id - 1)
    expected = birth(base / name)
    assert expected != "-"
    assert birth(layered / name) == expected
    os.utime(layered / name, (0, 0), follow_symlinks=False)
    drop_dentries()  # what the kernel has cached may stay, what it forgets is that of the copy
    assert birth(layered / name) in (expected, birth(layered.upper / name))


def test_what_statx_says_beside_the_birth_time_is_what_stat_says(layered: Tree) -> None:
    os.setxattr(layered / "file", "user.a", b"1")
    os.utime(layered / "file", ns=(-5_000_000_001, 1 << 62))
    form = "%a %b %f %g %h %i %o %s %t %T %u %X %.9Y %Z"
    drop_dentries()
    before = run("stat", "-c", form, layered / "file")
    run("stat", "-c", "%w", layered / "file")
    assert run("stat", "-c", form, layered / "file") == before
    drop_dentries()
    assert run("stat", "-c", f"{form} %w", layered / "file").startswith(before.strip())


# Files without a name


def linked(fd: int, path: Path) -> None:
    # A directory descriptor makes Python take linkat(2), which can follow the link.
    os.link(f"/proc/self/fd/{fd}", path, src_dir_fd=fd, follow_symlinks=True)


def test_a_file_without_a_name_is_written_read_and_named(layered: Tree) -> None:
    fd = os.open(layered / "dir", os.O_TMPFILE | os.O_RDWR, 0o640)
    with open(fd, "wb+") as file:
        file.write(b"content")
        file.flush()
        assert os.fstat(fd).st_nlink == 0
        assert os.pread(fd, 20, 0) == b"content"
        assert sorted(os.listdir(layered / "dir")) == ["inner"]
        linked(fd, layered / "dir" / "named")
        assert os.fstat(fd).st_nlink == 1
        assert (layered / "dir" / "named").stat().st_ino == os.fstat(fd).st_ino
        file.write(b" and more")
    assert (layered / "dir" / "named").read_bytes() == b"content and more"
    assert (layered.upper / "dir" / "named").stat().st_mode & 0o7777 == 0o640


def test_one_that_gets_no_name_is_gone_with_its_descriptor(tree: Tree) -> None:
    work = tree.house.root / "layers" / str(tree.id) / "work" / "snapfs"
    with contextlib.suppress(FileNotFoundError):
        (tree / "x").unlink()
    with open(os.open(tree.path, os.O_TMPFILE | os.O_RDWR), "wb") as file:
        file.write(b"content")
        file.flush()
        assert [name for name in os.listdir(work) if name.startswith("o")]

    def gone() -> bool:
        drop_dentries()
        return not [name for name in os.listdir(work) if name.startswith("o")]

    eventually(gone, what="the end of the file")


def test_one_that_is_made_exclusively_gets_no_name(tree: Tree) -> None:
    fd = os.open(tree.path, os.O_TMPFILE | os.O_EXCL | os.O_RDWR)
    assert outcome(lambda: linked(fd, tree / "named")) == "ENOENT"
    os.close(fd)


def test_none_is_made_in_a_view(house: House) -> None:
    view = house.view(house.base_layers(lower))
    with pytest.raises(OSError) as refused:
        os.open(view.path, os.O_TMPFILE | os.O_RDWR)
    assert refused.value.errno == errno.EROFS


def test_it_is_mapped_reopened_and_read_by_others(tree: Tree) -> None:
    fd = os.open(tree.path, os.O_TMPFILE | os.O_RDWR, 0o600)
    os.write(fd, b"x" * 10000)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDONLY)
    assert os.read(again, 20000) == b"x" * 10000
    linked(fd, tree / "named")
    assert (tree / "named").read_bytes() == b"x" * 10000
    os.close(again)
    os.close(fd)


def test_no_committed_layer_has_a_file_without_a_name(house: House) -> None:
    tree = house.active(lower)
    fd = os.open(tree.path, os.O_TMPFILE | os.O_RDWR)
    os.write(fd, b"content")
    os.close(fd)
    parent = house.name()
    house.snapshots.commit(tree.key, parent)
    assert sorted(os.listdir(house.view(parent).path)) == ["dir", "file", "link"]


# Space and durability


async def test_a_kernel_that_asks_for_syncfs_is_answered(tmp_path: Path) -> None:
    for name in ("upper", "work"):
        (tmp_path / name).mkdir()
    tree = OverlayTree(TreeSpec(1, (), tmp_path / "upper", tmp_path / "work", single=True))
    operations = OverlayOperations(SingleForest(tree, tree.inodes), View())
    request = Request(1, Opcode.SYNCFS, identity.LANE_ROOT, 0, 0, 1, bytes(8))
    assert await operations.raw[Opcode.SYNCFS](request) == b""
    operations.forest.close()


def test_df_shows_the_file_system_of_the_layers(layered: Tree) -> None:
    shown, real = os.statvfs(layered / "dir"), os.statvfs(layered.upper)
    assert (shown.f_blocks, shown.f_bsize, shown.f_files) == (
        real.f_blocks,
        real.f_bsize,
        real.f_files,
    )
    assert str(layered.path.parent) in run("df", layered / "file")
