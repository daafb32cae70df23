"""What the service's processes give up when they begin, whoever started them.

The unit takes away the same capabilities, and more calls by name; a service that is started by
hand, by another manager or in a container gives up as much by itself. What they start inherits it:
ssh, mkfs, mount and blkid need none of it. docs/security.md has the reasons.

To be done before the first thread: capabilities are a thread's.
"""

from __future__ import annotations

import ctypes
import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass

from snapfs import callfilter

CAPABILITIES: Mapping[str, int] = {
    "CAP_AUDIT_CONTROL": 30,
    "CAP_AUDIT_READ": 37,
    "CAP_AUDIT_WRITE": 29,
    "CAP_BLOCK_SUSPEND": 36,
    "CAP_BPF": 39,
    "CAP_IPC_LOCK": 14,
    "CAP_IPC_OWNER": 15,
    "CAP_NET_ADMIN": 12,
    "CAP_NET_BIND_SERVICE": 10,
    "CAP_NET_BROADCAST": 11,
    "CAP_NET_RAW": 13,
    "CAP_PERFMON": 38,
    "CAP_SYSLOG": 34,
    "CAP_SYS_BOOT": 22,
    "CAP_SYS_MODULE": 16,
    "CAP_SYS_PACCT": 20,
    "CAP_SYS_RAWIO": 17,
    "CAP_SYS_TIME": 25,
    "CAP_SYS_TTY_CONFIG": 26,
    "CAP_WAKE_ALARM": 35,
}
"""What no process of ours needs (linux/capability.h); the unit names the same."""
OF_CONTROL: Mapping[str, int] = {
    "CAP_KILL": 5,
    "CAP_SETGID": 6,
    "CAP_SETPCAP": 8,
    "CAP_SETUID": 7,
    "CAP_SYS_CHROOT": 18,
    "CAP_SYS_RESOURCE": 24,
}
"""What workers do not need besides. With CAP_SYS_RESOURCE they, and the kernel in their name, would
write past the quota of users and projects; overlayfs lowers it, too."""

CALLS = frozenset(
    {
        *("acct", "adjtimex", "bpf", "clock_adjtime", "clock_settime", "delete_module"),
        *("fanotify_init", "finit_module", "init_module", "io_uring_enter", "io_uring_register"),
        *("io_uring_setup", "ioperm", "iopl", "kcmp", "kexec_file_load", "kexec_load"),
        *("migrate_pages", "modify_ldt", "move_pages", "open_by_handle_at", "perf_event_open"),
        *("pidfd_getfd", "pivot_root", "process_vm_readv", "process_vm_writev", "ptrace"),
        *("quotactl", "quotactl_fd", "reboot", "setdomainname", "sethostname", "settimeofday"),
        *("swapoff", "swapon", "syslog", "userfaultfd", "vhangup"),
    }
)
"""What neither our processes nor the tools that they start call."""
CALLS_OF_CONTROL = frozenset(
    {
        # ssh may have its Kerberos tickets in a keyring.
        *("add_key", "keyctl", "request_key"),
        *("chroot", "execve", "execveat", "fsconfig", "fsmount", "fsopen", "fspick", "mount"),
        *("move_mount", "setns", "unshare"),
    }
)
"""What workers, who answer containers, do not call besides."""

_PR_CAPBSET_READ, _PR_CAPBSET_DROP, _PR_SET_NO_NEW_PRIVS = 23, 24, 38
_CAPABILITY_VERSION_3 = 0x20080522

_libc = ctypes.CDLL(None, use_errno=True)


@dataclass(frozen=True, slots=True)
class Role:
    """What a process is for, as far as it decides what it gives up."""

    capabilities: frozenset[int]
    calls: frozenset[str]
    only_unix_sockets: bool = False


CONTROL = Role(frozenset(CAPABILITIES.values()), CALLS)
WORKER = Role(
    CONTROL.capabilities | frozenset(OF_CONTROL.values()),
    CALLS | CALLS_OF_CONTROL,
    only_unix_sockets=True,
)


def confine(role: Role) -> str:
    """Give up what the role does not need, for good; return what could not be, in words, or "".

    What cannot be given up is no reason not to serve. For a process's only thread.
    """
    kept = []
    for what, give_up in (
        ("capabilities", _drop_capabilities),
        ("new privileges", _refuse_new_privileges),
        ("system calls", _filter_calls),
    ):
        try:
            give_up(role)
        except OSError as error:
            kept.append(f"{what} are as before ({error.strerror})")
    return ", ".join(kept)


def _drop_capabilities(role: Role) -> None:
    """Drop them from all sets of this thread; those that the kernel does not know are skipped."""
    for capability in sorted(role.capabilities):
        if _libc.prctl(_PR_CAPBSET_READ, ctypes.c_ulong(capability), 0, 0, 0) == 1:
            _checked(_libc.prctl(_PR_CAPBSET_DROP, ctypes.c_ulong(capability), 0, 0, 0))
    header, sets = _Header(_CAPABILITY_VERSION_3, 0), (_Sets * 2)()
    _checked(_libc.capget(ctypes.byref(header), ctypes.byref(sets)))
    for capability in role.capabilities:
        word, bit = divmod(capability, 32)
        for kind in ("effective", "permitted", "inheritable"):
            setattr(sets[word], kind, getattr(sets[word], kind) & ~(1 << bit))
    _checked(_libc.capset(ctypes.byref(header), ctypes.byref(sets)))


def _refuse_new_privileges(_: Role) -> None:
    _checked(_libc.prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))


def _filter_calls(role: Role) -> None:
    machine = callfilter.machine()
    if machine is None:
        text = f"there is no filter for {os.uname().machine}"
        raise OSError(errno.EOPNOTSUPP, text)
    callfilter.install(
        callfilter.build(role.calls, machine, only_unix_sockets=role.only_unix_sockets)
    )


def _checked(result: int) -> None:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


class _Header(ctypes.Structure):
    _fields_ = [("version", ctypes.c_uint32), ("pid", ctypes.c_int)]


class _Sets(ctypes.Structure):
    _fields_ = [
        ("effective", ctypes.c_uint32),
        ("permitted", ctypes.c_uint32),
        ("inheritable", ctypes.c_uint32),
    ]
