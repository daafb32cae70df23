"""Owners, modes, times, attributes, ACLs: the same steps on our mount and on kernel overlayfs."""

from __future__ import annotations

import os
import socket
import stat
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import pytest

from snapfs.fuse.modes import Mode
from tests.support.lanes import House
from tests.support.overlay.kernel import overlay

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.plain]
MODES = (Mode.PASSTHROUGH, Mode.NO_OPEN)

Steps = Callable[[Path], Any]

ACL_USER_OBJ, ACL_USER, ACL_GROUP_OBJ, ACL_MASK, ACL_OTHER = 1, 2, 4, 16, 32
NOBODY = 65534
DEADLINE_S = 20.0


def acl(*entries: tuple[int, int, int]) -> bytes:
    """An ACL as the kernel stores it in an attribute: (tag, permissions, id)."""
    packed = b"".join(struct.pack("<HHI", tag, perm, who) for tag, perm, who in entries)
    return struct.pack("<I", 2) + packed


RICH_ACL = acl(
    (ACL_USER_OBJ, 7, 0xFFFFFFFF),
    (ACL_USER, 7, 1000),
    (ACL_GROUP_OBJ, 5, 0xFFFFFFFF),
    (ACL_MASK, 7, 0xFFFFFFFF),
    (ACL_OTHER, 0, 0xFFFFFFFF),
)


def fill(layer: Path) -> None:
    for name, mode in (("suid", 0o4755), ("sgid", 0o2755), ("lock", 0o2644), ("both", 0o6777)):
        (layer / name).write_bytes(b"program")
        (layer / name).chmod(mode)
    for name, mode in (("all", 0o6666), ("group", 0o2666), ("run", 0o2676)):
        (layer / name).write_bytes(b"for everybody")
        (layer / name).chmod(mode)
        os.chown(layer / name, 1000, 1000)
    (layer / "plain").write_bytes(b"plain")
    os.setxattr(layer / "plain", "user.lower", b"value")
    os.utime(layer / "plain", ns=(1_000_000_000_123_456_789, 1_100_000_000_987_654_321))
    (layer / "dir").mkdir(mode=0o755)
    (layer / "dir").chmod(0o2775)
    os.chown(layer / "dir", 0, 2000)
    (layer / "open").mkdir()
    (layer / "open").chmod(0o1777)
    for name in ("suid", "sgid", "lock", "both"):
        os.chown(layer / name, 1000, 1000)


@pytest.fixture
def both(house: House, tmp_path: Path) -> Iterator[Callable[[Steps], None]]:
    """Check that steps have the same outcome on our mount and on the kernel's."""
    ours = house.active(fill)
    low = tmp_path / "low"
    low.mkdir()
    fill(low)
    for name in ("up", "work"):
        (tmp_path / name).mkdir()

    with overlay(tmp_path / "kernel", [low], tmp_path / "up", tmp_path / "work") as kernel:
        yield lambda steps: compare(steps, ours.path, kernel)


def compare(steps: Steps, ours: Path, kernel: Path) -> None:
    expected = steps(kernel)
    assert steps(ours) == expected


def as_user(code: str, path: Path, uid: int = 1000, groups: Sequence[int] = ()) -> str:
    """Run Python as an ordinary user in a directory that only root can walk to; of groups of the
    same number and others."""
    reader, writer = os.pipe()
    child = os.fork()
    if not child:
        with open(writer, "w") as said:
            _run_as(code, path, uid, groups, said)
        os._exit(0)
    os.close(writer)
    with open(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    return text


def _run_as(code: str, path: Path, uid: int, groups: Sequence[int], said: IO[str]) -> None:
    try:
        os.chdir(path)
        os.umask(0o022)
        os.setgroups(groups)
        os.setgid(uid)
        os.setuid(uid)
        exec(code, {"os": os, "say": lambda *words: print(*words, file=said)})
    except OSError as error:
        said.write(f"{error.errno}")


@contextmanager
def writing_later(file: Path, groups: Sequence[int]) -> Iterator[Callable[[], None]]:
    """An ordinary user opens a file for writing, and writes when that is called."""
    ends = socket.socketpair()
    child = os.fork()
    if not child:
        ends[0].close()
        _write_later(file, groups, ends[1])
        os._exit(0)
    with ends[0] as ours:
        ends[1].close()
        ours.settimeout(DEADLINE_S)

        def write() -> None:
            ours.send(b"go on")
            assert ours.recv(100) == b"written"

        assert ours.recv(100) == b"open"
        yield write
    os.waitpid(child, 0)


def _write_later(file: Path, groups: Sequence[int], speaker: socket.socket) -> None:
    try:
        os.chdir(file.parent)
        os.setgroups(groups)
        os.setgid(1001)
        os.setuid(1001)
        fd = os.open(file.name, os.O_WRONLY)
        speaker.send(b"open")
        if speaker.recv(100):
            os.write(fd, b"more")
            speaker.send(b"written")
            speaker.recv(100)  # has it open until the test has looked
    except OSError as error:
        speaker.send(str(error).encode())


def modes(path: Path) -> dict[str, int]:
    return {entry.name: stat.S_IMODE(entry.stat().st_mode) for entry in sorted(path.iterdir())}


def test_a_stranger_takes_no_set_id_bits_by_asking_for_nothing(house: House) -> None:
    """A chown of neither owner nor group looks as what the kernel asks before it writes."""
    tree = house.active(fill)
    (tree / "sgid").write_bytes(b"copied up")
    (tree / "sgid").chmod(0o2755)
    before = modes(tree.path)
    for name in ("suid", "sgid", "both"):
        as_user(f"os.chown({name!r}, -1, -1)", tree.path, uid=1001)
    assert modes(tree.path) == before
    assert not (tree.upper / "suid").exists()


@pytest.mark.parametrize("name", ["suid", "sgid", "lock", "both"])
@pytest.mark.parametrize(
    "change",
    [
        "f = os.open('{}', os.O_WRONLY); os.write(f, b'x')",
        "f = os.open('{}', os.O_WRONLY | os.O_TRUNC)",
        "os.truncate('{}', 2)",
        "f = os.open('{}', os.O_RDWR); os.ftruncate(f, 3)",
        "os.chown('{}', 1000, 1000)",
        "f = os.open('{}', os.O_WRONLY); os.chmod('{}', 0o6755); os.write(f, b'x')",
    ],
)
def test_set_id_bits_after_an_owners_change(both: Any, name: str, change: str) -> None:
    def steps(path: Path) -> Any:
        said = as_user(change.replace("{}", name), path)
        assert said == "", f"errno {said}"
        assert not (path / name).stat().st_mode & stat.S_ISUID or "chmod" in change
        return said, modes(path), as_user(f"say(os.stat('{name}').st_mode)", path)

    both(steps)


@pytest.mark.parametrize("name", ["suid", "sgid", "lock", "both"])
def test_set_id_bits_go_by_who_writes_and_not_by_who_opened(both: Any, name: str) -> None:
    def steps(path: Path) -> Any:
        with (path / name).open("rb+", buffering=0) as file:
            said = as_user(f"os.write({file.fileno()}, b'x')", path)
        assert said == "", f"errno {said}"
        return modes(path)

    both(steps)


@pytest.mark.parametrize("groups", [(), (1000,)], ids=["stranger", "of its group"])
@pytest.mark.parametrize(
    "change",
    [
        "f = os.open('{}', os.O_WRONLY); os.write(f, b'x')",
        "f = os.open('{}', os.O_WRONLY | os.O_TRUNC)",
        "os.truncate('{}', 2)",
        "f = os.open('{}', os.O_RDWR); os.ftruncate(f, 3)",
        "f = os.open('{}', os.O_RDWR); os.posix_fallocate(f, 0, 100)",
        "f = os.open('{}', os.O_RDWR); os.copy_file_range(os.open('open/new', 0), f, 2)",
    ],
)
@pytest.mark.parametrize("is_copied_up", [False, True], ids=["lower", "upper"])
def test_set_group_bit_of_a_file_that_a_group_may_not_run_goes_by_the_writers_group(
    both: Any, groups: tuple[int, ...], change: str, is_copied_up: bool
) -> None:
    def steps(path: Path) -> Any:
        (path / "open" / "new").write_bytes(b"new")
        for name in ("all", "group", "run"):
            if is_copied_up:
                os.utime(path / name, (1, 1))
            said = as_user(change.replace("{}", name), path, 1001, groups)
            assert said == "", f"errno {said}"
        return modes(path), modes(path)["group"] == (0o2666 if groups else 0o666)

    both(steps)


@pytest.mark.parametrize("groups", [(), (1000,)], ids=["stranger", "of its group"])
def test_set_group_bit_that_comes_while_a_file_is_written_goes_by_the_writers_group(
    both: Any, groups: tuple[int, ...]
) -> None:
    def steps(path: Path) -> Any:
        for name in ("all", "group", "run"):
            (path / name).chmod(0o666)
            with writing_later(path / name, groups) as write:
                (path / name).chmod(0o2666)
                write()
                assert (path / name).stat().st_mode & 0o6777 == (0o2666 if groups else 0o666)
        return modes(path)

    both(steps)


@pytest.mark.parametrize("name", ["suid", "sgid", "lock", "both"])
def test_set_id_bits_after_roots_changes(both: Any, name: str) -> None:
    def steps(path: Path) -> Any:
        seen = []
        with (path / name).open("r+b") as file:
            file.write(b"x")
        seen.append(modes(path))
        os.truncate(path / name, 1)
        seen.append(modes(path))
        os.chown(path / name, 0, 0)
        return [*seen, modes(path)]

    both(steps)


def test_file_capabilities_go_with_a_write(both: Any) -> None:
    def steps(path: Path) -> Any:
        capability = struct.pack("<5I", 0x02000001, 1 << 10, 0, 0, 0)
        os.setxattr(path / "plain", "security.capability", capability)
        before = os.getxattr(path / "plain", "security.capability")
        with (path / "plain").open("ab") as file:
            file.write(b"x")
        return before, os.listxattr(path / "plain")

    both(steps)


def test_times_are_kept_and_set_to_the_nanosecond(both: Any) -> None:
    def steps(path: Path) -> Any:
        file = path / "plain"
        seen = [file.stat().st_mtime_ns]
        file.chmod(0o600)  # copies up
        seen += [file.stat().st_mtime_ns, file.stat().st_atime_ns]
        os.utime(file, ns=(1, 2_000_000_000_000_000_003))
        seen += [file.stat().st_atime_ns, file.stat().st_mtime_ns]
        os.utime(file, ns=(-5_000_000_001, -7))
        return [*seen, file.stat().st_atime_ns, file.stat().st_mtime_ns]

    both(steps)


def test_times_set_to_now_are_now(both: Any) -> None:
    def steps(path: Path) -> Any:
        before = os.stat(path / "plain").st_mtime_ns
        os.utime(path / "plain")
        after = os.stat(path / "plain").st_mtime_ns
        (path / "dir" / "new").touch()
        return after > before, os.stat(path / "dir").st_mtime_ns >= after - 10**9

    both(steps)


def test_attributes_are_set_replaced_listed_and_removed(both: Any) -> None:
    def steps(path: Path) -> Any:
        file = path / "plain"
        seen: list[Any] = [sorted(os.listxattr(file)), os.getxattr(file, "user.lower")]
        os.setxattr(file, "user.new", b"v" * 1000, os.XATTR_CREATE)
        os.setxattr(file, "trusted.mine", b"")
        seen.append(refusal(lambda: os.setxattr(file, "user.new", b"", os.XATTR_CREATE)))
        seen.append(refusal(lambda: os.setxattr(file, "user.no", b"", os.XATTR_REPLACE)))
        seen.append(refusal(lambda: os.getxattr(file, "user.no")))
        os.removexattr(file, "user.lower")
        seen.append(refusal(lambda: os.removexattr(file, "user.lower")))
        return [*seen, sorted(os.listxattr(file)), os.getxattr(file, "user.new")]

    both(steps)


def refusal(step: Callable[[], Any]) -> int | None:
    try:
        step()
    except OSError as error:
        return error.errno
    return None


def test_default_acl_is_inherited_and_overrides_the_umask(both: Any) -> None:
    def steps(path: Path) -> Any:
        os.setxattr(path / "dir", "system.posix_acl_default", RICH_ACL)
        before = os.umask(0o077)
        try:
            (path / "dir" / "file").touch(mode=0o666)
            (path / "dir" / "sub").mkdir(mode=0o777)
            os.mkfifo(path / "dir" / "fifo", 0o666)
        finally:
            os.umask(before)
        return [
            modes(path / "dir"),
            {
                it.name: os.getxattr(it, "system.posix_acl_access")
                for it in (path / "dir").iterdir()
            },
            os.getxattr(path / "dir" / "sub", "system.posix_acl_default"),
        ]

    both(steps)


def test_acl_grants_and_mask_denies(both: Any) -> None:
    def steps(path: Path) -> Any:
        file = path / "plain"
        file.chmod(0o600)
        seen = [as_user("say(open('plain').read())", path)]
        os.setxattr(file, "system.posix_acl_access", RICH_ACL)
        seen.append(as_user("say(open('plain').read())", path))
        file.chmod(0o600)  # narrows the mask
        seen.append(as_user("say(open('plain').read())", path))
        return [*seen, modes(path)["plain"]]

    both(steps)


def test_umask_applies_where_no_acl_does(both: Any) -> None:
    def steps(path: Path) -> Any:
        before = os.umask(0o027)
        try:
            (path / "file").touch(mode=0o666)
            (path / "sub").mkdir(mode=0o777)
            os.mkfifo(path / "fifo", 0o666)
        finally:
            os.umask(before)
        return modes(path)

    both(steps)


def test_group_of_a_set_group_directory_is_inherited(both: Any) -> None:
    def steps(path: Path) -> Any:
        (path / "dir" / "file").touch()
        (path / "dir" / "sub").mkdir()
        return {it.name: (it.stat().st_gid, it.stat().st_mode) for it in (path / "dir").iterdir()}

    both(steps)


def test_ordinary_user_owns_what_he_makes_and_is_refused_elsewhere(both: Any) -> None:
    def steps(path: Path) -> Any:
        code = (
            "os.mkdir('open/mine'); os.symlink('a', 'open/link'); open('open/file', 'w').close()\n"
            "os.link('open/file', 'open/hard')\n"
            "say([(os.lstat('open/' + n).st_uid, os.lstat('open/' + n).st_gid)"
            " for n in sorted(os.listdir('open'))])"
        )
        said = [as_user(code, path)]
        said += [as_user(f"os.{call}", path, uid=1001) for call in REFUSED]
        return said

    both(steps)


REFUSED = (
    "mkdir('dir/no')",
    "unlink('open/file')",
    "rename('open/mine', 'open/other')",
    "chmod('plain', 0o777)",
    "chown('plain', 1001, 1001)",
    "truncate('plain', 0)",
    "setxattr('plain', 'user.x', b'')",
    "utime('plain', ns=(1, 1))",
)


def test_change_of_owner_keeps_what_is_left_out(both: Any) -> None:
    def steps(path: Path) -> Any:
        os.chown(path / "plain", 1000, -1)
        os.chown(path / "plain", -1, NOBODY)
        found = (path / "plain").stat()
        return found.st_uid, found.st_gid, found.st_mtime_ns

    both(steps)
