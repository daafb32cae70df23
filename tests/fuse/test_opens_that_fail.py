"""An open that fails is not counted as open."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from snapfs.fuse.channel import Opcode, Request
from snapfs.fuse.inflight import Noting
from snapfs.fuse.modes import Mode
from snapfs.fuse.nameless import NamelessRequests
from snapfs.snapshots.quota import SIZE_LABEL
from tests.support.lanes import House, Tree


@pytest.mark.fuse
@pytest.mark.root
@pytest.mark.modes(Mode.PASSTHROUGH)
def test_open_for_which_the_worker_has_no_descriptor_leaves_nothing_open(own_house: House) -> None:
    house = own_house
    house.snapshots.prepare("limited", "", {SIZE_LABEL: str(1 << 20)})
    tree = Tree(house, "limited")
    (tree / "file").write_text("through the worker")
    pid = house.worker().pid
    before = house.worker().files
    limits = resource.prlimit(pid, resource.RLIMIT_NOFILE)
    lowest = _lowest_free(pid)
    resource.prlimit(pid, resource.RLIMIT_NOFILE, (lowest, limits[1]))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            os.open(tree / "file", os.O_RDONLY)
    finally:
        resource.prlimit(pid, resource.RLIMIT_NOFILE, limits)
    assert house.worker().files == before
    assert (tree / "file").read_text() == "through the worker"


def _lowest_free(pid: int) -> int:
    taken = {int(it.name) for it in Path(f"/proc/{pid}/fd").iterdir()}
    return next(number for number in range(len(taken) + 1) if number not in taken)


class NamelessTree:
    """Makes files of which nothing can be told."""

    def __init__(self) -> None:
        self.made = os.memfd_create("nameless")

    def tmpfile(self, *args: object, **kwargs: object) -> tuple[Any, int]:
        return SimpleNamespace(ino=7), self.made


class Operations:
    """As far as a file without a name needs them; the file's attributes cannot be had."""

    def __init__(self) -> None:
        self.tree = NamelessTree()
        self.opened = 0
        self.known = 0
        self.forest = self.view = self

    def find(self, nodeid: int) -> tuple[Any, Any]:
        return self, None

    def caller(self, request: Request) -> tuple[int, int]:
        return 0, 0

    async def begin(self) -> NamelessTree:
        return self.tree

    def end(self) -> None:
        pass

    def once(self) -> Noting:
        return Noting(None, 0)

    def remember_nameless(self, node: object) -> None:
        self.known += 1

    def forget(self, ino: int, count: int) -> None:
        self.known -= count

    def entry(self, shown: object, node: object) -> Any:
        raise OSError(5, "no attributes")

    def opened_past(self, *args: object) -> tuple[int, int, int]:
        self.opened += 1
        return 0, 0, 0


async def test_nameless_file_that_cannot_be_described_is_not_counted() -> None:
    operations = Operations()
    handlers = NamelessRequests(cast(Any, operations)).handlers()
    body = struct.pack("<IIII", os.O_RDWR, 0o600, 0, 0)
    request = cast(Request, SimpleNamespace(nodeid=1, body=body, pid=1))
    with pytest.raises(OSError, match="no attributes"):
        await handlers[Opcode.TMPFILE](request)
    assert (operations.opened, operations.known) == (0, 0)
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(operations.tree.made)
