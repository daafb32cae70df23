"""Containers with user namespaces: no file is copied or changed for their sake."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from tests.containerd.conftest import Plant
from tests.support import images
from tests.support.daemon import RunningDaemon
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    pytest.mark.timeout(600),
]

Load = Callable[[Image, str], None]

HOST_ID = 100000
MAPPED = ("--uidmap", f"0:{HOST_ID}:65536", "--gidmap", f"0:{HOST_ID}:65536", "--remap-labels")

STEPS = """
exec >/said/out 2>&1
set -e
cat /proc/self/uid_map
busybox stat -c '%u:%g %n' /bin/busybox /odd/sticky-setuid
echo "user:x:33:44::/:/bin/sh" >> /etc/passwd
mkdir /root/new
busybox chown 33:44 /root/new
touch /root/new/file
busybox stat -c '%u:%g %n' /etc/passwd /root/new /root/new/file
"""

SAID = """\
         0     100000      65536
0:0 /bin/busybox
1000:1000 /odd/sticky-setuid
0:0 /etc/passwd
33:44 /root/new
0:0 /root/new/file
"""


def newest_upper(daemon: RunningDaemon) -> Path:
    layers = (daemon.root / "layers").iterdir()
    return max(layers, key=lambda it: int(it.name)) / "fs"


def owner(path: Path) -> tuple[int, int]:
    return path.lstat().st_uid, path.lstat().st_gid


@pytest.fixture
def said(tmp_path: Path, plant: Plant) -> Iterator[Path]:
    """Where a container says things. Its root is nobody on the host, and has to walk there."""
    place = tmp_path / "said"
    place.mkdir()
    place.chmod(0o777)
    ways = {path for it in (place, plant.engine.base) for path in it.parents}
    before = {path: path.stat().st_mode & 0o7777 for path in ways}
    for path, mode in before.items():
        path.chmod(mode | 0o111)
    yield place
    for path, mode in before.items():
        path.chmod(mode)


def test_a_container_with_a_user_namespace_owns_its_files(
    plant: Plant, load: Load, snapshotter: str, said: Path
) -> None:
    engine, daemon, name = plant.engine, plant.daemons[snapshotter], f"mapped-{snapshotter}"
    image = images.odd_image()
    load(image, snapshotter)
    engine.ctr(
        *("run", "--snapshotter", snapshotter, *MAPPED),
        *("--mount", f"type=bind,src={said},dst=/said,options=rbind:rw"),
        *(image.name, name, "/bin/busybox", "sh", "-c", STEPS),
    )
    assert (said / "out").read_text() == SAID
    upper = newest_upper(daemon)
    assert owner(upper / "etc/passwd") == (0, 0)
    assert owner(upper / "root/new") == (33, 44)
    assert owner(upper / "root/new/file") == (0, 0)
    assert not (upper / "bin").exists()
    clones = f"{mounts.clones_of(daemon.lane)}/"
    assert [it for it in mounts.mount_table() if it.path.startswith(clones)]
    engine.remove(name)
