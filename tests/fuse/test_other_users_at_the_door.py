"""The door of a lane is for its own user, whoever can reach the socket: SO_PEERCRED says who comes.

Modes of the socket and of its directory keep others out; here those are opened wide, so that what
refuses is the check of the peer.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from snapfs import processes
from snapfs.fuse import adoption, control, unixsocket
from snapfs.fuse.modes import Mode
from snapfs.fuse.process import WorkerSettings
from snapfs.model import FailedPrecondition, Quota
from tests.support import lanes
from tests.support.lanes import House

pytestmark = [pytest.mark.fuse, pytest.mark.root]

NOBODY = 65534
SENT_AWAY = (
    ["answer", "0", "0"],
    *(["refused", str(it)] for it in (errno.EPIPE, errno.ECONNRESET)),
)
"""The end of the channel, before or after the visitor has said something."""
DEADLINE_S = 20.0

BECOME = """
import os, socket, sys
if user := int(sys.argv[2]):
    os.setgroups([])
    os.setresgid(user, user, user)
    os.setresuid(user, user, user)
"""
"""To be another user in the middle of a program, since that may not reach the interpreter."""
VISIT = """
channel = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
channel.settimeout(20)
try:
    channel.connect(sys.argv[1])
    channel.send(bytes.fromhex(sys.argv[3]))
    packet, fds, _, _ = socket.recv_fds(channel, 65536, 16)
    print("answer", len(packet), len(fds))
except OSError as error:
    print("refused", error.errno)
"""
LISTEN = """
listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
listener.bind(sys.argv[1])
listener.listen(16)
print("listens", flush=True)
listener.settimeout(20)
channel, _ = listener.accept()
channel.settimeout(20)
print("heard", len(channel.recv(65536)), flush=True)
sys.stdin.read()
"""


@pytest.fixture
def reachable() -> Iterator[Path]:
    """A directory that everybody comes to."""
    with tempfile.TemporaryDirectory() as made:
        Path(made).chmod(0o755)
        yield Path(made)


def visit(door: Path, *, user: int = 0) -> list[str]:
    """Connect as another process, say hello as a control process would, and tell what it hears."""
    hello = control.encode(control.Hello(control.PROTOCOL, "1", "test")).hex()
    done = subprocess.run(
        [sys.executable, "-c", BECOME + VISIT, door, str(user), hello],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        check=True,
    )
    return done.stdout.split()


def test_another_user_does_not_reach_the_door(reachable: Path) -> None:
    with lanes.house(reachable / "house") as house:
        house.base.chmod(0o755)
        assert visit(house.door, user=NOBODY) == ["refused", str(errno.EACCES)]
        house.door.parent.chmod(0o755)
        assert visit(house.door, user=NOBODY) == ["refused", str(errno.EACCES)]


@pytest.mark.logs("lane.left_in_use")
def test_another_user_at_an_open_door_is_told_nothing_and_given_nothing(reachable: Path) -> None:
    with lanes.house(reachable / "house") as house:
        tree = house.active()
        open_wide(house)
        with lanes.bind_mount(tree.path, reachable / "container") as container:
            house.stop()  # nobody sits at the door: who is let in is given all descriptors
            open_wide(house)
            assert visit(house.door, user=NOBODY) in SENT_AWAY
            word, _, fds = visit(house.door)
            assert (word, int(fds) > 0) == ("answer", True), "root is let in by the same visit"
            house.start()
            (container / "file").write_text("served on")


def open_wide(house: House) -> None:
    house.base.chmod(0o755)
    house.door.parent.chmod(0o755)
    house.door.chmod(0o666)


def test_door_of_another_user_is_told_nothing(reachable: Path) -> None:
    door = reachable / "doors" / "test.sock"
    door.parent.mkdir()
    os.chown(door.parent, NOBODY, NOBODY)
    settings = WorkerSettings(
        "test", reachable, reachable / "mnt", door, Mode.PASSTHROUGH, "info", "text", Quota()
    )
    with listening_as_nobody(door) as stranger:
        with pytest.raises(FailedPrecondition, match=r"belongs to user 65534; remove it"):
            adoption.end_worker(settings, DEADLINE_S)
        assert stranger.poll() is None
        with unixsocket.connect(door, DEADLINE_S) as channel:
            assert processes.peer(channel) == (stranger.pid, NOBODY)


@pytest.mark.logs("lane.not_adopted")
def test_lane_is_not_taken_over_from_another_user(reachable: Path) -> None:
    door = reachable / "house" / "lanes" / "test.sock"
    door.parent.mkdir(parents=True)
    reachable.joinpath("house").chmod(0o755)
    os.chown(door.parent, NOBODY, NOBODY)
    with (
        listening_as_nobody(door) as stranger,
        lanes.house(reachable / "house") as house,
    ):
        assert house.worker().pid != stranger.pid
        assert stranger.stdout is not None
        assert stranger.stdout.readline() == "heard 0\n"
        tree = house.active()
        (tree / "file").write_text("served")
        assert (
            visit(house.door)[0] == "answer"
        )  # by our own worker: that there is a control process


@contextmanager
def listening_as_nobody(door: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [sys.executable, "-c", BECOME + LISTEN, door, str(NOBODY)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as stranger:
        try:
            assert stranger.stdout is not None
            assert stranger.stdout.readline() == "listens\n"
            yield stranger
        finally:
            stranger.kill()
