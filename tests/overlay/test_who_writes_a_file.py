"""A file is left out of the count's watch only when nobody can write to it."""

from __future__ import annotations

import mmap
import os
from pathlib import Path

import pytest

from snapfs.overlay.syscalls import is_being_written

pytestmark = [pytest.mark.root]


def test_open_and_mapped_files_are_being_written(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_bytes(b"x" * 8192)
    reader = os.open(path, os.O_RDONLY)
    try:
        assert not is_being_written(reader)
        writer = os.open(path, os.O_RDWR)
        assert is_being_written(reader)
        with mmap.mmap(writer, 8192):
            os.close(writer)
            assert is_being_written(reader)
        assert not is_being_written(reader)
        with mmap.mmap(reader, 8192, prot=mmap.PROT_READ):
            assert not is_being_written(reader)
    finally:
        os.close(reader)
