"""Who owns a new entry and what it inherits; what happens to whiteouts in its place."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.overlay import acl, xattrs
from tests.overlay.conftest import WHO, Stack
from tests.support.overlay.census import differences
from tests.support.overlay.layers import Dir

Build = Callable[..., Stack]
pytestmark = pytest.mark.root
USER = {"uid": 1000, "gid": 1001, "umask": 0o27}


def make_all(tree: Stack, path: str, who: dict[str, Any]) -> dict[str, tuple[int, int, int]]:
    """Make one entry of each kind in a directory; returns mode, owner and group of each."""
    parent = tree.node(path)
    node, fd = tree.tree.create(parent, b"file", 0o666, os.O_RDWR, **who)
    os.close(fd)
    made = {
        "file": node,
        "dir": tree.tree.mkdir(parent, b"dir", 0o777, **who),
        "fifo": tree.tree.mknod(parent, b"fifo", stat.S_IFIFO | 0o666, 0, **who),
        "empty": tree.tree.mknod(parent, b"empty", stat.S_IFREG | 0o666, 0, **who),
        "link": tree.tree.symlink(parent, b"link", b"to", uid=who["uid"], gid=who["gid"]),
    }
    result = {}
    for name, node in made.items():
        attributes = tree.tree.getattr(node)
        result[name] = (stat.S_IMODE(attributes.mode), attributes.uid, attributes.gid)
    return result


@pytest.mark.parametrize("process_umask", [0, 0o22, 0o77])
def test_owner_and_umask_of_the_creator_apply_and_not_the_workers(
    stack: Build, process_umask: int
) -> None:
    old = os.umask(process_umask)
    try:
        tree = stack({"d/x": b"", "e/x": b""})
        made = make_all(tree, "d", USER)
        by_root = make_all(tree, "e", WHO)
    finally:
        os.umask(old)
    assert made == {
        "file": (0o640, 1000, 1001),
        "dir": (0o750, 1000, 1001),
        "fifo": (0o640, 1000, 1001),
        "empty": (0o640, 1000, 1001),
        "link": (0o777, 1000, 1001),
    }
    assert (by_root["file"], by_root["dir"]) == ((0o644, 0, 0), (0o755, 0, 0))


@pytest.mark.parametrize("who", [WHO, USER])
def test_a_set_group_id_directory_hands_on_its_group(stack: Build, who: dict[str, Any]) -> None:
    tree = stack({"d": Dir(0o2775, 0, 50)})
    made = make_all(tree, "d", who)
    assert {group for _, _, group in made.values()} == {50}
    assert made["dir"][0] & stat.S_ISGID
    assert not made["file"][0] & stat.S_ISGID
    tree.files.chmod(b"d", 0o755)
    tree.files.mkdir(b"d/later", 0o755)
    assert tree.tree.getattr(tree.node("d/later")).gid == 0


def entry(tag: int, allowed: int, who: int = 0xFFFFFFFF) -> bytes:
    return b"".join(n.to_bytes(size, "little") for n, size in ((tag, 2), (allowed, 2), (who, 4)))


def default_acls() -> st.SearchStrategy[bytes]:
    """Valid default ACLs, with and without named entries."""
    bits = st.integers(0, 7)

    def build(user: int, named: list[tuple[int, int]], group: int, mask: int, other: int) -> bytes:
        entries = [entry(1, user)]
        entries += [entry(2, allowed, who) for who, allowed in sorted(dict(named).items())]
        entries.append(entry(4, group))
        if named:
            entries.append(entry(16, mask))
        return b"\2\0\0\0" + b"".join([*entries, entry(32, other)])

    named = st.lists(st.tuples(st.integers(1, 9), bits), max_size=2)
    return st.builds(build, bits, named, bits, bits, bits)


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(default=default_acls(), mode=st.integers(0, 0o777))
def test_a_default_acl_is_inherited_as_the_file_system_does_it(
    tmp_path: object, default: bytes, mode: int
) -> None:
    base = os.path.join(str(tmp_path), os.urandom(6).hex())
    os.mkdir(base)
    os.setxattr(base, acl.DEFAULT, default)
    os.close(os.open(os.path.join(base, "f"), os.O_CREAT | os.O_WRONLY, mode))
    expected_mode = stat.S_IMODE(os.stat(os.path.join(base, "f")).st_mode)
    assert acl.inherit(default, mode) == (
        expected_mode,
        xattrs.get(os.path.join(base, "f").encode(), acl.ACCESS),
    )


@pytest.mark.parametrize("who", [WHO, USER])
def test_a_default_acl_takes_the_place_of_the_umask(stack: Build, who: dict[str, Any]) -> None:
    default = b"\2\0\0\0" + b"".join(
        [entry(1, 7), entry(2, 7, 1000), entry(4, 5), entry(16, 7), entry(32, 0)]
    )
    tree = stack({"d": Dir(xattrs={"system.posix_acl_default": default})})
    made = make_all(tree, "d", who)
    assert made["file"][0] == 0o660
    assert made["dir"][0] == 0o770
    assert tree.tree.getxattr(tree.node("d/dir"), acl.DEFAULT) == default
    assert acl.ACCESS in tree.tree.listxattr(tree.node("d/file"))
    assert acl.DEFAULT not in tree.tree.listxattr(tree.node("d/file"))
    tree.tree.removexattr(tree.node("d"), acl.DEFAULT)
    tree.tree.mkdir(tree.node("d"), b"plain", 0o777, **who)
    assert tree.tree.listxattr(tree.node("d/plain")) == []


def test_entries_made_over_whiteouts_show_nothing_of_what_was_there(stack: Build) -> None:
    tree = stack({"d/x": b"x", "f": b"f", "e/y": b"y"})
    tree.files.unlink(b"f")
    for name in ("d/x", "e/y"):
        tree.files.unlink(name.encode())
        tree.files.rmdir(os.path.dirname(name).encode())
    assert tree.names() == []
    tree.files.create(b"f", 0o644, b"again")
    tree.files.mkdir(b"d", 0o755)
    tree.files.symlink(b"to", b"e")
    assert tree.read("f") == b"again"
    assert tree.names("d") == []
    assert os.getxattr(tree.upper / "d", "trusted.overlay.opaque") == b"y"
    assert not differences(tree.census(), tree.kernel_census())
    tree.files.forget()
    assert tree.leftovers() == []


def test_a_new_directory_that_hides_nothing_is_not_opaque(stack: Build) -> None:
    tree = stack({"d/x": b""})
    tree.files.mkdir(b"d/new", 0o755)
    assert os.listxattr(tree.upper / "d/new") == []


def test_a_link_over_a_whiteout_is_a_name_of_the_same_file(stack: Build) -> None:
    tree = stack({"f": b"f", "g": b"g"})
    tree.files.unlink(b"f")
    tree.files.link(b"g", b"f")
    assert tree.node("f") is tree.node("g")
    assert tree.tree.getattr(tree.node("f")).nlink == 2
    assert not differences(tree.census(), tree.kernel_census())


@pytest.mark.parametrize("name", ["lower", "upper"])
def test_a_visible_name_is_taken(stack: Build, name: str) -> None:
    tree = stack({"lower": b""})
    tree.files.create(b"upper", 0o644, b"")
    for make in (
        lambda: tree.files.create(name.encode(), 0o644, b""),
        lambda: tree.files.mkdir(name.encode(), 0o755),
        lambda: tree.files.symlink(b"x", name.encode()),
        lambda: tree.files.link(b"lower", name.encode()),
    ):
        with pytest.raises(FileExistsError):
            make()


def test_names_of_255_bytes_work_and_longer_ones_are_refused(stack: Build) -> None:
    tree = stack({"d/x": b""})
    name = "n" * 255
    tree.files.create(f"d/{name}".encode(), 0o644, b"x")
    tree.files.rename(f"d/{name}".encode(), ("m" * 255).encode(), 0)
    assert tree.read("m" * 255) == b"x"
    tree.files.unlink(("m" * 255).encode())
    for call in (tree.exists, lambda path: tree.files.mkdir(path.encode(), 0o755)):
        with pytest.raises(OSError) as caught:
            call("d/" + "n" * 256)
        assert caught.value.errno == errno.ENAMETOOLONG


def test_paths_longer_than_the_kernel_takes_at_once_work(stack: Build) -> None:
    tree = stack({"d/x": b"", "low/f": b"low"})
    names = [f"{number:03}" + "p" * 197 for number in range(40)]
    path = "d"
    for name in names:
        path += "/" + name
        tree.files.mkdir(path.encode(), 0o755)
    assert len(path) > 8000
    tree.files.create(f"{path}/f".encode(), 0o644, b"deep")
    tree.files.setxattr(f"{path}/f".encode(), b"user.a", b"1", 0)
    tree.files.rename(b"low", f"{path}/low".encode(), 0)
    tree.files.forget()
    assert tree.read(f"{path}/f") == b"deep"
    assert tree.read(f"{path}/low/f") == b"low"
    tree.files.write(f"{path}/low/f".encode(), 0, b"LOW")
    assert tree.names(path) == ["f", "low"]
    tree.files.rename(b"d", b"e", 0)
    assert tree.tree.getxattr(tree.node(f"e{path[1:]}/f"), b"user.a") == b"1"
    assert tree.read(f"e{path[1:]}/low/f") == b"LOW"


def test_a_thousand_directories_deep(stack: Build) -> None:
    tree = stack({"d/x": b""})
    path = b"d"
    for _ in range(1500):
        path += b"/s"
        tree.files.mkdir(path, 0o755)
    tree.files.rename(b"d", b"e", 0)
    assert tree.tree.readdir(tree.files.node(b"e" + path[1:])) == []
    subprocess.run(["rm", "-rf", tree.upper / "e"], check=True)  # too deep for pytest's cleaning
