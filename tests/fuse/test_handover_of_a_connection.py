"""INIT as it is read, answered and copied; and requests around the session's edges."""

from __future__ import annotations

import errno
import struct

import pyfuse3
import pytest
import trio
import trio.testing
from hypothesis import given
from hypothesis import strategies as st

from snapfs.fuse.answering import answering
from snapfs.fuse.control import Answer, Begin, Drop, Freeze, GetStatus, Ready, Thaw, decode, encode
from snapfs.fuse.handover import (
    BELIEVED,
    MAX_PAGES,
    MAX_WRITE_BYTES,
    NEEDED,
    WANTED,
    Init,
    InitRequest,
)
from snapfs.fuse.session import Operations

LAYOUT_CHANGING = 1 << 29 | 1 << 32 | 1 << 34
"""SETXATTR_EXT, SECURITY_CTX, CREATE_SUPP_GROUP: libfuse would misread requests."""

flags = st.integers(0, (1 << 64) - 1)


def raw_init(unique: int, minor: int, readahead: int, offered: int) -> bytes:
    body = struct.pack("<IIIII44x", 7, minor, readahead, offered & 0xFFFFFFFF, offered >> 32)
    return struct.pack("<IIQQIIIHH", 40 + len(body), 26, unique, 0, 0, 0, 0, 0, 0) + body


@given(st.integers(1, 1 << 63), st.integers(28, 99), st.integers(0, 1 << 30), flags)
def test_answer_grants_no_more_than_offered_and_wanted(
    unique: int, minor: int, readahead: int, offered: int
) -> None:
    offered |= NEEDED | Init.INIT_EXT
    init = InitRequest.parse(raw_init(unique, minor, readahead, offered))
    answer = init.answer()
    length, error, echoed = struct.unpack_from("<IiQ", answer)
    assert (length, error, echoed) == (len(answer), 0, unique)
    fields = struct.unpack_from("<IIIIHHIIHHI", answer, 16)
    granted = fields[3] | fields[10] << 32
    assert not granted & ~offered
    assert not granted & ~int(WANTED)
    assert not granted & LAYOUT_CHANGING
    assert fields[0] == 7
    assert fields[1] <= min(minor, 38)
    assert (fields[6], fields[8]) == (MAX_WRITE_BYTES, MAX_PAGES)


@given(flags)
def test_copy_tells_libfuse_only_what_the_kernel_will_keep_to(offered: int) -> None:
    init = InitRequest.parse(raw_init(2, 45, 131072, offered | NEEDED | Init.INIT_EXT))
    copy = init.copy_for_libfuse()
    length, opcode, unique = struct.unpack_from("<IIQ", copy)
    major, minor, _, told = struct.unpack_from("<IIII", copy, 40)
    assert (length, opcode, unique) == (len(copy), 26, 2)
    assert (major, minor) == (7, 13)
    assert not told & ~int(BELIEVED)
    assert not told & ~int(init.offered)
    assert not int(BELIEVED) & LAYOUT_CHANGING


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\0" * 39,
        raw_init(1, 45, 0, 0).replace(b"\x1a", b"\x1b", 1),
        struct.pack("<IIQQIIIHHIIII", 56, 26, 1, 0, 0, 0, 0, 0, 0, 8, 0, 0, 0),
    ],
)
def test_what_is_not_init_is_refused(raw: bytes) -> None:
    with pytest.raises(OSError) as refused:
        InitRequest.parse(raw)
    assert refused.value.errno == errno.EPROTO


def test_kernel_that_lacks_what_handlers_need_is_refused() -> None:
    init = InitRequest.parse(raw_init(1, 45, 0, int(WANTED & ~Init.DO_READDIRPLUS)))
    with pytest.raises(OSError, match=r"lacks .*DO_READDIRPLUS"):
        init.answer()


@pytest.mark.parametrize(
    "message",
    [
        Begin.of(InitRequest(2, 45, 131072, WANTED), (3, 4), (4,), (1 << 30, 1000)),
        Freeze(1, snapshot=2, timeout_s=0.5),
        Thaw(2, snapshot=2),
        Drop(3, snapshot=1 << 40, timeout_s=1.0),
        GetStatus(4),
        Ready(77),
        Answer(1, error="no", late=True),
    ],
)
def test_messages_come_through(message: object) -> None:
    assert decode(encode(message)) == message  # type: ignore[arg-type]


def test_begin_carries_the_whole_init() -> None:
    init = InitRequest(2, 45, 131072, WANTED)
    begin = decode(encode(Begin.of(init, (), (), (None, None))))
    assert isinstance(begin, Begin)
    assert begin.init == init


class Handlers(Operations):
    def __init__(self) -> None:
        super().__init__()
        self.waits = 0

    def waiting(self) -> None:
        self.waits += 1

    @answering
    async def raises(self, error: Exception) -> None:
        raise error

    @answering
    async def waits_for(self, event: trio.Event) -> str:
        await event.wait()
        await trio.lowlevel.checkpoint()
        return "done"

    @answering
    async def answers(self) -> str:
        return "at once"


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (FileNotFoundError(errno.ENOENT, "no"), errno.ENOENT),
        (OSError(errno.ENOSYS, "sticky"), errno.EOPNOTSUPP),
        (OSError("without a number"), errno.EIO),
        (pyfuse3.FUSEError(errno.EPERM), errno.EPERM),
        (KeyError("a bug"), errno.EIO),
    ],
)
@pytest.mark.logs("fuse.io_error", "fuse.unexpected_error")
async def test_every_error_becomes_an_errno(error: Exception, number: int) -> None:
    with pytest.raises(pyfuse3.FUSEError) as refused:
        await Handlers().raises(error)
    assert refused.value.errno == number


async def test_handler_that_waits_says_so_once_and_one_that_does_not_never() -> None:
    handlers, event, seen = Handlers(), trio.Event(), []
    assert await handlers.answers() == "at once"
    assert handlers.waits == 0

    async def wait() -> None:
        seen.append(await handlers.waits_for(event))

    async with trio.open_nursery() as nursery:
        nursery.start_soon(wait)
        await trio.testing.wait_all_tasks_blocked()
        assert handlers.waits == 1
        event.set()
    assert seen == ["done"]
    assert handlers.waits == 1


async def test_handler_that_is_cancelled_while_it_waits_ends() -> None:
    with trio.move_on_after(0) as scope:
        await Handlers().waits_for(trio.Event())
    assert scope.cancelled_caught
