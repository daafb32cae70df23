"""Streams of requests as the kernel made them for real programs, fed again to a worker without one.

`recorded` has programs work in a lane and returns what went over /dev/fuse. `Kernel` is the other
end of a worker without a mount (unmounted_worker.py) and feeds it the same, with the numbers of
nodes and handles that this worker gives.
"""

from __future__ import annotations

import errno
import os
import shlex
import socket
import struct
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from snapfs.fuse import control
from snapfs.fuse.channel import RESENT, Opcode
from snapfs.fuse.handover import Init, InitRequest
from snapfs.fuse.modes import Mode
from tests.fuzz.unmounted_worker import LEFT, MARK
from tests.fuzz.wireforms import (
    ENTRY_BYTES,
    GIVES,
    HEAD_BYTES,
    OPEN_BYTES,
    REPLY,
    SILENT,
    Message,
    Reply,
    check,
    is_malformed,
    listed,
)
from tests.support import lanes
from tests.support.lanes import Fill

SOURCE = Path(__file__).parents[1] / "support" / "fuse_calls.c"
WORKER = Path(__file__).with_name("unmounted_worker.py")
DEADLINE_S = 60.0
BUFFER_BYTES = 4 << 20
SOCKET_BYTES = 8 << 20
SO_SNDBUFFORCE = 32
MOST_ERRNO = 512

NUMBER = struct.Struct("<Q")
FORGET = struct.Struct("<QQ")
_BY_HANDLE = (
    *(Opcode.READ, Opcode.WRITE, Opcode.RELEASE, Opcode.FLUSH, Opcode.FSYNC, Opcode.FALLOCATE),
    *(Opcode.LSEEK, Opcode.IOCTL),
)
_COPIES = (Opcode.COPY_FILE_RANGE, Opcode.COPY_FILE_RANGE_64)
NODES_AT = {
    **dict.fromkeys((Opcode.LINK, Opcode.RENAME, Opcode.RENAME2), (0,)),
    **dict.fromkeys(_COPIES, (16,)),
}
HANDLES_AT = {
    **dict.fromkeys(_BY_HANDLE, (0,)),
    **dict.fromkeys((Opcode.GETATTR, Opcode.SETATTR), (8,)),
    **dict.fromkeys(_COPIES, (0, 24)),
}
NOT_FED = {Opcode.INIT, Opcode.DESTROY, Opcode.INTERRUPT}
AFTERWARDS = Message(63, 0, 1, (0, 0, 0, 0, 0), b"")
"""That nobody answers."""


@dataclass(frozen=True, slots=True)
class Asked:
    request: Message
    reply: Reply | None


def recorded(base: Path, mode: Mode, fill: Fill, work: Callable[[Path], None]) -> list[Asked]:
    """Have `work` done in a snapshot of a lane, on what `fill` makes; return all that was asked."""
    base.mkdir()
    library, record, python = base / "calls.so", base / "record", base / "python"
    build(library)
    command = ["exec", "env", f"LD_PRELOAD={library}", f"FUSE_RECORD={record}", sys.executable]
    python.write_text(f'#!/bin/sh\n{shlex.join(command)} "$@"\n')
    python.chmod(0o755)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "executable", str(python))
        with lanes.house(base / "house", mode) as house:
            work(house.active(fill).path)
            lanes.drop_dentries()
            house.worker()
    return _paired(record.read_bytes())


def build(library: Path) -> None:
    flags = ("-shared", "-fPIC", "-O1", "-Wall", "-Wextra", "-Werror")
    subprocess.run(["gcc", *flags, "-o", library, SOURCE], check=True, timeout=DEADLINE_S)


def _paired(raw: bytes) -> list[Asked]:
    requests: list[Message] = []
    replies: dict[int, Reply] = {}
    at = 0
    while at < len(raw):
        (size,) = struct.unpack_from("<I", raw, at + 1)
        message = raw[at + 1 : at + 1 + size]
        if raw[at : at + 1] == b"Q":
            requests.append(Message.parse(message))
        else:
            _, error, unique = REPLY.unpack_from(message)
            replies[unique] = Reply(-error, message[REPLY.size :])
        at += 1 + size
    return [Asked(it, replies.get(it.unique)) for it in requests if it.opcode not in NOT_FED]


@contextmanager
def worker(python: Path, base: Path, root: Path, mode: Mode) -> Iterator[Kernel]:
    """A worker that shows the snapshots of a root to us; fails when it does not end well."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    ours.settimeout(DEADLINE_S)
    theirs.setblocking(False)
    for end in (ours, theirs):
        end.setsockopt(socket.SOL_SOCKET, SO_SNDBUFFORCE, SOCKET_BYTES)
    control_end, control_theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    control_end.settimeout(DEADLINE_S)
    memory = [os.memfd_create(name) for name in ("journal", "inflight", "places")]
    fds = [theirs.fileno(), *memory, control_theirs.fileno()]
    command = [python, WORKER, "--lane", "test", "--root", root, "--mountpoint", base / "nowhere",
               "--device", "0:0", "--door", base / "door", "--mode", mode.value,
               "--fuse-fd", str(fds[0]), "--memory-fds", ",".join(map(str, memory)),
               "--control-fd", str(fds[-1])]  # fmt: skip
    with (base / "log").open("w") as log, ours, control_end:
        process = subprocess.Popen(command, pass_fds=fds, stderr=log, cwd=base)
        for fd in (theirs.detach(), control_theirs.detach(), *memory):
            os.close(fd)
        try:
            init = InitRequest(2, 45, 1 << 20, ~Init(0))
            control_end.send(control.encode(control.Begin.of(init, (), (), (None, None))))
            control.decode(control_end.recv(control.MAX_PACKET_BYTES))
            yield Kernel(ours)
            ours.close()
            assert process.wait(DEADLINE_S) == 0
        except Exception as error:
            error.add_note((base / "log").read_text()[-4000:])
            raise
        finally:
            process.kill()
            process.wait(DEADLINE_S)


@dataclass
class Kernel:
    """Asks a worker, and checks the form of all that it says."""

    socket: socket.socket
    nodes: dict[int, int] = field(default_factory=lambda: {1: 1})
    """Recorded number to the one here; likewise for handles."""
    handles: dict[int, int] = field(default_factory=dict)
    fast: Counter[int] = field(default_factory=Counter)
    damaged: Counter[int] = field(default_factory=Counter)
    """How many requests were answered in the fast lane, and damaged ones, by opcode."""
    _unique: int = 2

    def ask(self, request: Message, flags: int = 0) -> Reply | None:
        """Send a request and return the reply; None where there is none."""
        self._send(request, flags)
        if request.opcode not in SILENT:
            return self._reply()
        if flags & MARK:  # what is sent next is read next
            self._send(AFTERWARDS, MARK)
            return self._reply()
        return None

    @property
    def asked(self) -> int:
        """How many requests there were."""
        return self._unique // 2 - 1

    def _send(self, request: Message, flags: int) -> None:
        self._unique += 2
        self.socket.send(request.but(unique=self._unique | flags).encode())

    def _reply(self) -> Reply:
        """Return the reply to what was sent last; notices and what was said before do not count."""
        while True:
            raw = self.socket.recv(BUFFER_BYTES)
            assert raw, "the worker has ended"
            size, error, unique = REPLY.unpack_from(raw)
            assert size == len(raw)
            if unique & ~(MARK | RESENT) == self._unique:
                assert 0 <= -error < MOST_ERRNO
                assert not error or size == REPLY.size
                return Reply(-error, raw[REPLY.size :])

    def feed(self, asked: Asked) -> bool:
        """Ask what was asked, in the numbers of here; return whether that has the same answer."""
        request = self.here(asked.request)
        if request is None:
            return False
        reply = None if request.opcode in SILENT else self.ask(request, MARK)
        if reply is not None and reply.error != LEFT:
            self.fast[request.opcode] += 1
        else:
            reply = self.ask(request)
        if reply is None or asked.reply is None:
            return True
        check(request, reply)
        if not reply.error and not asked.reply.error:
            self._learn(request.opcode, asked.reply.body, reply.body)
        elif reply.error == errno.EEXIST and not asked.reply.error:
            self._find_made(request, asked.reply.body)
        return reply.error == asked.reply.error

    def try_damaged(self, request: Message, flags: int) -> None:
        """Ask what no kernel would: it is refused, or left, or the answer has the right form."""
        reply = self.ask(request, MARK | flags)
        assert reply is not None
        if reply.error == LEFT:
            return
        self.damaged[request.opcode] += 1
        if not reply.error:
            assert not is_malformed(request), request
            check(request, reply)

    def here(self, request: Message) -> Message | None:
        """Say a recorded request in the numbers of here; None when its node is not known."""
        body = bytearray(request.body)
        try:
            for at in NODES_AT.get(Opcode(request.opcode), ()):
                NUMBER.pack_into(body, at, self.nodes[NUMBER.unpack_from(body, at)[0]])
            if request.opcode == Opcode.BATCH_FORGET:
                return request.but(body=self._forgets(request.body))
            for at in HANDLES_AT.get(Opcode(request.opcode), ()):
                handle = NUMBER.unpack_from(body, at)[0]
                NUMBER.pack_into(body, at, self.handles.get(handle, handle))
            return request.but(nodeid=self.nodes[request.nodeid], body=bytes(body))
        except KeyError:
            return None

    def _forgets(self, body: bytes) -> bytes:
        all_of_them = [FORGET.unpack_from(body, at) for at in range(8, len(body), FORGET.size)]
        known = [(self.nodes[it], count) for it, count in all_of_them if it in self.nodes]
        return struct.pack("<II", len(known), 0) + b"".join(FORGET.pack(*it) for it in known)

    def _learn(self, opcode: int, then: bytes, now: bytes) -> None:
        if GIVES.get(Opcode(opcode), 0) in (ENTRY_BYTES, ENTRY_BYTES + OPEN_BYTES):
            self._learn_node(then, now)
        if opcode in (Opcode.OPEN, Opcode.CREATE, Opcode.TMPFILE):
            handles = [NUMBER.unpack_from(it, len(it) - OPEN_BYTES)[0] for it in (then, now)]
            self.handles[handles[0]] = handles[1]
        if opcode == Opcode.READDIRPLUS:
            here = dict(listed(now))
            for name, entry in listed(then):
                if name in here:
                    self._learn_node(entry, here[name])

    def _find_made(self, request: Message, then: bytes) -> None:
        """Learn of what a damaged request has made before."""
        name = request.body[HEAD_BYTES.get(Opcode(request.opcode), 0) :].split(b"\0")[0]
        found = self.ask(request.but(opcode=int(Opcode.LOOKUP), body=name + b"\0"))
        if found is not None and not found.error:
            self._learn_node(then, found.body)

    def _learn_node(self, then: bytes, now: bytes) -> None:
        old, new = NUMBER.unpack_from(then)[0], NUMBER.unpack_from(now)[0]
        if old and new:
            self.nodes[old] = new


def everything_but(base: Path, *written: Path) -> dict[str, tuple[object, ...]]:
    """Return what is below a directory, down to times and contents, but for some directories."""
    found: dict[str, tuple[object, ...]] = {}
    for above, directories, files in os.walk(base):
        directories[:] = [it for it in directories if Path(above, it) not in written]
        for name in (*directories, *files):
            path = Path(above, name)
            real = path.lstat()
            data = path.read_bytes() if path.is_file() and not path.is_symlink() else b""
            found[str(path)] = (real.st_mode, real.st_uid, real.st_nlink, real.st_ctime_ns, data)
    return found
