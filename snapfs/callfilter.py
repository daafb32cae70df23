"""A filter that refuses system calls to a process and to all that it starts (seccomp(2)).

A list of what is refused, not of what is allowed: interpreters, libraries and the programs that the
service starts use hundreds of calls, and others with each release. What is refused fails with
EPERM, as without the privilege, and so does any call of a foreign architecture. The kernel keeps
for each number that its call is always allowed, so a call that is allowed costs some nanoseconds.

A filter cannot be taken off, and each is run beside those before it. So a program marks itself: it
answers a call of seccomp(2) that no kernel knows with EALREADY (`is_on`), and a process that begins
anew with the same list leaves it at that.

Nothing here needs more than the standard library. Numbers of calls are those of Linux, which does
not change them; tests compare them with the kernel's headers.
"""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import struct
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Machine:
    """An architecture as filters see it."""

    audit: int
    """AUDIT_ARCH_* of linux/audit.h."""
    column: int
    """Of CALLS."""
    foreign_from: int | None = None
    """The first number that is another architecture's (x32)."""


MACHINES: Mapping[str, Machine] = {
    "x86_64": Machine(0xC000003E, 0, 0x40000000),
    "aarch64": Machine(0xC00000B7, 1),
}

CALLS: Mapping[str, tuple[int | None, int | None]] = {
    "acct": (163, 89),
    "add_key": (248, 217),
    "adjtimex": (159, 171),
    "bpf": (321, 280),
    "chroot": (161, 51),
    "clock_adjtime": (305, 266),
    "clock_settime": (227, 112),
    "delete_module": (176, 106),
    "execve": (59, 221),
    "execveat": (322, 281),
    "fanotify_init": (300, 262),
    "finit_module": (313, 273),
    "fsconfig": (431, 431),
    "fsmount": (432, 432),
    "fsopen": (430, 430),
    "fspick": (433, 433),
    "init_module": (175, 105),
    "io_uring_enter": (426, 426),
    "io_uring_register": (427, 427),
    "io_uring_setup": (425, 425),
    "ioperm": (173, None),
    "iopl": (172, None),
    "kcmp": (312, 272),
    "kexec_file_load": (320, 294),
    "kexec_load": (246, 104),
    "keyctl": (250, 219),
    "migrate_pages": (256, 238),
    "modify_ldt": (154, None),
    "mount": (165, 40),
    "move_mount": (429, 429),
    "move_pages": (279, 239),
    "open_by_handle_at": (304, 265),
    "perf_event_open": (298, 241),
    "pidfd_getfd": (438, 438),
    "pivot_root": (155, 41),
    "process_vm_readv": (310, 270),
    "process_vm_writev": (311, 271),
    "ptrace": (101, 117),
    "quotactl": (179, 60),
    "quotactl_fd": (443, 443),
    "reboot": (169, 142),
    "request_key": (249, 218),
    "seccomp": (317, 277),
    "setdomainname": (171, 162),
    "sethostname": (170, 161),
    "setns": (308, 268),
    "settimeofday": (164, 170),
    "socket": (41, 198),
    "swapoff": (168, 225),
    "swapon": (167, 224),
    "syslog": (103, 116),
    "unshare": (272, 97),
    "userfaultfd": (323, 282),
    "vhangup": (153, 58),
}
"""Numbers of calls on each machine; None where there is no such call."""

AF_UNIX = 1
_MARK = 0x736E6170
"""An operation of seccomp(2) that the kernel does not have."""

_LOAD, _EQUAL, _NOT_BELOW, _RETURN = 0x20, 0x15, 0x35, 0x06  # linux/bpf_common.h
_ALLOW, _ERRNO = 0x7FFF0000, 0x00050000
_NUMBER, _ARCHITECTURE, _FIRST, _SECOND = 0, 4, 16, 24  # struct seccomp_data; low halves
_INSTRUCTION = struct.Struct("=HBBI")

_SET_MODE_FILTER = 1
_TO_ALL_THREADS, _SPECULATION_ALLOWED = 1, 4

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Filter:
    """A program for one machine."""

    instructions: tuple[tuple[int, int, int, int], ...]
    digest: int
    """Of what it does; 32 bits."""
    marker: int
    """The number of seccomp(2)."""

    def assemble(self) -> bytes:
        """Return it as the kernel takes it."""
        return b"".join(_INSTRUCTION.pack(*it) for it in self.instructions)


def build(refused: Iterable[str], machine: Machine, *, only_unix_sockets: bool = False) -> Filter:
    """Return a filter that refuses calls of CALLS by name; ValueError for seccomp itself."""
    names = sorted(refused)
    if "seccomp" in names:
        raise ValueError("a filter that refuses seccomp cannot be followed by another")
    body = [_load(_ARCHITECTURE), *_refuse(_EQUAL, machine.audit, unless=True), _load(_NUMBER)]
    if machine.foreign_from is not None:
        body += _refuse(_NOT_BELOW, machine.foreign_from)
    for name in names:
        number = CALLS[name][machine.column]
        if number is not None:
            body += _refuse(_EQUAL, number)
    if only_unix_sockets:
        number = _number("socket", machine)
        body += _when(number, [_load(_FIRST), *_refuse(_EQUAL, AF_UNIX, unless=True), _allow()])
    digest = zlib.crc32(b"".join(_INSTRUCTION.pack(*it) for it in body))
    marker = _number("seccomp", machine)
    told = [_load(_FIRST), (_EQUAL, 1, 0, _MARK), _allow(), _load(_SECOND)]
    told += [*_refuse(_EQUAL, digest, errno.EALREADY), _allow()]
    return Filter((*body, *_when(marker, told), _allow()), digest, marker)


def install(program: Filter) -> None:
    """Put a filter on all threads of this process; raises OSError with nothing changed.

    Needs no_new_privs, or CAP_SYS_ADMIN.
    """
    if is_on(program):
        return
    raw = program.assemble()
    code = ctypes.create_string_buffer(raw, len(raw))
    head = _Program(len(program.instructions), ctypes.addressof(code))
    # The second flag, since Linux 4.17: before 5.16 a filter made all code of the process slower.
    for flags in (_TO_ALL_THREADS | _SPECULATION_ALLOWED, _TO_ALL_THREADS):
        answer = _seccomp(program.marker, _SET_MODE_FILTER, flags, ctypes.byref(head))
        if answer != -errno.EINVAL:
            break
    if answer > 0:
        raise OSError(errno.EBUSY, f"thread {answer} has filters of its own")
    if answer < 0:
        raise OSError(-answer, os.strerror(-answer))


def is_on(program: Filter) -> bool:
    """Whether this very filter holds already."""
    return _seccomp(program.marker, _MARK, program.digest, None) == -errno.EALREADY


def machine() -> Machine | None:
    """Return what this process runs on; None when filters do not know it."""
    return MACHINES.get(platform.machine()) if ctypes.sizeof(ctypes.c_void_p) == 8 else None


class _Program(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("instructions", ctypes.c_void_p)]


def _seccomp(number: int, operation: int, flags: int, argument: object) -> int:
    answer: int = _libc.syscall(
        ctypes.c_long(number), ctypes.c_ulong(operation), ctypes.c_ulong(flags), argument
    )
    return -ctypes.get_errno() if answer < 0 else answer


def _number(name: str, machine: Machine) -> int:
    number = CALLS[name][machine.column]
    if number is None:
        raise ValueError(f"there is no {name} there")
    return number


def _load(offset: int) -> tuple[int, int, int, int]:
    return _LOAD, 0, 0, offset


def _allow() -> tuple[int, int, int, int]:
    return _RETURN, 0, 0, _ALLOW


def _refuse(
    test: int, value: int, error: int = errno.EPERM, *, unless: bool = False
) -> list[tuple[int, int, int, int]]:
    """Fail with `error` when the test of what was loaded holds, or `unless` it does."""
    return [(test, int(unless), int(not unless), value), (_RETURN, 0, 0, _ERRNO | error)]


def _when(number: int, then: list[tuple[int, int, int, int]]) -> list[tuple[int, int, int, int]]:
    """Do something for one call; it ends the program."""
    return [(_EQUAL, 0, len(then), number), *then]
