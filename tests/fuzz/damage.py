"""Damaged requests: what no kernel would send, made of what it has sent."""

from __future__ import annotations

import random
from collections.abc import Sequence

from snapfs.fuse.channel import RESENT, Opcode
from tests.fuzz.streams import NOT_FED, Asked, Kernel
from tests.fuzz.wireforms import GIVES, HEAD_BYTES, ROOM_AT, SILENT, Message

STRANGE_NAMES = [
    *(b"", b".", b"..", b"a/b", b"/", b"n" * 256, b"n" * 5000),
    *(b"../" * up + b"outside/x" for up in range(1, 8)),
]


class Mutations:
    """Damages requests, each in one or two ways."""

    def __init__(self, seed: int, nodes: Sequence[int]) -> None:
        self._random = random.Random(seed)
        self._nodes = nodes
        """That a request may be said to be about."""

    def of(self, request: Message) -> Message:
        ways = (
            *(self._flip, self._flip, self._cut, self._grow, self._opcode, self._node),
            *(self._number, self._rename, self._rename, self._end, self._caller),
        )
        for way in self._random.sample(ways, self._random.choice((1, 1, 2))):
            request = way(request)
        return request

    def flags(self) -> int:
        return RESENT if not self._random.randrange(50) else 0

    def _flip(self, request: Message) -> Message:
        body = bytearray(request.body)
        for _ in range(self._random.randint(1, 4)):
            if body:
                body[self._random.randrange(min(len(body), 200))] ^= 1 << self._random.randrange(8)
        return request.but(body=bytes(body))

    def _cut(self, request: Message) -> Message:
        return request.but(body=request.body[: self._random.randrange(len(request.body) + 1)])

    def _grow(self, request: Message) -> Message:
        more = self._random.choice((b"\0", b"x", self._random.randbytes(9)))
        return request.but(body=request.body + more * self._random.choice((1, 8, 600)))

    def _opcode(self, request: Message) -> Message:
        fast = (*GIVES, *ROOM_AT, *SILENT, Opcode.READLINK, Opcode.IOCTL)
        other = self._random.choice((*fast, self._random.randrange(1, 64), 4096))
        return request.but(opcode=request.opcode if other in NOT_FED else int(other))

    def _node(self, request: Message) -> Message:
        return request.but(nodeid=self._a_node())

    def _a_node(self) -> int:
        known = self._random.choice(self._nodes)
        bit = 1 << self._random.randrange(64)
        return self._random.choice((known, known, known ^ bit, self._random.getrandbits(64), 0))

    def _number(self, request: Message) -> Message:
        """Put a node, or a number from the edge, in place of a word."""
        body = bytearray(request.body)
        edges = (0, 1, (1 << 32) - 1, 1 << 31, (1 << 63) - 1, (1 << 64) - 1, 1 << 20, 0x101000)
        number = self._random.choice((self._a_node(), *edges))
        size = self._random.choice((4, 8))
        if len(body) >= size:
            at = self._random.randrange(0, min(len(body), 96) - size + 1, 4)
            body[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")
        return request.but(body=bytes(body))

    def _rename(self, request: Message) -> Message:
        """Give another name: one that is none, or another one's."""
        try:
            head = HEAD_BYTES.get(Opcode(request.opcode), 0)
        except ValueError:
            return request
        names = request.body[head:].split(b"\0")
        names[self._random.randrange(len(names))] = self._random.choice(STRANGE_NAMES)
        return request.but(body=request.body[:head] + b"\0".join(names))

    def _end(self, request: Message) -> Message:
        return request.but(body=request.body.rstrip(b"\0"))

    def _caller(self, request: Message) -> Message:
        rest = list(request.rest)
        which = self._random.randrange(4 if len(request.body) >= 8 else 3)
        rest[which] = 1 if which == 3 else self._random.choice((0, 1, 1000, (1 << 32) - 1))
        return request.but(rest=tuple(rest))


def feed_damaged(kernel: Kernel, stream: Sequence[Asked], seed: int, each: int) -> None:
    """Feed a stream with `each` damaged requests before each one; some are left out or twice."""
    chance = random.Random(seed)
    for asked in stream:
        request = kernel.here(asked.request)
        if request is None:
            continue
        mutations = Mutations(chance.getrandbits(32), list(kernel.nodes.values()))
        for _ in range(each):
            kernel.try_damaged(mutations.of(request), mutations.flags())
        for _ in range(chance.choice((0, 2)) if not chance.randrange(50) else 1):
            kernel.feed(asked)
