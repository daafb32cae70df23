"""Reading a mount table: binds of a lane's directories, and overlays over a layer."""

from __future__ import annotations

from pathlib import Path

from snapfs.service import mounted

LANES, LAYERS = Path("/run/snapfs/mnt"), Path("/var/lib/snapfs/layers")

TABLE = rb"""21 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw
40 21 0:50 / /run/snapfs/mnt/main rw,nosuid - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
41 21 0:50 /7 /run/containerd/x/rootfs rw - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
42 21 0:50 /7 /mnt/two\040words rw shared:9 master:2 - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
43 21 0:50 /12/etc /mnt/part ro - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
44 21 0:51 / /elsewhere/mnt/main rw - fuse.snapfs snapfs:/elsewhere/mnt/main rw
45 21 0:51 /7 /mnt/of-another-daemon rw - fuse.snapfs snapfs:/elsewhere/mnt/main rw
46 21 0:52 / /tmp/unpack rw - overlay overlay rw,upperdir=/var/lib/snapfs/layers/9/fs,workdir=/w
47 21 0:53 / /tmp/foreign rw - overlay overlay rw,lowerdir=/l,upperdir=/srv/layers/9/fs,workdir=/w
49 21 0:54 /7 /mnt/of-a-former-daemon rw - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
48 21 0:50 /.hidden /mnt/none rw - fuse.snapfs snapfs:/run/snapfs/mnt/main rw
"""


def test_binds_and_overlays_of_this_daemon_are_found() -> None:
    assert mounted.by_snapshot(mounted.parse(TABLE), lanes=LANES, layers=LAYERS) == {
        7: (
            Path("/run/containerd/x/rootfs"),
            Path("/mnt/two words"),
            Path("/mnt/of-a-former-daemon"),
        ),
        12: (Path("/mnt/part"),),
        9: (Path("/tmp/unpack"),),
    }


def test_the_machines_own_table_parses() -> None:
    entries = list(mounted.parse(Path("/proc/self/mountinfo").read_bytes()))
    assert b"/" in {entry.target for entry in entries}
    assert all(entry.type for entry in entries)


def test_an_escape_that_is_no_byte_is_kept_as_it_stands() -> None:
    line = rb"36 35 98:0 /\444 /mnt/\377 rw - fuse.snapfs snapfs:/x rw"
    (entry,) = mounted.parse(line)
    assert (entry.root, entry.target) == (rb"/\444", b"/mnt/\xff")
