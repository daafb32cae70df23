"""A layer's digest changes with everything in it, and its seal names what changed."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs import seals
from snapfs.model import DataLoss
from snapfs.seals import entries, walking
from snapfs.seals.walking import Place

pytestmark = pytest.mark.root

MTIME_NS = 1_700_000_000_123_456_789
WHITEOUT = os.makedev(0, 0)


@pytest.fixture
def layer(tmp_path: Path) -> Path:
    """A layer with one of everything."""
    top = tmp_path / "fs"
    (top / "etc" / "deep").mkdir(parents=True)
    (top / "etc" / "file").write_bytes(b"data" * 5000)
    (top / "etc.d").mkdir()
    (top / "empty").touch()
    os.link(top / "etc" / "file", top / "other")
    (top / "link").symlink_to("etc/file")
    os.mknod(top / "gone", stat.S_IFCHR, WHITEOUT)
    os.mkfifo(top / "pipe")
    os.setxattr(top / "etc", "trusted.overlay.opaque", b"y")
    (top / "etc" / b"\xff\n".decode(errors="surrogateescape")).touch()
    for directory, names, files in os.walk(top, topdown=False):
        for name in (*files, *names):
            os.utime(Path(directory, name), ns=(0, MTIME_NS), follow_symlinks=False)
    os.utime(top, ns=(0, MTIME_NS))
    return top


@pytest.fixture
def sealed(layer: Path, tmp_path: Path) -> tuple[Path, Path, bytes]:
    file = tmp_path / seals.SEAL
    return layer, file, seals.seal(layer, file)


def flip(path: Path, at: int) -> None:
    """Change one bit and nothing else that can be seen of a file."""
    times = path.stat()
    with path.open("r+b") as file:
        file.seek(at)
        byte = file.read(1)[0]
        file.seek(at)
        file.write(bytes([byte ^ 1]))
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def keeping_time(path: Path, change: Callable[[], object]) -> None:
    change()
    os.utime(path, ns=(0, MTIME_NS))


CHANGES: dict[str, tuple[Callable[[Path], object], dict[bytes, str]]] = {
    "a bit": (
        lambda top: flip(top / "etc/file", 12345),
        {b"etc/file": "differs in content", b"other": "differs in content"},
    ),
    "a mode": (lambda top: (top / "empty").chmod(0o600), {b"empty": "differs in mode"}),
    "an owner": (lambda top: os.lchown(top / "link", 5, 6), {b"link": "differs in owner"}),
    "a time": (lambda top: os.utime(top / "pipe", ns=(0, 1)), {b"pipe": "differs in time"}),
    "an attribute": (
        lambda top: os.setxattr(top / "etc", "trusted.overlay.opaque", b"x"),
        {b"etc": "differs in attributes"},
    ),
    "a file gone": (
        lambda top: keeping_time(top, (top / "empty").unlink),
        {b"empty": "is gone"},
    ),
    "a directory gone": (
        lambda top: keeping_time(top / "etc", (top / "etc" / "deep").rmdir),
        {b"etc/deep": "is gone"},
    ),
    "a file more": (
        lambda top: keeping_time(top / "etc.d", (top / "etc.d" / "new").touch),
        {b"etc.d/new": "is there and was not committed"},
    ),
    "a whiteout made a file": (
        lambda top: keeping_time(top, lambda: ((top / "gone").unlink(), (top / "gone").touch())),
        {b"gone": "differs in type"},
    ),
    "cut": (
        lambda top: keeping_time(top / "etc/file", lambda: os.truncate(top / "etc/file", 7)),
        {b"etc/file": "differs in content", b"other": "differs in content"},
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_what_changed_is_named(sealed: tuple[Path, Path, bytes], change: str) -> None:
    layer, file, digest = sealed
    assert seals.verify(layer, file, digest) == []
    act, expected = CHANGES[change]
    act(layer)
    assert {it.path: it.what for it in seals.verify(layer, file, digest)} == expected
    assert seals.measure(layer) != digest


def test_a_hard_link_that_became_a_copy_is_named(sealed: tuple[Path, Path, bytes]) -> None:
    layer, file, digest = sealed
    data = (layer / "other").read_bytes()
    (layer / "other").unlink()
    (layer / "other").write_bytes(data)
    keeping_time(layer / "other", lambda: None)
    keeping_time(layer, lambda: None)
    assert [(it.path, it.what) for it in seals.verify(layer, file, digest)] == [
        (b"other", "differs in links")
    ]


def test_the_digest_is_of_what_is_there_and_not_of_where_it_lies(
    layer: Path, tmp_path: Path
) -> None:
    digest = seals.measure(layer)
    layer.rename(tmp_path / "moved")
    assert seals.measure(tmp_path / "moved") == digest


def test_a_sound_layer_with_a_damaged_seal_is_sound(sealed: tuple[Path, Path, bytes]) -> None:
    layer, file, digest = sealed
    flip(file, file.stat().st_size // 2)
    assert seals.verify(layer, file, digest) == []
    file.unlink()
    assert seals.verify(layer, file, digest) == []
    flip(layer / "etc/file", 1)
    (found,) = seals.verify(layer, file, digest)
    assert "differs from what was committed" in found.what


@pytest.mark.parametrize("part", [0.1, 0.5, 0.9, 0.999])
def test_every_flipped_bit_of_a_seal_is_noticed(
    sealed: tuple[Path, Path, bytes], part: float
) -> None:
    _, file, digest = sealed
    flip(file, int(file.stat().st_size * part))
    try:
        assert seals.digest_of(file) != digest
    except DataLoss as error:
        assert "seal" in str(error)  # noqa: PT017 - either way is fine


def test_a_seal_cut_anywhere_is_noticed(sealed: tuple[Path, Path, bytes]) -> None:
    _, file, digest = sealed
    raw = file.read_bytes()
    for size in range(0, len(raw), 7):
        file.write_bytes(raw[:size])
        try:
            assert seals.digest_of(file) != digest
        except DataLoss:
            continue


def test_a_tree_deeper_than_any_path_is_sealed(tmp_path: Path) -> None:
    top = tmp_path / "fs"
    top.mkdir()
    fd = os.open(top, os.O_RDONLY)
    for _ in range(60):
        os.mkdir("d" * 200, dir_fd=fd)
        below = os.open("d" * 200, os.O_RDONLY, dir_fd=fd)
        os.close(fd)
        fd = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0o644, dir_fd=fd))
    os.close(fd)
    digest = seals.seal(top, tmp_path / "seal")
    assert seals.digest_of(tmp_path / "seal") == digest
    with (tmp_path / "seal").open("rb") as file:
        assert sum(1 for _ in entries.unpack(file.read)) == 62


@pytest.mark.parametrize("target", [b"cannot be read: it", b"cannot be read: \xff"])
def test_a_link_that_reads_like_an_error_is_no_damage(
    layer: Path, tmp_path: Path, target: bytes
) -> None:
    os.symlink(target, os.fsencode(layer / "odd"))
    digest = seals.seal(layer, tmp_path / seals.SEAL)
    assert seals.verify(layer, tmp_path / seals.SEAL, digest) == []
    flip(layer / "other", 3)
    found = {it.path for it in seals.verify(layer, tmp_path / seals.SEAL, digest)}
    assert found == {b"etc/file", b"other"}


def test_what_cannot_be_read_hides_no_other_damage(
    sealed: tuple[Path, Path, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    layer, file, digest = sealed
    flip(layer / "other", 3)
    descend, stat_of = Place.descend, os.stat

    def fail_to_descend(place: Place, name: bytes) -> None:
        if name == b"etc":
            raise OSError(errno.EIO, "bad sector")
        descend(place, name)

    def fail_to_stat(name: object, **others: object) -> os.stat_result:
        if name == b"empty":
            raise OSError(errno.EIO, "bad inode")
        return stat_of(name, **others)  # type: ignore[arg-type]

    monkeypatch.setattr(Place, "descend", fail_to_descend)
    monkeypatch.setattr(walking.os, "stat", fail_to_stat)
    found = {it.path: it.what for it in seals.verify(layer, file, digest)}
    monkeypatch.undo()
    assert found == {
        b"etc": "cannot be read (bad sector)",
        b"empty": "cannot be read (bad inode)",
        b"other": "differs in content, links",
    }
