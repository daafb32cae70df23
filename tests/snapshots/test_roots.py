"""Roots with a file system of their own: init, what it refuses, attach and detach."""

import os
import struct
import subprocess
from pathlib import Path

import pytest

from snapfs.model import (
    AlreadyExists,
    DataLoss,
    FailedPrecondition,
    InvalidArgument,
    NotFound,
)
from snapfs.snapshots import NoTrees, Snapshotter, devices, roots

pytestmark = pytest.mark.root

MIB = 1 << 20
SIZES = {"ext4": 64 * MIB, "xfs": 320 * MIB, "btrfs": 160 * MIB}


@pytest.fixture
def root(tmp_path):
    path = tmp_path / "root"
    yield path
    if os.path.ismount(path):
        subprocess.run(["umount", path], check=True)


@pytest.fixture
def device(tmp_path):
    """A block device of 64 MiB of zeros."""
    backing = tmp_path / "backing"
    with backing.open("wb") as file:
        file.truncate(SIZES["ext4"])
    attached = subprocess.run(
        ["losetup", "--find", "--show", backing], capture_output=True, text=True, check=True
    )
    path = Path(attached.stdout.strip())
    yield path
    subprocess.run(["losetup", "--detach", path], check=True)


def file_system(path):
    return subprocess.run(
        ["findmnt", "-no", "FSTYPE", path], capture_output=True, text=True, check=True
    ).stdout.strip()


@pytest.mark.parametrize(
    ("text", "size_bytes"),
    [
        ("20G", 20 << 30),
        ("512m", 512 * MIB),
        ("1048576", MIB),
        ("64MiB", 64 * MIB),
        ("2TB", 2 << 40),
    ],
)
def test_sizes_are_read_as_people_write_them(text, size_bytes):
    assert roots.parse_size(text) == size_bytes


@pytest.mark.parametrize("text", ["", "G", "0", "-1G", "1.5G", "20X", "20 G x", "٣G"])
def test_other_sizes_are_refused(text):
    with pytest.raises(InvalidArgument, match="write it as 20G"):
        roots.parse_size(text)


def test_a_plain_directory_needs_no_record(root):
    assert roots.init(root) is None
    assert roots.init(root) is None
    assert os.listdir(root) == []
    assert roots.attach(root) is None
    assert roots.detach(root) is True


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs"])
def test_an_image_is_formatted_recorded_mounted_and_mounted_again(root, kind):
    record = roots.init(root, image_bytes=SIZES[kind], file_system=kind)
    image = root.with_name("root.img")
    assert (record.source, record.file_system) == (str(image), kind)
    assert file_system(root) == kind
    assert image.stat().st_blocks * 512 < SIZES[kind] / 2
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
        snapshotter.commit("a", "base")
    assert roots.detach(root) is True
    assert not os.path.ismount(root)
    assert roots.detach(root) is True
    assert roots.attach(root) == roots.attach(root) == record
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        assert snapshotter.stat("base").id == 1
        assert snapshotter.fsck().clean


def test_an_empty_device_is_taken(root, device):
    record = roots.init(root, device=device)
    assert record.source == str(device)
    assert file_system(root) == "ext4"
    roots.detach(root)


def test_a_device_that_holds_a_file_system_is_refused_by_name_and_taken_by_force(root, device):
    subprocess.run(["mkfs.ext4", "-q", "-L", "precious", device], check=True)
    with pytest.raises(
        FailedPrecondition, match=r"ext4 file system \(label precious, uuid .*--force"
    ):
        roots.init(root, device=device)
    assert roots.read_record(root) is None
    assert devices.contents(device).startswith("an ext4 file system")
    roots.init(root, device=device, force=True)
    roots.detach(root)


@pytest.mark.parametrize(
    ("command", "shown"),
    [
        (["mkswap", "-q"], "swap"),
        (["mkfs.btrfs", "-q", "-f", "-m", "single"], "btrfs"),
    ],
)
def test_whatever_a_device_holds_is_named(root, device, command, shown):
    subprocess.run([*command, device], check=True, capture_output=True)
    with pytest.raises(FailedPrecondition, match=shown):
        roots.init(root, device=device)


def test_a_partition_table_is_something_too(root, device):
    with device.open("r+b") as file:
        file.seek(446)
        file.write(struct.pack("<B3sB3sII", 0, bytes(3), 0x83, bytes(3), 2048, 4096))
        file.seek(510)
        file.write(b"\x55\xaa")
    with pytest.raises(FailedPrecondition, match="dos partition table"):
        roots.init(root, device=device)


def test_bytes_of_no_known_format_are_something_too(root, device):
    with device.open("r+b") as file:
        file.seek(4096)
        file.write(b"my own format")
    with pytest.raises(FailedPrecondition, match="data of no known format"):
        roots.init(root, device=device)


def test_a_mounted_device_is_refused_even_by_force(root, device, tmp_path):
    subprocess.run(["mkfs.ext4", "-q", device], check=True)
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run(["mount", device, elsewhere], check=True)
    try:
        with pytest.raises(FailedPrecondition, match=f"mounted at {elsewhere}.*release it"):
            roots.init(root, device=device, force=True)
    finally:
        subprocess.run(["umount", elsewhere], check=True)


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"image_bytes": MIB, "file_system": "ext4"}, InvalidArgument),
        ({"image_bytes": 200 * MIB, "file_system": "xfs"}, InvalidArgument),
        ({"image_bytes": 64 * MIB, "file_system": "vfat"}, InvalidArgument),
        ({"image_bytes": 2**62}, InvalidArgument),
        ({"image_bytes": 64 * MIB, "device": Path("/dev/null")}, InvalidArgument),
        ({"device": Path("/dev/null")}, InvalidArgument),
        ({"device": Path("/dev/absent")}, NotFound),
        ({"device": Path("/etc/hostname")}, InvalidArgument),
    ],
)
def test_what_cannot_be_is_refused_and_nothing_is_left(root, tmp_path, arguments, error):
    for place in (root, tmp_path / "a" / "b" / "root"):
        with pytest.raises(error):
            roots.init(place, **arguments)
    root.mkdir()
    with pytest.raises(error):
        roots.init(root, **arguments)
    assert os.listdir(tmp_path) == ["root"]
    assert os.listdir(root) == []


def test_a_root_that_is_in_use_is_not_hidden_under_a_mount(root):
    with Snapshotter(root, trees=NoTrees()) as snapshotter:
        snapshotter.prepare("a")
    with pytest.raises(AlreadyExists, match="not empty"):
        roots.init(root, image_bytes=64 * MIB)


LEFT = ["manifests", "packing", "content", "layers", ".snapfs.json.new"]


@pytest.mark.parametrize("left", LEFT)
def test_a_root_without_its_metadata_is_no_directory_of_other_things(root, left):
    (root / left).mkdir(parents=True)
    roots.check_place(root)
    (root / "photos").mkdir()
    with pytest.raises(FailedPrecondition, match=r"other things \(photos\)"):
        roots.check_place(root)


def test_an_initialised_root_is_not_initialised_again(root):
    roots.init(root, image_bytes=64 * MIB)
    with pytest.raises(AlreadyExists, match="file system of its own"):
        roots.init(root, image_bytes=64 * MIB)
    roots.detach(root)
    with pytest.raises(AlreadyExists, match="file system of its own"):
        roots.init(root, image_bytes=64 * MIB)


def test_an_existing_image_is_not_overwritten(root, tmp_path):
    (tmp_path / "root.img").write_text("mine")
    with pytest.raises(AlreadyExists, match=r"root\.img exists"):
        roots.init(root, image_bytes=64 * MIB)
    assert (tmp_path / "root.img").read_text() == "mine"


def test_a_missing_image_is_named(root, tmp_path):
    roots.init(root, image_bytes=64 * MIB)
    roots.detach(root)
    (tmp_path / "root.img").unlink()
    with pytest.raises(NotFound, match=r"root\.img"):
        roots.attach(root)


def test_another_file_system_in_the_image_is_refused(root, tmp_path):
    roots.init(root, image_bytes=64 * MIB)
    roots.detach(root)
    subprocess.run(["mkfs.ext4", "-q", "-F", tmp_path / "root.img"], check=True)
    with pytest.raises(NotFound):
        roots.attach(root)
    assert not os.path.ismount(root)


def test_a_root_in_use_stays_mounted(root):
    roots.init(root, image_bytes=64 * MIB)
    with (root / "held").open("w"):
        assert roots.detach(root) is False
    assert roots.detach(root) is True


def test_a_damaged_record_is_data_loss(root):
    root.mkdir()
    (root / roots.RECORD).write_text("{}")
    with pytest.raises(DataLoss, match=r"snapfs\.json"):
        roots.attach(root)


def test_a_record_of_a_newer_format_is_not_called_damaged(root):
    root.mkdir()
    (root / roots.RECORD).write_text('{"format": 2, "file_system": "bcachefs", "new": 1}')
    with pytest.raises(FailedPrecondition, match="use a newer snapfs"):
        roots.attach(root)
