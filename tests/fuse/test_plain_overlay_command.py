"""snapfs-overlay as a person, mount(8) and fuse-overlayfs's users run it."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import mounts, options, standalone
from tests.support import lanes
from tests.support.daemon import eventually, processes_below
from tests.support.overlay.kernel import mount, overlay, tmpfs

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

COMMAND = Path(sys.executable).with_name("snapfs-overlay")
DEADLINE_S = 30.0
MS_BIND = 4096
HOUR_NS = 3600 * 10**9


class Place:
    """Directories to merge, and where."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.low, self.below, self.upper, self.work, self.mnt = (
            base / name for name in ("low", "below", "upper", "work", "mnt")
        )
        for path in (self.low, self.below, self.upper, self.work, self.mnt):
            path.mkdir()
        (self.below / "base").write_text("base")
        (self.below / "both").write_text("below")
        (self.low / "both").write_text("low")
        (self.low / "dir").mkdir()
        (self.low / "dir" / "inner").write_text("inner")
        os.chown(self.low / "both", 1000, 2000)

    @property
    def layers(self) -> str:
        return f"lowerdir={self.low}:{self.below},upperdir={self.upper},workdir={self.work}"

    def run(self, *arguments: object, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [COMMAND, *map(str, arguments)],
            check=check,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def mount(self, extra: str = "", **options: object) -> Path:
        self.run("-o", self.layers + extra, self.mnt, **options)
        return self.mnt

    def ended(self) -> bool:
        return not processes_below(self.base) and not mounts.mounted_at(self.mnt)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "place").mkdir()
    made = Place(tmp_path / "place")
    yield made
    lanes.abort(made.base)
    eventually(lambda: not processes_below(made.base), what="the end of the process")


def test_metacopy_copies_no_data_for_an_owner_before_the_end_of_the_mount(place: Place) -> None:
    merged = place.mount(",metacopy=on")
    os.chown(merged / "base", 7, 8)
    assert "trusted.overlay.metacopy" in os.listxattr(place.upper / "base")
    assert (merged / "base").read_text() == "base"
    assert (merged / "base").stat().st_uid == 7
    mounts.unmount(merged)
    eventually(place.ended, what="the end of the process")
    assert (place.upper / "base").read_text() == "base"
    assert (place.upper / "base").stat().st_uid == 7
    assert "trusted.overlay.metacopy" not in os.listxattr(place.upper / "base")
    merged = place.mount(",metacopy=off")
    os.chown(merged / "both", 7, 8)
    assert (place.upper / "both").read_text() == "low"


def test_mounts_in_the_background_and_ends_with_the_mount(place: Place) -> None:
    merged = place.mount()
    assert (merged / "both").read_text() == "low"
    assert (merged / "base").read_text() == "base"
    (merged / "base").write_text("changed")
    assert (place.upper / "base").read_text() == "changed"
    (merged / "both").unlink()
    (found,) = mounts.mounted_at(merged)
    assert (found.type, found.source) == ("fuse.snapfs-overlay", "snapfs-overlay")
    subprocess.run(["fusermount3", "-u", merged], check=True)
    eventually(place.ended, what="the end of the process")
    with overlay(place.base / "kernel", [place.upper, place.low, place.below]) as kernel:
        assert sorted(os.listdir(kernel)) == ["base", "dir"]
        assert (kernel / "base").read_text() == "changed"


def test_what_was_changed_is_there_at_the_next_mount(place: Place) -> None:
    merged = place.mount()
    (merged / "dir" / "new").write_text("new")
    number = (merged / "dir" / "inner").stat().st_ino
    (merged / "dir" / "inner").write_text("copied up")
    mounts.unmount(merged)
    eventually(place.ended, what="the end of the process")
    place.mount()
    assert (merged / "dir" / "new").read_text() == "new"
    assert (merged / "dir" / "inner").stat().st_ino == number
    mounts.unmount(merged)


def test_a_new_mount_waits_for_its_predecessor_to_end(place: Place) -> None:
    """umount returns while the process behind the mount still settles the upper layer."""
    held = os.open(place.work, os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)
    process = subprocess.Popen([COMMAND, "-f", "-o", place.layers, place.mnt])
    try:
        time.sleep(1.5)
        assert process.poll() is None
        assert not mounts.mounted_at(place.mnt)
        os.close(held)
        eventually(lambda: mounts.mounted_at(place.mnt), what="the mount")
        mounts.unmount(place.mnt)
        assert process.wait(timeout=DEADLINE_S) == 0
    finally:
        process.kill()
        process.wait()


def test_two_mounts_never_share_a_work_directory(place: Place) -> None:
    place.mount()
    refused = pytest.raises(OSError, match="in use by another mount")
    with refused, standalone.sole_use(None, place.work, timeout_s=0.2):
        pass
    mounts.unmount(place.mnt)
    with standalone.sole_use(place.upper, place.work, timeout_s=DEADLINE_S):
        assert not mounts.mounted_at(place.mnt)
    eventually(place.ended, what="the end of the process")


def test_two_mounts_never_share_an_upper_directory(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever their work directories; a mount that follows at once waits for the first to end."""
    place.mount()
    (place.base / "work2").mkdir()
    chosen = options.parse([place.layers.replace(f"{place.work}", f"{place.base}/work2")])
    monkeypatch.setattr(standalone, "PREDECESSOR_TIMEOUT_S", 0.2)
    with pytest.raises(OSError, match="in use") as refused:
        standalone.serve(chosen, place.below, ready=lambda: None)
    assert refused.value.errno == errno.EBUSY
    assert refused.value.filename == str(place.upper)
    assert "upper directory is in use by another mount" in str(refused.value)
    assert not mounts.mounted_at(place.below)
    (place.mnt / "new").write_text("first")
    mounts.unmount(place.mnt)
    other = place.layers.replace(f"{place.work}", f"{place.base}/work2")
    place.run("-o", other, place.mnt)
    assert (place.mnt / "new").read_text() == "first"
    mounts.unmount(place.mnt)
    eventually(place.ended, what="the end of the process")


def refused_to_mount(place: Place, upper: Path, work: Path) -> str:
    """Return what the command says; nothing may be mounted, nor be left in the directories."""
    before = [sorted(os.listdir(path)) for path in (upper, work)]
    layers = f"lowerdir={place.low}:{place.below},upperdir={upper},workdir={work}"
    done = place.run("-o", layers, place.mnt, check=False)
    assert done.returncode == 1
    assert "Errno" not in done.stderr
    assert not mounts.mounted_at(place.mnt)
    assert [sorted(os.listdir(path)) for path in (upper, work)] == before
    return done.stderr


def test_a_work_directory_on_another_file_system_is_refused(place: Place) -> None:
    with tmpfs(place.base / "memory") as memory:
        said = refused_to_mount(place, place.upper, memory)
    assert said == (
        f"snapfs-overlay: work directory {memory} is on another file system than {place.upper}; "
        "put both on one\n"
    )


def test_a_work_directory_on_another_mount_of_the_file_system_is_refused(place: Place) -> None:
    (place.base / "aside").mkdir()
    mounts.mount(str(place.base / "aside"), place.work, "none", MS_BIND, "")
    try:
        said = refused_to_mount(place, place.upper, place.work)
    finally:
        mounts.unmount(place.work)
    assert f"{place.work} is on another mount than {place.upper}; put both on one" in said


def test_an_upper_directory_without_trusted_attributes_is_refused(place: Place) -> None:
    target = place.base / "ramfs"
    target.mkdir()
    mount("ramfs", target)
    try:
        for name in ("u", "w"):
            (target / name).mkdir()
        said = refused_to_mount(place, target / "u", target / "w")
    finally:
        mounts.unmount(target)
    assert f"the file system of {target}/w takes no trusted.* attributes" in said
    assert "ext4, xfs, btrfs, tmpfs" in said


@pytest.mark.parametrize(
    ("kind", "words"),
    [
        ("kernel", "makes no whiteouts (RENAME_WHITEOUT)"),
        ("fuse-overlayfs", "takes no trusted.* attributes"),
    ],
)
def test_an_upper_directory_on_an_overlay_that_keeps_its_whiteouts_is_refused(
    place: Place, kind: str, words: str
) -> None:
    base, target = place.base, place.base / "other"
    for name in ("other", "u", "w"):
        (base / name).mkdir()
    layers = f"lowerdir={place.below},upperdir={base}/u,workdir={base}/w"
    if kind == "kernel":
        mount("overlay", target, layers)
    elif shutil.which(kind) is None:
        pytest.skip("no fuse-overlayfs here")
    else:
        subprocess.run([kind, "-o", layers, target], check=True, timeout=DEADLINE_S)
    try:
        for name in ("u", "w"):
            (target / name).mkdir()
        said = refused_to_mount(place, target / "u", target / "w")
    finally:
        mounts.unmount(target)
    eventually(place.ended, what="the end of the process")
    assert f"the file system of {target}/w {words}" in said
    assert "ext4, xfs, btrfs, tmpfs" in said


def fill(directory: Path) -> None:
    for number in range(50):
        (directory / f"full{number}").touch()


def test_a_full_upper_directory_is_mounted(tmp_path: Path) -> None:
    """Somebody must be able to remove something."""
    with tmpfs(tmp_path / "memory", "size=1m,nr_inodes=40") as memory:
        place = Place(memory)
        place.mount()
        (place.mnt / "new").touch()
        mounts.unmount(place.mnt)
        eventually(place.ended, what="the end of the process")
        with pytest.raises(OSError, match="No space"):
            fill(memory)
        place.mount()
        (place.mnt / "new").unlink()
        mounts.unmount(place.mnt)
        eventually(place.ended, what="the end of the process")


def test_root_is_inode_1(place: Place) -> None:
    assert place.mount().stat().st_ino == 1
    mounts.unmount(place.mnt)


@pytest.mark.channel("a channel to miss")
def test_foreground_and_signal(place: Place) -> None:
    process = subprocess.Popen(
        [COMMAND, "-f", "-o", place.layers, place.mnt], stderr=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: mounts.mounted_at(place.mnt), what="the mount")
        assert (place.mnt / "base").read_text() == "base"
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=DEADLINE_S)[1].strip() == ""
    finally:
        process.kill()
        process.communicate()
    assert process.returncode == 0
    assert place.ended()


def test_debug_stays_in_the_foreground_and_logs(place: Place) -> None:
    process = subprocess.Popen(
        [COMMAND, "-d", "-o", place.layers, place.mnt], stderr=subprocess.PIPE, text=True
    )
    try:
        eventually(lambda: mounts.mounted_at(place.mnt), what="the mount")
        os.listdir(place.mnt)
        mounts.unmount(place.mnt)
        assert "DEBUG" in process.communicate(timeout=DEADLINE_S)[1]
    finally:
        process.kill()
        process.communicate()


def test_without_an_upper_directory_nothing_can_be_changed(place: Place) -> None:
    place.run("-o", f"lowerdir={place.low}:{place.below}", place.mnt)
    assert (place.mnt / "both").read_text() == "low"
    with pytest.raises(OSError, match="Read-only file system"):
        (place.mnt / "new").touch()
    mounts.unmount(place.mnt)


def test_read_only_mount_of_a_writable_overlay(place: Place) -> None:
    place.mount(",ro")
    with pytest.raises(OSError, match="Read-only file system"):
        (place.mnt / "new").touch()
    mounts.unmount(place.mnt)


@pytest.mark.channel("times of access")
@pytest.mark.parametrize(
    ("option", "younger", "older"),
    [("noatime", False, False), ("relatime", False, True), ("strictatime", True, True)],
)
def test_reads_change_the_time_of_access_as_the_mount_says(
    place: Place, option: str, younger: bool, older: bool
) -> None:
    """By an atime that is younger than mtime, and by one that is older."""
    (place.upper / "file").write_bytes(b"f" * 5000)
    file = place.mount(f",{option}") / "file"
    shown = os.statvfs(place.mnt).f_flag & (os.ST_NOATIME | os.ST_RELATIME)
    assert shown == getattr(os, f"ST_{option.upper()}", 0)
    changed = []
    for atime_ns in (HOUR_NS + time.time_ns(), 1):
        os.utime(file, ns=(atime_ns, 2))
        subprocess.run(["cat", file], check=True, stdout=subprocess.DEVNULL)
        assert file.stat().st_atime_ns == (place.upper / "file").stat().st_atime_ns
        changed.append(file.stat().st_atime_ns != atime_ns)
    assert changed == [younger, older]
    before = (place.below / "base").stat().st_atime_ns
    assert (place.mnt / "base").read_text() == "base"
    assert (place.below / "base").stat().st_atime_ns == before


def test_owners_are_squashed(place: Place) -> None:
    merged = place.mount(",squash_to_uid=7,squash_to_gid=8")
    assert ((merged / "both").stat().st_uid, (merged / "both").stat().st_gid) == (7, 8)
    mounts.unmount(merged)


@pytest.mark.parametrize("command", [COMMAND, "fuse-overlayfs"])
def test_owners_are_mapped_both_ways(place: Place, command: Path | str) -> None:
    options = f"{place.layers},uidmapping=0:100:10:1000:0:10,gidmapping=0:200:10:2000:0:10"
    subprocess.run([command, "-o", options, place.mnt], check=True, timeout=DEADLINE_S)
    assert _owner(place.mnt / "both") == (0, 0)
    assert _owner(place.mnt / "base") == (100, 200)
    (place.mnt / "new").touch()
    assert _owner(place.mnt / "new") == (0, 0)
    os.chown(place.mnt / "both", 103, 204)
    assert _owner(place.mnt / "both") == (103, 204)
    mounts.unmount(place.mnt)
    eventually(place.ended, what="the end of the process")
    assert _owner(place.upper / "new") == (1000, 2000)
    assert _owner(place.upper / "both") == (3, 4)


def test_an_owner_that_no_range_has_is_nobody(place: Place) -> None:
    merged = place.mount(",uidmapping=1000:0:1,gidmapping=1000:0:1")
    assert _owner(merged / "base") == (65534, 65534)
    mounts.unmount(merged)


def _owner(path: Path) -> tuple[int, int]:
    found = path.stat()
    return found.st_uid, found.st_gid


def test_directories_of_lower_layers_move_only_with_redirects_on(place: Place) -> None:
    merged = place.mount()
    with pytest.raises(OSError, match="cross-device"):
        os.rename(merged / "dir", merged / "moved")
    (merged / "own").mkdir()
    os.rename(merged / "own", merged / "moved")
    mounts.unmount(merged)
    eventually(place.ended, what="the end of the process")
    place.mount(",redirect_dir=on")
    os.rename(merged / "dir", merged / "far")
    assert (merged / "far" / "inner").read_text() == "inner"
    mounts.unmount(merged)


def test_static_link_counts_and_no_acl_and_no_attributes(place: Place) -> None:
    merged = place.mount(",static_nlink,noacl,noxattrs=1")
    assert (merged / "dir").stat().st_nlink == 1
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(merged / "base", "user.x", b"")
    with pytest.raises(OSError, match="not supported"):
        os.setxattr(merged / "base", "system.posix_acl_access", b"")
    mounts.unmount(merged)


def test_short_timeouts_still_show_everything(place: Place) -> None:
    merged = place.mount(",timeout=0,volatile")
    with (merged / "base").open("a") as file:
        file.write("+")
        file.flush()
        os.fsync(file.fileno())
    assert (merged / "base").read_text() == "base+"
    mounts.unmount(merged)


def test_hard_links_are_whole_in_the_upper_directory_after_the_unmount(place: Place) -> None:
    os.link(place.below / "base", place.below / "again")
    merged = place.mount()
    (merged / "base").write_text("changed")
    mounts.unmount(merged)
    eventually(place.ended, what="the end of the process")
    assert (place.upper / "again").read_text() == "changed"


@pytest.mark.parametrize(
    ("arguments", "status", "words"),
    [
        (["-o", "lowerdri=x"], 2, "did you mean 'lowerdir'?"),
        (["-o", "lowerdir=/", "a", "b", "c"], 2, "one argument too many"),
        (["-o", "lowerdir=/", "/no/such/place"], 2, "is not a directory; make it first"),
        (["-o", "lowerdir=/,xattr_permissions=1"], 1, "not supported; run as root"),
        ([], 2, "Missing argument"),
    ],
)
def test_wrong_use_is_refused(place: Place, arguments: list[str], status: int, words: str) -> None:
    target = [] if not arguments or len(arguments) > 2 else [place.mnt]
    done = place.run(*arguments, *target, check=False)
    assert done.returncode == status
    assert words in done.stderr
    assert not mounts.mounted_at(place.mnt)


def test_mount_point_under_a_dead_mount_is_refused(place: Place) -> None:
    device = os.open("/dev/fuse", os.O_RDWR)
    options = f"fd={device},rootmode=40000,user_id=0,group_id=0"
    mounts.mount("dead", place.mnt, "fuse.snapfs-overlay", 0, options)
    try:
        os.close(device)
        done = place.run("-o", place.layers, place.mnt, check=False)
        assert done.returncode == 2
        assert "not connected; unmount what is there first" in done.stderr
        assert "Traceback" not in done.stderr
    finally:
        mounts.unmount(place.mnt, mounts.MNT_DETACH)


def test_layers_that_cannot_be_opened_fail_before_anything_is_mounted(place: Place) -> None:
    place.work.rmdir()
    place.work.symlink_to("/proc")
    done = place.run("-o", place.layers, place.mnt, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("snapfs-overlay: ")
    assert place.ended()


def test_help_shows_an_example_and_version_a_number(place: Place) -> None:
    assert "lowerdir=/base,upperdir=/up,workdir=/work" in place.run("--help").stdout
    assert place.run("-V").stdout.startswith("snapfs-overlay, version ")


def test_layers_in_memory_are_read_and_changed(tmp_path: Path) -> None:
    with tmpfs(tmp_path / "memory") as memory:
        place = Place(memory)
        merged = place.mount()
        (merged / "base").write_bytes(bytes(range(256)) * 1000)
        with (merged / "base").open("rb", buffering=0) as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
            assert file.readall() == bytes(range(256)) * 1000
        assert (merged / "both").read_text() == "low"
        mounts.unmount(merged)
        eventually(place.ended, what="the end of the process")
