"""Requests of the kernel and replies to them as they go over /dev/fuse, and what form they have."""

from __future__ import annotations

import struct
from dataclasses import dataclass

from snapfs.fuse.channel import Opcode

REQUEST = struct.Struct("<IIQQIIIHH")
REPLY = struct.Struct("<IiQ")
DIRENT = struct.Struct("<QQII")
ENTRY_BYTES, ATTR_BYTES, OPEN_BYTES = 128, 104, 16
NAME_MAX = 255

SILENT = {Opcode.FORGET, Opcode.BATCH_FORGET}
_ENTRIES = (Opcode.LOOKUP, Opcode.MKNOD, Opcode.MKDIR, Opcode.SYMLINK, Opcode.LINK)
_NOTHING = (
    *(Opcode.UNLINK, Opcode.RMDIR, Opcode.RENAME, Opcode.RENAME2, Opcode.RELEASE),
    *(Opcode.FSYNC, Opcode.SETXATTR, Opcode.REMOVEXATTR, Opcode.FALLOCATE),
)
GIVES = {
    **dict.fromkeys(_ENTRIES, ENTRY_BYTES),
    **dict.fromkeys((Opcode.GETATTR, Opcode.SETATTR), ATTR_BYTES),
    **dict.fromkeys((Opcode.CREATE, Opcode.TMPFILE), ENTRY_BYTES + OPEN_BYTES),
    **dict.fromkeys((Opcode.OPEN, Opcode.OPENDIR), OPEN_BYTES),
    **dict.fromkeys(_NOTHING, 0),
    Opcode.WRITE: 8,
    Opcode.STATFS: 80,
    Opcode.STATX: 288,
}
"""Bytes of a reply that is no error."""
ROOM_AT = {
    **dict.fromkeys((Opcode.READ, Opcode.READDIR, Opcode.READDIRPLUS), 16),
    **dict.fromkeys((Opcode.GETXATTR, Opcode.LISTXATTR), 0),
}
"""Where a request says how long a reply may be."""
HEAD_BYTES = {
    **dict.fromkeys((Opcode.LINK, Opcode.RENAME, Opcode.MKDIR, Opcode.OPEN), 8),
    **dict.fromkeys((Opcode.GETXATTR, Opcode.LISTXATTR), 8),
    **dict.fromkeys((Opcode.MKNOD, Opcode.CREATE), 16),
    **dict.fromkeys((Opcode.RELEASE, Opcode.READDIR, Opcode.READDIRPLUS), 24),
    **dict.fromkeys((Opcode.READ, Opcode.WRITE), 40),
    Opcode.IOCTL: 32,
    Opcode.SETATTR: 88,
}
"""What precedes names and data, of what the fast lane looks at."""
NAMES = {
    **dict.fromkeys(_ENTRIES, 1),
    **dict.fromkeys((Opcode.CREATE, Opcode.UNLINK, Opcode.RMDIR), 1),
    Opcode.RENAME: 2,
}
"""How many names of files come then."""
LEAST_TEXTS = {Opcode.GETXATTR: 1, Opcode.SYMLINK: 2}
"""Where there is more that ends with a zero."""


@dataclass(frozen=True, slots=True)
class Message:
    """A request without its length, or a reply to it."""

    opcode: int
    unique: int
    nodeid: int
    rest: tuple[int, int, int, int, int]
    """User, group, process, words of extensions, padding."""
    body: bytes

    @classmethod
    def parse(cls, raw: bytes) -> Message:
        _, opcode, unique, nodeid, *rest = REQUEST.unpack_from(raw)
        return cls(opcode, unique, nodeid, tuple(rest), raw[REQUEST.size :])  # type: ignore[arg-type]

    def encode(self) -> bytes:
        size = REQUEST.size + len(self.body)
        return REQUEST.pack(size, self.opcode, self.unique, self.nodeid, *self.rest) + self.body

    def but(self, **changes: object) -> Message:
        values = {name: getattr(self, name) for name in self.__slots__} | changes
        return Message(**values)


@dataclass(frozen=True, slots=True)
class Reply:
    error: int
    body: bytes


def listed(page: bytes, entry_bytes: int = ENTRY_BYTES) -> list[tuple[bytes, bytes]]:
    """Take the reply to READDIRPLUS (or, without entries, READDIR) apart; it is a whole one."""
    found, at = [], 0
    while at < len(page):
        entry = page[at : at + entry_bytes]
        _, _, length, kind = DIRENT.unpack_from(page, at + entry_bytes)
        start = at + entry_bytes + DIRENT.size
        name = page[start : start + length]
        assert len(name) == length
        assert 0 < length <= NAME_MAX
        assert kind < 16
        found.append((name, entry))
        at = start + (length + 7 & ~7)
    assert at == len(page)
    return found


def check(request: Message, reply: Reply) -> None:
    """Assert that a reply has the form that the kernel asks for."""
    if reply.error:
        return
    try:
        opcode = Opcode(request.opcode)
    except ValueError:
        raise AssertionError(f"an answer to {request}") from None
    size = len(reply.body)
    if opcode in GIVES:
        assert size == GIVES[opcode], (request, size)
    if opcode in ROOM_AT:
        (room,) = struct.unpack_from("<I", request.body, ROOM_AT[opcode])
        asks_length = not room and opcode in (Opcode.GETXATTR, Opcode.LISTXATTR)
        assert size == 8 if asks_length else size <= room, (request, size)
    if opcode is Opcode.READDIRPLUS:
        listed(reply.body)
    if opcode is Opcode.READDIR:
        listed(reply.body, 0)


def is_malformed(request: Message) -> bool:
    """Whether the kernel never sends such a request: it is not whole, or a name is none."""
    if request.opcode not in Opcode.__members__.values():
        return True
    opcode = Opcode(request.opcode)
    head = HEAD_BYTES.get(opcode, 0)
    if request.rest[3] or len(request.body) < head:
        return True
    if opcode is Opcode.WRITE:
        return len(request.body) < head + struct.unpack_from("<I", request.body, 16)[0]
    if opcode is Opcode.BATCH_FORGET:
        return len(request.body) < 8
    texts = request.body[head:].split(b"\0")[:-1]
    names, least = NAMES.get(opcode, 0), LEAST_TEXTS.get(opcode, NAMES.get(opcode, 0))
    return len(texts) < least or any(map(_is_strange, texts[:names]))


def _is_strange(name: bytes) -> bool:
    return name in (b"", b".", b"..") or b"/" in name or len(name) > NAME_MAX
