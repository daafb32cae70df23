"""The queue of who calls between two control processes, at its edges."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest

from snapfs.fuse import mounts
from snapfs.service import grpc_server, queued
from snapfs.service.queued import Queue


class Left:
    """A store in which somebody has left a descriptor."""

    def __init__(self, fd: int) -> None:
        self.fd = fd

    def take(self, name: str, /) -> int | None:
        return self.fd if name == queued.NAME else None

    def keep(self, name: str, fd: int, /) -> None:
        raise AssertionError(f"nothing is to be kept, but {name} is")


def open_here() -> int:
    """Return how many descriptors this process has."""
    return len(os.listdir("/proc/self/fd"))


def a_file(place: Path) -> int:
    return os.open(place / "file", os.O_RDWR | os.O_CREAT)


def a_socket_that_does_not_listen(_: Path) -> int:
    return socket.socket(socket.AF_UNIX).detach()


def a_listener_of_the_network(_: Path) -> int:
    made = socket.socket()
    made.bind(("127.0.0.1", 0))
    made.listen()
    return made.detach()


def a_listener_that_was_shut_down(place: Path) -> int:
    made = socket.socket(socket.AF_UNIX)
    made.bind(str(place / "s"))
    made.listen()
    made.shutdown(socket.SHUT_RDWR)
    return made.detach()


@pytest.mark.logs("server.queue_not_taken")
@pytest.mark.parametrize(
    "made",
    [
        a_file,
        a_socket_that_does_not_listen,
        a_listener_of_the_network,
        a_listener_that_was_shut_down,
    ],
)
def test_what_is_no_queue_is_closed(tmp_path: Path, made: Callable[[Path], int]) -> None:
    before = open_here()
    assert Queue.left(Left(made(tmp_path))) is None
    assert open_here() == before


def test_finding_the_listener_opens_nothing_else(tmp_path: Path) -> None:
    """A dup of a file would keep its lock and its file system while the service lives."""
    server = grpc_server.build(tmp_path / "s.sock", services=[])
    try:
        with (tmp_path / "file").open("w"):
            before = open_here()
            listener = server.listener()
            assert listener is not None
            with closing(listener):
                assert open_here() == before + 1
    finally:
        server.stop(grace_s=0)


@pytest.fixture
def full(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a socket and little else."""
    place = tmp_path / "full"
    place.mkdir()
    mounts.mount("full", place, "tmpfs", 0, "nr_inodes=4")
    try:
        yield place
    finally:
        mounts.unmount(place, mounts.MNT_DETACH)


@pytest.mark.root
@pytest.mark.logs("server.no_queue")
def test_server_ends_where_there_is_no_room_for_a_queue(full: Path) -> None:
    server = grpc_server.build(full / "s.sock", services=[])
    with suppress(OSError):
        for number in range(4):
            (full / f"{number}").touch()
    assert server.leave_queue() is None
    server.stop(grace_s=0)
    assert not (full / "s.sock").exists()
