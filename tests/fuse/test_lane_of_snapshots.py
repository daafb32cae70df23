"""Snapshots come and go in a lane; frozen, committed and removed ones behave."""

from __future__ import annotations

import errno
import mmap
import os
import threading
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from snapfs.model import SnapshotId
from tests.support.daemon import eventually
from tests.support.lanes import House, Tree, bind_mount, drop_dentries

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

DEADLINE_S = 20.0


def closed(tree: Tree) -> bool:
    """Whether the tree is closed once the kernel has let go of its names."""
    drop_dentries()
    return tree.id not in tree.house.worker().dropped


def fill(layer: Path) -> None:
    (layer / "file").write_text("lower")
    (layer / "dir").mkdir()


def test_new_snapshot_is_found_at_once_also_after_it_was_missing(house: House) -> None:
    following = house.active().id + 3
    for _ in range(2):
        with pytest.raises(FileNotFoundError):
            house.lane.mountpoint(SnapshotId(following)).stat()
    found = house.active()
    while found.id < following:
        found = house.active()
    assert house.lane.mountpoint(SnapshotId(following)).is_dir()


def test_root_lists_active_and_view_snapshots(house: House) -> None:
    active = house.active(fill)
    view = house.view(house.base_layers(fill))
    names = os.listdir(house.mountpoint)
    assert {str(active.id), str(view.id)} <= set(names)
    assert all(name.isdecimal() for name in names)


@pytest.mark.parametrize("name", ["0", "01", "-1", "x", "1e3", "²", "9" * 30, "1.0"])
def test_other_names_do_not_exist_in_the_root(house: House, name: str) -> None:
    with pytest.raises(FileNotFoundError):
        (house.mountpoint / name).stat()


def test_root_itself_cannot_be_changed(house: House) -> None:
    tree = house.active()
    steps = (
        lambda: (house.mountpoint / "new").mkdir(),
        lambda: (house.mountpoint / "new").touch(),
        lambda: house.mountpoint.chmod(0o700),
        lambda: tree.path.rmdir(),
        lambda: tree.path.rename(house.mountpoint / "999999"),
        lambda: os.setxattr(house.mountpoint, "user.x", b""),
    )
    for step in steps:
        with pytest.raises(OSError) as refused:
            step()
        assert refused.value.errno in (errno.EROFS, errno.EBUSY, errno.EXDEV)
    assert os.listxattr(house.mountpoint) == []


def test_files_cannot_be_linked_or_moved_between_snapshots(house: House) -> None:
    one, other = house.active(fill), house.active()
    with pytest.raises(OSError, match="cross-device"):
        os.rename(one / "file", other / "file")
    with pytest.raises(OSError, match="cross-device"):
        os.link(one / "file", other / "file")


def test_one_lower_file_has_a_number_of_its_own_in_each_snapshot(house: House) -> None:
    parent = house.base_layers(fill)
    one, other = house.on(parent), house.on(parent)
    assert (one / "file").stat().st_ino != (other / "file").stat().st_ino
    (one / "file").write_text("changed")
    assert (other / "file").read_text() == "lower"


def test_view_is_read_only_although_the_mount_is_not(house: House) -> None:
    view = house.view(house.base_layers(fill))
    steps = (
        lambda: (view / "new").touch(),
        lambda: (view / "new").mkdir(),
        lambda: (view / "file").write_text("no"),
        lambda: (view / "file").unlink(),
        lambda: (view / "dir").rmdir(),
        lambda: (view / "file").chmod(0o777),
        lambda: os.chown(view / "file", 1, 1),
        lambda: os.truncate(view / "file", 0),
        lambda: os.rename(view / "file", view / "other"),
        lambda: os.link(view / "file", view / "other"),
        lambda: os.symlink("x", view / "other"),
        lambda: os.mkfifo(view / "other"),
        lambda: os.utime(view / "file"),
        lambda: os.setxattr(view / "file", "user.x", b""),
        lambda: os.removexattr(view / "file", "user.x"),
    )
    for step in steps:
        with pytest.raises(OSError) as refused:
            step()
        assert refused.value.errno == errno.EROFS
    assert (view / "file").read_text() == "lower"


def test_frozen_snapshot_lets_readers_through_and_writers_wait(house: House) -> None:
    tree = house.active(fill)
    (tree / "dir" / "seen").touch()
    house.lane.freeze(tree.id, timeout_s=5)
    writer = threading.Thread(target=(tree / "file").write_text, args=("late",))
    writer.start()
    assert (tree / "file").read_text() == "lower"
    assert house.worker().frozen == (tree.id,)
    other = house.active()
    (other / "file").write_text("others are free")
    assert writer.is_alive()
    assert not (tree.upper / "file").exists()
    house.lane.thaw(tree.id)
    writer.join(DEADLINE_S)
    assert not writer.is_alive()
    assert (tree.upper / "file").read_text() == "late"


def test_more_writers_than_threads_wait_without_stopping_the_lane(house: House) -> None:
    tree = house.active(lambda layer: [(layer / f"d{n}").mkdir() for n in range(300)])
    for number in range(300):
        (tree / f"d{number}").stat()
    house.lane.freeze(tree.id, timeout_s=5)
    writers = [threading.Thread(target=(tree / f"d{n}" / "x").touch) for n in range(300)]
    for writer in writers:
        writer.start()
    assert house.worker().frozen == (tree.id,)
    (house.active() / "free").touch()
    house.lane.thaw(tree.id)
    for writer in writers:
        writer.join(DEADLINE_S)
    assert all((tree / f"d{n}" / "x").exists() for n in range(300))


def test_freeze_brings_in_what_mappings_have_changed(house: House) -> None:
    if house.passes_through:
        return  # what they change is in the layer at once: see test_passthrough_and_commits.py
    tree = house.active(fill)
    with (tree / "file").open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        mapped[0:5] = b"DIRTY"
        house.lane.freeze(tree.id, timeout_s=5)
        assert (tree.upper / "file").read_bytes() == b"DIRTY"
        house.lane.thaw(tree.id)
        mapped[0:5] = b"AGAIN"
    assert (tree.upper / "file").read_bytes() == b"AGAIN"


def test_freeze_may_be_repeated_while_mappings_change(house: House) -> None:
    if house.passes_through:
        return  # it is refused
    tree = house.active(fill)
    with (tree / "file").open("r+b") as file, mmap.mmap(file.fileno(), 5) as mapped:
        house.lane.freeze(tree.id, timeout_s=5)
        mapped[0:5] = b"LATER"
        house.lane.freeze(tree.id, timeout_s=5)
        copy = tree.upper / "file"  # made by the open, or by the first write where there is none
        assert not copy.exists() or copy.read_bytes() == b"lower"
        house.lane.thaw(tree.id)
    assert (tree.upper / "file").read_bytes() == b"LATER"


def test_freeze_of_a_snapshot_that_nobody_looked_at(house: House) -> None:
    tree = house.active(fill)
    house.lane.freeze(tree.id, timeout_s=5)
    assert (tree / "file").read_text() == "lower"
    writer = threading.Thread(target=(tree / "new").touch)
    writer.start()
    assert house.worker().frozen == (tree.id,)
    assert not (tree.upper / "new").exists()
    house.lane.thaw(tree.id)
    writer.join(DEADLINE_S)
    assert (tree.upper / "new").exists()


def test_thaw_and_drop_of_what_is_not_shown_do_nothing(house: House) -> None:
    house.lane.thaw(SnapshotId(12345))
    house.lane.drop(SnapshotId(12345))


def test_committed_snapshot_stays_readable_for_who_holds_it(house: House, tmp_path: Path) -> None:
    tree = house.active(fill)
    with bind_mount(tree.path, tmp_path / "held") as held:
        with (held / "file").open("r" if house.passes_through else "r+") as file:
            house.snapshots.commit(tree.key, house.name())
            assert file.read() == "lower"
            if not house.passes_through:
                with pytest.raises(OSError) as refused:
                    os.write(file.fileno(), b"no")
                assert refused.value.errno == errno.EROFS
        with pytest.raises(OSError) as refused:
            (held / "new").touch()
        assert refused.value.errno == errno.EROFS
        assert (held / "file").read_text() == "lower"
        assert not tree.path.exists()
        assert tree.id in house.worker().dropped
    eventually(lambda: closed(tree), what="the end of the tree")


def test_writers_that_wait_are_refused_when_the_snapshot_is_committed(house: House) -> None:
    tree = house.active(fill)
    seen: list[int | None] = []
    directory = os.open(tree / "dir", os.O_RDONLY | os.O_DIRECTORY)

    def write() -> None:
        try:
            os.close(os.open("new", os.O_WRONLY | os.O_CREAT, dir_fd=directory))
        except OSError as error:
            seen.append(error.errno)

    try:
        house.lane.freeze(tree.id, timeout_s=5)
        writer = threading.Thread(target=write)
        writer.start()
        assert (tree / "file").read_text() == "lower"
        house.lane.drop(tree.id)
        writer.join(DEADLINE_S)
    finally:
        os.close(directory)
    assert seen == [errno.EROFS]


def test_removed_snapshot_is_gone_and_its_holder_gets_errors(house: House, tmp_path: Path) -> None:
    tree = house.active(fill)
    with bind_mount(tree.path, tmp_path / "held") as held:
        assert (held / "file").read_text() == "lower"
        house.snapshots.remove(tree.key)
        house.snapshots.cleanup()
        assert not tree.path.exists()
        with pytest.raises(OSError, match=r"."):
            (held / "new").touch()
    eventually(lambda: closed(tree), what="the end of the tree")


def test_hard_links_copied_up_by_half_are_whole_in_the_committed_layer(house: House) -> None:
    def linked(layer: Path) -> None:
        (layer / "one").write_text("lower")
        os.link(layer / "one", layer / "two")

    tree = house.active(linked)
    (tree / "one").write_text("changed")
    name = house.name()
    house.snapshots.commit(tree.key, name)
    after: Tree = house.on(name)
    assert (after / "two").read_text() == "changed"
    assert (after / "one").stat().st_ino == (after / "two").stat().st_ino
    assert (tree.upper / "two").read_text() == "changed"
