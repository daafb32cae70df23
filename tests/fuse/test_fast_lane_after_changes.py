"""What the fast lane says of files is never what they were before a change."""

from __future__ import annotations

import ctypes
import errno
import os
from pathlib import Path

import pytest

from tests.support.lanes import House, Tree

LIBC = ctypes.CDLL(None, use_errno=True)
AT_STATX_FORCE_SYNC = 0x2000

pytestmark = [pytest.mark.root, pytest.mark.fuse]


def absent(path: Path, name: str) -> bool:
    """Ask thrice."""
    answers = []
    for _ in range(3):
        try:
            os.getxattr(path, name)
            answers.append(0)
        except OSError as error:
            answers.append(error.errno)
    return answers == [errno.ENODATA] * 3


def asked_stat(path: Path) -> None:
    """Make the kernel ask for attributes."""
    how = AT_STATX_FORCE_SYNC
    assert LIBC.statx(-1, os.fsencode(path), how, 0x7FF, ctypes.create_string_buffer(256)) == 0


def read_and_stat(path: Path) -> os.stat_result:
    """Reading makes the kernel ask for the times again."""
    path.read_bytes()
    return path.stat()


@pytest.fixture
def lower(house: House) -> Tree:
    """A snapshot with one committed layer below."""

    def fill(layer: Path) -> None:
        (layer / "file").write_bytes(b"lower")
        (layer / "named").write_bytes(b"lower")
        os.setxattr(layer / "named", "user.name", b"value")

    return house.active(fill)


def test_attribute_that_is_set_after_its_absence_was_told_is_there(lower: Tree) -> None:
    file = lower.path / "file"
    assert absent(file, "user.new")
    assert absent(file, "security.new")
    assert os.listxattr(file) == []
    os.setxattr(file, "user.new", b"1")
    assert os.getxattr(file, "user.new") == b"1"
    assert os.listxattr(file) == ["user.new"]
    os.removexattr(file, "user.new")
    assert absent(file, "user.new")


def test_questions_are_answered_without_python(house: House, lower: Tree) -> None:
    before = house.worker().answered
    assert absent(lower.path / "file", "user.new")
    for _ in range(3):
        asked_stat(lower.path / "file")
    after = house.worker().answered
    assert after["GETXATTR"] - before.get("GETXATTR", 0) == 3
    assert after["GETATTR"] - before.get("GETATTR", 0) == 3
    assert house.worker().features["fast lane"] == ""


def test_no_file_is_a_terminal_and_python_is_not_asked(house: House, lower: Tree) -> None:
    before = house.worker().answered.get("IOCTL", 0)
    with (lower.path / "file").open("rb") as file, (lower.path / "new").open("wb") as new:
        assert not file.isatty()
        assert not new.isatty()
    assert house.worker().answered["IOCTL"] - before >= 2


def test_file_with_attributes_shows_them_after_an_absent_one_was_asked_for(lower: Tree) -> None:
    assert absent(lower.path / "named", "user.other")
    assert os.getxattr(lower.path / "named", "user.name") == b"value"
    assert os.listxattr(lower.path / "named") == ["user.name"]


def test_attributes_after_each_kind_of_change_are_the_new_ones(lower: Tree) -> None:
    file = lower.path / "file"
    for _ in range(3):
        before = read_and_stat(file)
    file.chmod(0o600)
    assert read_and_stat(file).st_mode & 0o777 == 0o600
    assert read_and_stat(file).st_ino == before.st_ino
    with file.open("ab") as appending:
        appending.write(b" and more")
    assert read_and_stat(file).st_size == 14
    os.link(file, lower.path / "link")
    assert read_and_stat(file).st_nlink == 2
    os.unlink(lower.path / "link")
    assert read_and_stat(file).st_nlink == 1


def test_open_file_shows_what_a_writer_changed(lower: Tree) -> None:
    file = lower.path / "file"
    with file.open("rb") as reader:
        assert os.fstat(reader.fileno()).st_size == 5
        assert reader.read() == b"lower"
        assert os.fstat(reader.fileno()).st_size == 5
        os.truncate(file, 2)
        assert file.stat().st_size == 2


def test_open_file_without_names_has_no_links_any_more(lower: Tree) -> None:
    for name, end in (("file", os.unlink), ("named", lambda it: os.rename(lower / "other", it))):
        (lower / "other").write_bytes(b"")
        with (lower / name).open("rb") as reader:
            for _ in range(3):
                asked_stat(lower / name)
            assert os.fstat(reader.fileno()).st_nlink == 1
            end(lower / name)
            assert reader.read() == b"lower"
            assert os.fstat(reader.fileno()).st_nlink == 0
