"""What channel_src/module.c offers; callers use snapfs.fuse.channel."""

from collections.abc import Callable

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

def waiting() -> tuple[int, int, bool]:
    """Return of the request that waits for pyfuse3: its number, 0 without one; the process of which
    it says that it may not keep set-id bits (0: one that is not seen from here), -1 if it does not
    say so; whether it sets a time and not all to the present one."""

def missing() -> str | None:
    """Name what libfuse lacks."""

def is_ours() -> bool:
    """Whether pyfuse3's session came through this module."""

class Opened:
    """What is open past us (channel_src/opened.h): callers use snapfs.fuse.backing. Entries are
    tuples as backing.Entry; a number without one is a KeyError."""

    def __init__(self, journal_fd: int, idle_kept: int) -> None: ...
    def __len__(self) -> int: ...
    @property
    def total(self) -> int:
        """Opens of all nodes."""
    @property
    def damaged(self) -> int:
        """How many records that were left make no sense."""
    def find(self, nodeid: int, /) -> tuple[int, int, int, int, int, int, int, bool] | None: ...
    def all(
        self, bits: int, value: int, written: bool, /
    ) -> list[tuple[int, int, int, int, int, int, int, bool]]:
        """Entries whose number has `value` in `bits`; with `written`, those open for writing."""
    def add(self, nodeid: int, kind: int, backing_id: int, device: int, ino: int, /) -> None:
        """Make an entry without opens."""
    def enter(self, nodeid: int, writing: bool, pid: int, unique: int, /) -> bool:
        """Count an open; False when the request comes again and was counted before."""
    def leave(self, nodeid: int, writing: bool, unique: int, /) -> bool:
        """Count a release, likewise."""
    def keep(self, nodeid: int, /) -> int | None:
        """Keep an entry without opens; returns the one that is to go for it."""
    def remove(self, nodeid: int, /) -> int:
        """Strike an entry out; returns its id, which is the caller's to close."""
    def offer(self, nodeid: int, /) -> None: ...
    def withdraw(self, nodeid: int, /) -> None: ...
    def writers_of(self, nodeid: int, /) -> list[int] | None:
        """Who opened a node for writing; None when not all are known."""
    def tell(self, nodeid: int, word: int, /) -> None:
        """Note a word with an entry, if there is one, for the next process; 0: none."""
    def told(self) -> list[tuple[int, int]]:
        """Nodes with the words that were noted."""
    def is_counted(self, unique: int, /) -> bool:
        """Whether a request comes again that an earlier process counted."""

# The fast lane; snapfs.fuse.hot explains.

def hot_ended() -> int:
    """Files that came and went there, of which Python heard only that."""

def hot_figures() -> dict[int, tuple[int, int]]:
    """Requests that were answered, and that were left to Python, by opcode."""

def hot_start(
    opened: Opened | None, listener: Callable[[], object], record: memoryview | None, /
) -> None:
    """Let requests be answered, opens if there is something to count them in. `listener` is called
    from `receive` and `idle` when there are events. The request in hand is noted in `record`, one
    of inflight.py's, when it must not happen twice."""

def summed(unique: int, first: int, second: int, state: int, /) -> int:
    """As inflight.summed."""

def hot_stop() -> None: ...
def hot_allow_passing(on: bool, /) -> None:
    """Whether files that are not open may be opened there."""

def hot_events() -> list[tuple[int, int, int, int, int, int, int, bytes]]:
    """Take events out, the first ones first (hot.Happening)."""

def idle(fd: int, other_fd: int, timeout_ms: int, /) -> bool:
    """Answer requests until there is one for Python, which is True, or `other_fd` is readable or
    time is over."""

def keep_awake(latency_fd: int, /) -> None:
    """Keep processors awake by a descriptor of /dev/cpu_dma_latency while `idle` sees many
    requests; -1: no longer (awake.py)."""
