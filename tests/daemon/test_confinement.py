"""What the processes of a service give up by themselves, whoever started them."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs import callfilter, confinement
from snapfs.confinement import CONTROL, WORKER, Role
from tests.daemon.test_privileges import dropped
from tests.support.daemon import RunningDaemon, running


def defined(header: str, *macros: str) -> dict[str, int]:
    """Return the numbers of system calls that a header of the kernel gives."""
    source = f"#include <{header}>\n"
    command = ["cc", "-E", "-dM", *(f"-D{it}" for it in macros), "-"]
    done = subprocess.run(command, input=source, capture_output=True, text=True, check=True)
    found = re.findall(r"^#define __NR(?:3264)?_(\w+) (\d+)$", done.stdout, re.MULTILINE)
    return {name: int(number) for name, number in found}


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
def test_numbers_of_calls_are_the_kernels(machine: str) -> None:
    if machine == "x86_64":
        known = defined("asm/unistd_64.h")
    else:
        wanted = ("__ARCH_WANT_RENAMEAT", "__ARCH_WANT_NEW_STAT", "__ARCH_WANT_SYS_CLONE3")
        known = defined("asm-generic/unistd.h", *wanted)
    column = callfilter.MACHINES[machine].column
    named = {name: numbers[column] for name, numbers in callfilter.CALLS.items()}
    assert named == {name: known.get(name) for name in callfilter.CALLS}


def test_unit_takes_away_the_same_capabilities() -> None:
    assert {f"cap_{it}" for it in dropped()} == {it.lower() for it in confinement.CAPABILITIES}


def test_every_machine_has_a_filter_whose_jumps_end_in_it() -> None:
    for machine in callfilter.MACHINES.values():
        for role in (CONTROL, WORKER):
            built = callfilter.build(role.calls, machine, only_unix_sockets=True).instructions
            for at, (code, if_true, if_false, _) in enumerate(built):
                if code & 7 == 5:  # BPF_JMP
                    assert at + 1 + max(if_true, if_false) < len(built)
            assert built[-1][0] & 7 == 6  # BPF_RET


def test_filter_that_would_forbid_the_next_one_is_not_built() -> None:
    with pytest.raises(ValueError, match="followed by another"):
        callfilter.build({"seccomp"}, callfilter.MACHINES["x86_64"])


@pytest.fixture
def machine() -> callfilter.Machine:
    found = callfilter.machine()
    assert found is not None
    return found


TRY = """
import ctypes, errno, os, socket, subprocess, sys
from snapfs import callfilter, confinement
role = getattr(confinement, sys.argv[1])
libc = ctypes.CDLL(None, use_errno=True)
for _ in range(2):
    assert confinement.confine(role) == "", "not confined"
machine = callfilter.machine()
for name in sorted(role.calls):
    number = callfilter.CALLS[name][machine.column]
    if number is not None:
        answer = libc.syscall(ctypes.c_long(number), *(ctypes.c_long(-1) for _ in range(5)))
        print(name, answer, errno.errorcode[ctypes.get_errno()])
if machine.foreign_from is not None:
    answer = libc.syscall(ctypes.c_long(machine.foreign_from + 39))
    print("foreign", answer, errno.errorcode[ctypes.get_errno()])
for family in (socket.AF_UNIX, socket.AF_INET):
    try:
        socket.socket(family).close()
        print("socket", int(family), "made")
    except PermissionError as error:
        print("socket", int(family), "refused")
print(open("/proc/self/status").read(), flush=True)
try:
    subprocess.run([sys.executable, "-c", "print('it runs')"], check=True)
except PermissionError:
    print("it may not run")
"""


@pytest.mark.root
@pytest.mark.parametrize("name", ["CONTROL", "WORKER"])
def test_what_a_process_gave_up_is_refused(name: str, machine: callfilter.Machine) -> None:
    role: Role = getattr(confinement, name)
    command = [sys.executable, "-c", TRY, name]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    expected = [
        f"{call} -1 EPERM"
        for call in sorted(role.calls)
        if callfilter.CALLS[call][machine.column] is not None
    ]
    assert said[: len(expected)] == expected
    if machine.foreign_from is not None:
        assert "foreign -1 EPERM" in said
    assert f"socket {int(socket.AF_UNIX)} made" in said
    inet = "refused" if role.only_unix_sockets else "made"
    assert f"socket {int(socket.AF_INET)} {inet}" in said
    assert said[-1] == ("it may not run" if "execve" in role.calls else "it runs")


def filters(pid: int) -> int:
    """Return how many filters the main thread of a process has."""
    status = Path(f"/proc/{pid}/status").read_text()
    found = re.search(r"^Seccomp_filters:\s*(\d+)$", status, re.MULTILINE)
    assert found
    return int(found[1])


def check_confined(pid: int, role: Role) -> None:
    for thread in Path(f"/proc/{pid}/task").iterdir():
        try:
            lines = (thread / "status").read_text().splitlines()
        except (FileNotFoundError, ProcessLookupError):
            assert int(thread.name) != pid
            continue  # it has ended
        status = dict(line.split(":\t") for line in lines if ":\t" in line)
        assert status["NoNewPrivs"] == "1"
        assert status["Seccomp"] == "2"
        for kind in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
            held = int(status[kind], 16)
            assert not [it for it in role.capabilities if held >> it & 1], (thread, kind)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[RunningDaemon]:
    with running(tmp_path) as made:
        yield made


@pytest.mark.root
@pytest.mark.fuse
def test_service_and_its_workers_are_confined_whoever_started_them(daemon: RunningDaemon) -> None:
    check_confined(daemon.pid, CONTROL)
    status = daemon.json("status")
    assert status["lanes"]
    for lane in status["lanes"]:
        check_confined(lane["worker_pid"], WORKER)
        assert lane["features"]["confinement"] == ""
    assert status["warnings"] == []


@pytest.mark.root
@pytest.mark.fuse
def test_service_that_begins_anew_adds_no_filter(daemon: RunningDaemon) -> None:
    before = filters(daemon.pid)
    daemon.run("upgrade")
    assert filters(daemon.pid) == before
    check_confined(daemon.pid, CONTROL)


WITHOUT_FILTERS = """
import errno, os, sys
from snapfs import callfilter
machine = callfilter.machine()
number = callfilter.CALLS["seccomp"][machine.column]
callfilter.install(callfilter.Filter((
    (0x20, 0, 0, 0),
    (0x15, 0, 1, number),
    (0x06, 0, 0, 0x50000 | errno.ENOSYS),
    (0x06, 0, 0, 0x7FFF0000),
), 0, number))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.mark.root
@pytest.mark.fuse
def test_service_says_so_where_the_kernel_has_no_filters(tmp_path: Path) -> None:
    prefix = [sys.executable, "-c", WITHOUT_FILTERS]
    with running(tmp_path, prefix=prefix) as daemon:
        daemon.run("snapshot", "prepare", "work")
        (tmp_path / "mnt").mkdir()
        daemon.run("mount", "work", tmp_path / "mnt")
        (tmp_path / "mnt/file").write_bytes(b"written")
        kept = f"system calls are as before ({os.strerror(38)})"
        said = daemon.run("status").stdout
        assert f"the service has rights that it does not need: {kept}" in " ".join(said.split())
        lanes = daemon.json("status")["lanes"]
        assert {it["features"]["confinement"] for it in lanes} == {kept}
        daemon.run("umount", tmp_path / "mnt")
