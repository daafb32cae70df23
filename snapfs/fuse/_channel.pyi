"""What channel_src/module.c offers; callers use snapfs.fuse.channel."""

from typing_extensions import Buffer

ABI: int

def receive(fd: int, /) -> tuple[int, int, int, int, int, int, bytes] | bool | None:
    """Read one request: None when there is none, True when it is for pyfuse3 (which then takes it),
    False when so many were answered that others should have their turn,
    else unique, opcode, node, uid, gid, pid and body. OSError when reading fails."""

def reply(fd: int, unique: int, error: int, body: Buffer, /) -> None:
    """Write one reply; OSError when the kernel does not take it."""

def route(opcodes: int, /) -> None:
    """Choose the opcodes that `receive` returns, one bit each."""

def answer_open(fh: int, open_flags: int, backing_id: int, /) -> None:
    """Keep what the reply that names `fh` is to say."""

def take_answer(fh: int, /) -> tuple[int, int] | None:
    """Take such an answer back."""

def kills_set_id() -> bool:
    """Whether the request that waits for pyfuse3 says that its caller may not keep set-id bits."""

def unique() -> int:
    """Number of the request that waits for pyfuse3, 0 without one."""

def missing() -> str | None:
    """Name what libfuse lacks."""

def is_ours() -> bool:
    """Whether pyfuse3's session came through this module."""

# The fast lane; snapfs.fuse.hot explains.

def hot_offer_open(nodeid: int, open_flags: int, backing_id: int, /) -> None: ...
def hot_offer_attributes(nodeid: int, valid_s: int, packed: Buffer, /) -> None: ...
def hot_offer_no_xattrs(nodeid: int, offer: int, /) -> None: ...
def hot_offer_contents(nodeid: int, fd: int, /) -> None:
    """Offer what `fd` reads; the library owns it from then on."""

def hot_withdraw(nodeid: int, offers: int, tell: bool, /) -> int: ...
def hot_withdraw_all() -> None: ...
def hot_closed() -> list[int]: ...
def hot_opens(nodeid: int, /) -> int: ...
def hot_figures() -> tuple[int, int, dict[int, int]]: ...
def hot_start() -> int:
    """Let requests be answered; returns the number that all handles have that are given out."""

def hot_stop() -> None: ...
def idle(fd: int, other_fd: int, wake_fd: int, timeout_ms: int, /) -> None:
    """Answer requests until there is one for Python, `other_fd` is readable or time is over."""
