"""What a mapping may not change, nobody sees changed."""

from __future__ import annotations

import contextlib
import mmap
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs.fuse.modes import Mode
from tests.support.daemon import eventually
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

SIZE = 1 << 20
ORIGINAL = b"original" * (SIZE // 8)


@contextmanager
def protected(file: Path, flag: str) -> Iterator[None]:
    subprocess.run(["chattr", f"+{flag}", file], check=True)
    try:
        yield
    finally:
        subprocess.run(["chattr", f"-{flag}", file], check=True)


@pytest.mark.parametrize("flag", ["i", "a"])
def test_a_protected_file_shows_what_is_in_the_layer(house: House, flag: str) -> None:
    tree = house.active()
    (tree / "file").write_bytes(ORIGINAL)
    with protected(tree / "file", flag), contextlib.suppress(OSError):
        forge(tree / "file")
    assert (tree.upper / "file").read_bytes() == ORIGINAL
    eventually(lambda: (tree / "file").read_bytes() == ORIGINAL, what="what is in the layer")


@pytest.mark.modes(Mode.NO_OPEN)
def test_who_mapped_a_protected_file_sees_what_is_in_the_layer(house: House) -> None:
    tree = house.active()
    (tree / "file").write_bytes(ORIGINAL)
    with (
        protected(tree / "file", "i"),
        (tree / "file").open("r+b") as held,
        mmap.mmap(held.fileno(), SIZE) as mapped,
    ):
        for _ in range(3):
            mapped[:4] = mapped[-4:] = b"FAKE"
            with pytest.raises(OSError, match=r"."):
                mapped.flush()
            eventually(lambda: mapped[:] == ORIGINAL, what="what is in the layer")
    with (tree / "file").open("r+b") as held, mmap.mmap(held.fileno(), SIZE) as mapped:
        mapped[:4] = b"REAL"
        mapped.flush()
    assert (tree / "file").read_bytes() == b"REAL" + ORIGINAL[4:]
    assert (tree.upper / "file").read_bytes() == b"REAL" + ORIGINAL[4:]


def forge(file: Path) -> None:
    """Change both ends of a file by a mapping."""
    with file.open("r+b") as held, mmap.mmap(held.fileno(), SIZE) as mapped:
        mapped[:4] = mapped[-4:] = b"FAKE"
        mapped.flush()
