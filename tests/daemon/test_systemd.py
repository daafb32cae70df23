"""The notification protocol, against a socket such as the service manager's."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.systemd import Notifier, listen_descriptors


@pytest.fixture(params=["path", "abstract"])
def manager(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[socket.socket, str]]:
    address = str(tmp_path / "notify") if request.param == "path" else f"@snapfs-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sock:
        sock.bind("\0" + address[1:] if address.startswith("@") else address)
        sock.settimeout(5)
        yield sock, address


def test_states_arrive_as_datagrams(manager: tuple[socket.socket, str]) -> None:
    sock, address = manager
    notifier = Notifier.from_environment({"NOTIFY_SOCKET": address})
    notifier.ready("serving\nwell")
    assert sock.recv(4096) == f"READY=1\nSTATUS=serving well\nMAINPID={os.getpid()}".encode()
    notifier.watchdog()
    assert sock.recv(4096) == b"WATCHDOG=1"
    notifier.status("busy")
    assert sock.recv(4096) == b"STATUS=busy"
    notifier.extend(1.5)
    assert sock.recv(4096) == b"EXTEND_TIMEOUT_USEC=1500000"
    notifier.stopping()
    assert sock.recv(4096) == b"STOPPING=1\nSTATUS=stopping"


def test_a_descriptor_goes_to_the_store_under_its_name(
    manager: tuple[socket.socket, str], tmp_path: Path
) -> None:
    sock, address = manager
    with (tmp_path / "kept").open("w") as kept:
        Notifier(address).store("lane-main", [kept.fileno()])
    message, descriptors, _flags, _peer = socket.recv_fds(sock, 4096, 4)
    assert message == b"FDSTORE=1\nFDNAME=lane-main"
    assert os.fstat(descriptors[0]).st_ino == (tmp_path / "kept").stat().st_ino
    os.close(descriptors[0])


def test_without_a_manager_nothing_happens() -> None:
    Notifier.from_environment({}).ready("serving")


def test_a_manager_that_went_away_is_no_error(tmp_path: Path) -> None:
    Notifier(str(tmp_path / "gone")).ready("serving")


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": str(os.getpid())}, 30.0),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({}, None),
    ],
)
def test_the_watchdog_interval_is_for_this_process_only(
    environ: dict[str, str], seconds: float | None
) -> None:
    assert Notifier.from_environment(environ).watchdog_s == seconds


def test_kept_descriptors_are_found_by_name() -> None:
    mine = {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": "3", "LISTEN_FDNAMES": "a:b:a"}
    assert listen_descriptors(mine) == {"a": [3, 5], "b": [4]}
    assert listen_descriptors(mine | {"LISTEN_PID": "1"}) == {}
