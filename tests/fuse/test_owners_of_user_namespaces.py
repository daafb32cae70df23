"""Snapshots for containers with user namespaces: shown with other owners, stored as they were."""

from __future__ import annotations

import errno
import os
import stat
import struct
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from snapfs.fuse import handover, mounts
from snapfs.model import InvalidArgument, SnapshotId
from snapfs.snapshots.idmapping import GID_LABEL, NOBODY, UID_LABEL
from tests.support import lanes
from tests.support.lanes import House, bind_mount

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]

LABELS = {UID_LABEL: "0:100000:1000,5000:300000:10", GID_LABEL: "0:200000:2000"}


def fill(layer: Path) -> None:
    whose = {"root": (0, 0), "user": (33, 44), "far": (5001, 7), "none": (2000, 1)}
    for name, owner in whose.items():
        (layer / name).write_text(name)
        os.chown(layer / name, *owner)
    (layer / "open").mkdir()
    (layer / "open").chmod(0o1777)


def owners(place: Path) -> dict[str, tuple[int, int]]:
    return {it.name: (it.lstat().st_uid, it.lstat().st_gid) for it in sorted(place.iterdir())}


def as_user(uid: int, gid: int, step: Callable[[], None]) -> int:
    """Take a step as somebody else; return its errno, or 0."""
    child = os.fork()
    if not child:
        try:
            os.setgroups([])
            os.setgid(gid)
            os.setuid(uid)
            step()
        except OSError as error:
            os._exit(error.errno or 255)
        except BaseException:  # noqa: BLE001 - the forked child must never run the tests on
            os._exit(254)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.fixture(scope="module", params=["by the kernel", "by the worker"])
def mapping_house(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[House]:
    """A lane whose mount can be idmapped, and one where the kernel is too old for it."""
    parse = handover.InitRequest.parse

    def older(raw: bytes) -> handover.InitRequest:
        init = parse(raw)
        return replace(init, offered=init.offered & ~handover.Init.ALLOW_IDMAP)

    with ExitStack() as stack:
        with pytest.MonkeyPatch.context() as patch:
            if request.param == "by the worker":
                patch.setattr(handover.InitRequest, "parse", older)
            made = stack.enter_context(lanes.house(tmp_path_factory.mktemp("mapping")))
        yield made


@contextmanager
def mounted(house: House, labels: dict[str, str], target: Path) -> Iterator[tuple[Path, Path]]:
    """A new snapshot, mounted as its mounts say; yields that and its layer directory."""
    key = house.name()
    parent = house.base_layers(fill)
    (mount,) = house.snapshots.prepare(key, parent, labels)
    assert mount.type == "bind"
    target.parent.chmod(0o711)
    with bind_mount(Path(mount.source), target) as place:
        yield place, house.layer(house.snapshots.stat(key).id)
    house.snapshots.remove(key)


@pytest.fixture
def place(mapping_house: House, tmp_path: Path) -> Iterator[tuple[Path, Path]]:
    with mounted(mapping_house, LABELS, tmp_path / "rootfs") as both:
        yield both


def test_owners_are_shown_as_the_labels_map_them(place: tuple[Path, Path]) -> None:
    assert owners(place[0]) == {
        "far": (300001, 200007),
        "none": (NOBODY, 200001),
        "open": (100000, 200000),
        "root": (100000, 200000),
        "user": (100033, 200044),
    }


def test_what_the_container_makes_and_changes_is_stored_unmapped(place: tuple[Path, Path]) -> None:
    shown, upper = place
    here = Path.cwd()
    os.chdir(shown / "open")  # only root can walk here
    try:

        def step() -> None:
            Path("file").write_text("x")
            Path("sub").mkdir()
            Path("link").symlink_to("file")
            os.mkfifo("fifo")
            os.chmod("file", 0o600)

        assert as_user(100033, 200044, step) == 0
    finally:
        os.chdir(here)
    assert set(owners(shown / "open").values()) == {(100033, 200044)}
    assert set(owners(upper / "open").values()) == {(33, 44)}
    os.chown(shown / "root", 100005, 200006)
    assert owners(upper)["root"] == (5, 6)
    (shown / "user").write_text("copied up")
    assert (owners(shown)["user"], owners(upper)["user"]) == ((100033, 200044), (33, 44))


def test_owners_that_no_range_has_cannot_be_stored(place: tuple[Path, Path]) -> None:
    for uid, gid in ((0, 200000), (100000, 0), (101000, 200000)):
        with pytest.raises(OSError) as caught:
            os.chown(place[0] / "root", uid, gid)
        assert caught.value.errno in (errno.EOVERFLOW, errno.EINVAL)
    with pytest.raises(OSError) as caught:
        (place[0] / "new").write_text("by the host's root")
    assert caught.value.errno == errno.EOVERFLOW


def test_acls_name_mapped_users(place: tuple[Path, Path]) -> None:
    shown, upper = place
    entries = ((1, 6, -1), (2, 6, 100033), (4, 4, -1), (8, 4, 200044), (16, 6, -1), (32, 0, -1))
    acl = struct.pack("<I", 2) + b"".join(struct.pack("<HHi", *it) for it in entries)
    os.setxattr(shown / "root", "system.posix_acl_access", acl)
    assert os.getxattr(shown / "root", "system.posix_acl_access") == acl
    stored = os.getxattr(upper / "root", "system.posix_acl_access")
    named = [it for it in struct.iter_unpack("<HHi", stored[4:]) if it[0] in (2, 8)]
    assert named == [(2, 6, 33), (8, 4, 44)]
    handle = os.open(shown / "root", os.O_PATH)
    try:
        assert as_user(100033, 1, lambda: _open_and_close(f"/proc/self/fd/{handle}")) == 0
        assert as_user(100034, 1, lambda: _open_and_close(f"/proc/self/fd/{handle}")) != 0
    finally:
        os.close(handle)


def _open_and_close(path: str) -> None:
    os.close(os.open(path, os.O_RDWR))


def test_views_and_other_mappings_of_one_parent_exist_side_by_side(
    mapping_house: House, tmp_path: Path
) -> None:
    parent = mapping_house.base_layers(fill)
    wanted = {"first": LABELS, "second": {UID_LABEL: "0:400000:1000"}, "third": {}}
    found = {}
    for name, labels in wanted.items():
        (mount,) = mapping_house.snapshots.view(name, parent, labels)
        with bind_mount(Path(mount.source), tmp_path / name) as place:
            found[name] = owners(place)["user"]
        mapping_house.snapshots.remove(name)
    assert found == {"first": (100033, 200044), "second": (400033, 44), "third": (33, 44)}


def test_bad_labels_are_refused_when_made_and_when_changed(mapping_house: House) -> None:
    bad = {UID_LABEL: "0:1"}
    with pytest.raises(InvalidArgument, match="uidmapping"):
        mapping_house.snapshots.prepare("bad", "", bad)
    key = mapping_house.name()
    mapping_house.snapshots.prepare(key, "")
    for paths in (None, [f"labels.{UID_LABEL}"]):
        with pytest.raises(InvalidArgument, match="uidmapping"):
            mapping_house.snapshots.update(key, bad, paths)


def clones(house: House) -> list[str]:
    above = f"{mounts.clones_of(house.lane.mountpoint(SnapshotId(1)).parent)}/"
    return [it.path for it in mounts.mount_table() if it.path.startswith(above)]


def test_a_clone_goes_with_its_last_snapshot_and_the_lane_with_its_clones(own_house: House) -> None:
    sources: list[Any] = []
    for key in ("a", "b"):
        sources += own_house.snapshots.prepare(key, "", LABELS)
    assert len({Path(it.source).parent for it in sources}) == 1
    assert len(clones(own_house)) == 1
    own_house.snapshots.remove("a")
    assert len(clones(own_house)) == 1
    own_house.snapshots.remove("b")
    assert not clones(own_house)
    own_house.snapshots.prepare("c", "", LABELS)
    assert len(clones(own_house)) == 1
    own_house.restart()
    assert not clones(own_house)
    (again,) = own_house.snapshots.mounts("c")
    assert stat.S_ISDIR(Path(again.source).lstat().st_mode)
    assert Path(again.source).lstat().st_uid == 100000


@pytest.mark.logs("lane.left_in_use", "lane.worker_died", "lane.worker_restarted")
def test_a_container_goes_on_with_its_owners_when_worker_and_service_are_replaced(
    own_house: House, tmp_path: Path
) -> None:
    with mounted(own_house, LABELS, tmp_path / "rootfs") as (place, _):
        own_house.kill_worker()
        own_house.worker()
        assert owners(place)["user"] == (100033, 200044)
        own_house.restart()  # the lane is in use, and adopted
        assert owners(place)["user"] == (100033, 200044)
