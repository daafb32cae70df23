"""Without SELinux no file has a label, and who asks for one is told so for the whole mount."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest

from snapfs.fuse import labels
from snapfs.fuse.modes import Mode
from tests.support.lanes import House

pytestmark = [
    pytest.mark.fuse,
    pytest.mark.root,
    pytest.mark.plain,
    pytest.mark.skipif(not labels.are_unknown(), reason="SELinux is active: the kernel answers"),
]
LABEL = labels.LABEL.decode()
NAMES = ("file", "dir", "dir/below", "link", "new", "new-dir")


def fill(layer: Path) -> None:
    (layer / "dir").mkdir()
    (layer / "file").write_text("lower")
    (layer / "dir" / "below").write_text("lower")
    (layer / "link").symlink_to("file")
    os.setxattr(layer / "dir", "user.kept", b"value")


def asked(path: Path, name: str) -> bytes | int:
    """Return an attribute's value, or the errno."""
    try:
        return os.getxattr(path, name, follow_symlinks=False)
    except OSError as error:
        return error.errno or 0


@pytest.fixture
def tree(house: House) -> Path:
    made = house.on(house.base_layers(fill)).path
    (made / "new").write_text("upper")
    (made / "new-dir").mkdir()
    return made


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_a_label_that_is_not_there_is_not_supported(tree: Path) -> None:
    for _ in range(2):  # the first time of a directory is Python's to answer
        for name in NAMES:
            assert asked(tree / name, LABEL) == errno.EOPNOTSUPP
        os.listdir(tree / "dir")


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_other_attributes_that_are_not_there_are_missing(tree: Path) -> None:
    for name in NAMES:
        assert asked(tree / name, "security.capability") == errno.ENODATA
    assert asked(tree / "file", "user.none") == errno.ENODATA
    assert asked(tree / "dir", "user.kept") == b"value"


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
def test_a_label_that_is_there_is_shown(tree: Path) -> None:
    for name in NAMES:
        os.setxattr(tree / name, LABEL, b"system_u:object_r:etc_t:s0", follow_symlinks=False)
        assert asked(tree / name, LABEL) == b"system_u:object_r:etc_t:s0"
        assert LABEL in os.listxattr(tree / name, follow_symlinks=False)
        os.removexattr(tree / name, LABEL, follow_symlinks=False)
        assert asked(tree / name, LABEL) == errno.EOPNOTSUPP
        with pytest.raises(OSError) as refused:
            os.removexattr(tree / name, LABEL, follow_symlinks=False)
        assert refused.value.errno == errno.ENODATA
