"""What channel_src/module.c offers; callers use snapfs.fuse.channel."""

from typing_extensions import Buffer

ABI: int

def receive(fd: int, /) -> tuple[int, int, int, int, int, int, bytes] | bool | None:
    """Read one request: None when there is none, True when it is for pyfuse3 (which then takes it),
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

def missing() -> str | None:
    """Name what libfuse lacks."""

def is_ours() -> bool:
    """Whether pyfuse3's session came through this module."""
