"""snapfs-overlay as a type of file system: mount(8), its helper, fstab, and the system's log.

mount(8) looks for helpers in the system's directories only, so ours is put there in a mount name
space of its own.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from tests.support import lanes
from tests.support.daemon import eventually, processes_below
from tests.support.lanes import Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root]

PROGRAMS = Path(sys.executable).parent
HELPER = "mount.fuse.snapfs-overlay"
DEADLINE_S = 60.0
# The helpers stand beside what is in /usr/sbin, as `make install` has it.
WITH_HELPER = """
    mkdir "$PLACE/sbin" && ln -s "$HELPER" "${HELPER%-overlay}" "$PLACE/sbin"
    mount -t overlay -o "lowerdir=$PLACE/sbin:/usr/sbin" none /usr/sbin
"""


class Place:
    """Directories to merge, and a name space in which mount(8) finds our helper."""

    def __init__(self, base: Path) -> None:
        self.base = base
        self.mnt = base / "a place"
        for name in ("low", "upper", "work", "a place"):
            (base / name).mkdir()
        (base / "low" / "file").write_text("low")
        self.layers = f"lowerdir={base}/low,upperdir={base}/upper,workdir={base}/work"

    def script(self, steps: str, *, check: bool = True) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["unshare", "-m", "sh", "-ec", steps],
            env={
                **os.environ,
                "PLACE": str(self.base),
                "HELPER": str(PROGRAMS / HELPER),
                "LAYERS": self.layers,
            },
            check=check,
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def helper(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [PROGRAMS / HELPER, "none", self.mnt, *map(str, arguments)],
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
        )

    def ended(self) -> bool:
        return not processes_below(self.base) and not mounts.mounted_at(self.mnt)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    (tmp_path / "p").mkdir()
    made = Place(tmp_path / "p")
    yield made
    lanes.abort(made.base)
    eventually(lambda: not processes_below(made.base), what="the end of the process")


def test_mount_runs_the_helper_of_the_type(place: Place) -> None:
    steps = """
        mount -t fuse.snapfs-overlay -o "$LAYERS,noexec" overlay "$PLACE/a place"
        cat "$PLACE/a place/file"; findmnt -no FSTYPE,OPTIONS "$PLACE/a place"
        umount "$PLACE/a place"
    """
    done = place.script(WITH_HELPER + steps)
    assert done.stdout.startswith("lowfuse.snapfs-overlay rw,nodev,noexec,noatime")
    eventually(place.ended, what="the end of the process")


def test_mount_runs_the_command_where_only_fuse_s_own_helper_is_installed(place: Place) -> None:
    steps = """
        mount -t tmpfs none /usr/local/bin
        ln -s "${HELPER%/*}/snapfs-overlay" /usr/local/bin
        mount -t fuse.snapfs-overlay -o "$LAYERS" overlay "$PLACE/a place"
        cat "$PLACE/a place/file"
        umount "$PLACE/a place"
    """
    assert place.script(steps).stdout == "low"
    eventually(place.ended, what="the end of the process")


def test_a_line_of_fstab_is_mounted_and_unmounted(place: Place) -> None:
    target = str(place.mnt).replace(" ", "\\040")
    line = f"overlay {target} fuse.snapfs-overlay {place.layers},noauto,nofail,x-systemd.idle=1 0 0"
    (place.base / "fstab").write_text(f"# as in /etc/fstab\n{line}\n")
    steps = """
        mount --fstab "$PLACE/fstab" "$PLACE/a place"
        echo changed >"$PLACE/a place/file"
        umount "$PLACE/a place"
        mount --fstab "$PLACE/fstab" -o ro "$PLACE/a place"
        cat "$PLACE/a place/file"
        touch "$PLACE/a place/new" || umount "$PLACE/a place"
    """
    done = place.script(WITH_HELPER + steps)
    assert done.stdout == "changed\n"
    assert "Read-only file system" in done.stderr
    eventually(place.ended, what="the end of the process")


@pytest.mark.parametrize("helper", [True, False], ids=["helper", "command"])
def test_mount_a_passes_over_what_is_mounted(place: Place, helper: bool) -> None:
    target = str(place.mnt).replace(" ", "\\040")
    (place.base / "fstab").write_text(f"none {target} fuse.snapfs-overlay {place.layers} 0 0\n")
    with_command = """
        mount -t tmpfs none /usr/local/bin
        ln -s "${HELPER%/*}/snapfs-overlay" /usr/local/bin
    """
    steps = """
        mount --fstab "$PLACE/fstab" -a
        mount --fstab "$PLACE/fstab" -av
        findmnt -no SOURCE "$PLACE/a place"
        umount "$PLACE/a place"
        mount -t fuse.snapfs-overlay -o "$LAYERS,fsname=named" none "$PLACE/a place"
        findmnt -no SOURCE "$PLACE/a place"
        umount "$PLACE/a place"
    """
    done = place.script((WITH_HELPER if helper else with_command) + steps)
    already, *sources = done.stdout.splitlines()
    assert already.endswith(": already mounted")
    assert sources == ["none", "named"]
    eventually(place.ended, what="the end of the process")


def test_what_is_wrong_is_said_with_mount_s_exit_status(place: Place) -> None:
    done = place.script(
        WITH_HELPER
        + 'mount -t fuse.snapfs-overlay -o "$LAYERS,lowerdri=x" none "$PLACE/a place" || echo $?',
    )
    assert done.stdout == "1\n"
    assert "option 'lowerdri' is not known; did you mean 'lowerdir'?" in done.stderr
    assert place.helper().returncode == 1
    (place.base / "work").rmdir()
    (place.base / "work").symlink_to("/proc")
    done = place.helper("-o", place.layers)
    assert done.returncode == 32
    assert done.stderr.startswith("snapfs-overlay: ")
    assert place.ended()


def test_a_remount_is_refused_with_what_does_it(place: Place) -> None:
    steps = """
        mount -t fuse.snapfs-overlay -o "$LAYERS,iversion" overlay "$PLACE/a place"
        mount -o remount,ro "$PLACE/a place" || echo $?
        mount -i -o remount,bind,ro "$PLACE/a place"
        touch "$PLACE/a place/new" || umount "$PLACE/a place"
    """
    done = place.script(WITH_HELPER + steps)
    assert done.stdout == "1\n"
    assert "remount: an overlay keeps its options; unmount it and mount it again" in done.stderr
    assert "mount -i -o remount,bind,ro" in done.stderr
    assert "Read-only file system" in done.stderr
    eventually(place.ended, what="the end of the process")


def test_a_remount_of_a_snapshot_is_refused_with_what_does_it(place: Place, tree: Tree) -> None:
    steps = f"""
        mount --bind "{tree.path}" "$PLACE/a place"
        mount -o remount,ro "$PLACE/a place" || echo $?
        touch "$PLACE/a place/old"
        mount -i -o remount,bind,ro "$PLACE/a place"
        touch "$PLACE/a place/new" || umount "$PLACE/a place"
        mount -t fuse.snapfs none "$PLACE/a place" || echo $?
    """
    done = place.script(WITH_HELPER + steps)
    assert done.stdout == "1\n1\n"
    assert f"mount -i -o remount,bind,ro '{place.mnt}'" in done.stderr
    assert "Read-only file system" in done.stderr
    (tree / "new").touch()
    assert sorted(os.listdir(tree.path)) == ["new", "old"]


def test_a_helper_s_flags_are_understood(place: Place) -> None:
    assert place.helper("-f", "-o", place.layers).returncode == 0
    assert not mounts.mounted_at(place.mnt)
    flags = ("-s", "-n", "-v", "-r", "-t", "fuse.snapfs-overlay")
    assert place.helper(*flags, "-o", f"rw,{place.layers},sizelimit=1").returncode == 0
    with pytest.raises(OSError, match="Read-only"):
        (place.mnt / "new").touch()
    mounts.unmount(place.mnt)
    eventually(place.ended, what="the end of the process")


def test_a_process_killed_before_the_mount_is_told_of(place: Place) -> None:
    held = os.open(place.base / "work", os.O_RDONLY | os.O_DIRECTORY)
    fcntl.flock(held, fcntl.LOCK_EX)  # so that it waits
    command = [PROGRAMS / "snapfs-overlay", "-o", place.layers, place.mnt]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as started:
        found = eventually(
            lambda: [it for it in processes_below(place.base) if it != started.pid],
            what="the child",
        )
        os.kill(found[0], signal.SIGKILL)
        said = started.communicate(timeout=DEADLINE_S)[1]
    os.close(held)
    assert started.returncode == 1
    assert said == "snapfs-overlay: killed by SIGKILL before it could mount; try again\n"


def test_errors_after_the_start_reach_the_system_s_log(place: Place) -> None:
    """A hard link that was copied up cannot be made whole: the upper directory is immutable."""
    os.link(place.base / "low" / "file", place.base / "low" / "again")
    (place.base / "dev").mkdir()
    steps = """
        touch "$PLACE/dev/null" "$PLACE/dev/fuse"
        mount --bind /dev/null "$PLACE/dev/null"
        mount --bind /dev/fuse "$PLACE/dev/fuse"
        mount --rbind "$PLACE/dev" /dev
        "${HELPER%/*}/snapfs-overlay" -o "$LAYERS" "$PLACE/a place"
        echo changed >"$PLACE/a place/file"
        chattr +i "$PLACE/upper"
        umount "$PLACE/a place"
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as listener:
        listener.settimeout(DEADLINE_S)
        listener.bind(str(place.base / "dev" / "log"))
        try:
            place.script(steps)
            said = listener.recv(4096).decode()
        finally:
            subprocess.run(["chattr", "-i", place.base / "upper"], check=True, timeout=DEADLINE_S)
    assert said.startswith("<27>")  # daemon, error
    assert "snapfs-overlay[" in said
    assert "overlay.failed error=" in said
    assert "Operation not permitted" in said
