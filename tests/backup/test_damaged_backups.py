"""Whatever is damaged in a backup is found and named, is never restored, and can be made good."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from snapfs import backup, tables
from snapfs.backup import storing
from snapfs.model import DataLoss, FailedPrecondition
from snapfs.snapshots import fsck
from tests.backup.conftest import Root

pytestmark = pytest.mark.root


def flipped(at: float) -> Callable[[bytes], bytes]:
    def act(raw: bytes) -> bytes:
        place = int(at * (len(raw) - 1))
        return raw[:place] + bytes([raw[place] ^ 1]) + raw[place + 1 :]

    return act


HARMS: dict[str, Callable[[bytes], bytes] | None] = {
    "first byte": flipped(0),
    "a third in": flipped(0.33),
    "middle": flipped(0.5),
    "last byte": flipped(1),
    "cut": lambda raw: raw[: len(raw) // 2],
    "empty": lambda raw: b"",
    "longer": lambda raw: raw + b"\0",
    "gone": None,
}


def harm(path: Path, how: Callable[[bytes], bytes] | None) -> None:
    """Damage a file, as a disk does: its times stay."""
    if how is None:
        path.unlink()
        return
    status = path.stat()
    raw = how(path.read_bytes())
    path.unlink()  # blobs are links to the root's
    path.write_bytes(raw)
    path.chmod(status.st_mode)
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns))


def files(target: Path) -> list[Path]:
    """Return the files that a backup needs, relative to it; one with two names once."""
    found = (it for it in sorted(target.rglob("*")) if it.is_file() and not it.is_symlink())
    names = (it.relative_to(target) for it in found)
    return [it for it in names if it.name not in ("lock", "other")]


@pytest.mark.parametrize("how", HARMS)
def test_each_damaged_file_is_named_and_made_good(root: Root, tmp_path: Path, how: str) -> None:
    root.commit("base", data=b"rather more data" * 100)
    root.write_blob(b"blob" * 1000)
    target, whole = tmp_path / "target", tmp_path / "whole"
    backup.take(root.path, target)
    subprocess.run(["cp", "-a", target, whole], check=True)
    for name in files(whole):
        shutil.rmtree(target)
        subprocess.run(["cp", "-a", whole, target], check=True)
        harm(target / name, HARMS[how])
        if name.name == "backup.json" and how == "gone":
            continue  # then there is none
        named = str(name.name if name.parts[0] != "layers" else name.parts[-1])
        with pytest.raises((DataLoss, FailedPrecondition), match=named):
            backup.verify(target)
        new = tmp_path / "new"
        if name.name not in ("seal", "layer.json"):  # these say nothing that the record does not
            with pytest.raises((DataLoss, FailedPrecondition)):
                backup.restore(target, new)
            assert not (new / "metadata").exists()
            shutil.rmtree(new, ignore_errors=True)  # none is made where the record is damaged
        if name.name == "backup.json":
            continue
        backup.take(root.path, target, recheck=True)
        backup.verify(target)
        backup.restore(target, new)
        assert fsck(new, tables=tables.TABLES, checks=tables.CHECKS).clean
        shutil.rmtree(new)


def test_a_damaged_record_of_a_layer_does_not_stop_the_next_backup(
    root: Root, tmp_path: Path
) -> None:
    root.commit("base")
    target = tmp_path / "target"
    backup.take(root.path, target)
    harm(target / "layers/1/layer.json", HARMS["cut"])
    assert backup.take(root.path, target).copied_layers == 1
    backup.verify(target)


def test_a_blob_that_is_too_short_is_copied_again_by_the_next_backup(
    root: Root, tmp_path: Path
) -> None:
    root.write_blob(b"blob" * 1000)
    target = tmp_path / "target"
    backup.take(root.path, target)
    (blob,) = (target / "content").glob("*/*")
    harm(blob, HARMS["cut"])
    assert backup.take(root.path, target).copied_blobs == 1
    backup.verify(target)


def test_a_blob_that_the_disk_cannot_read_is_copied_anew(
    root: Root, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root.write_blob(b"blob" * 1000)
    target, original = tmp_path / "target", storing.verify_blob
    backup.take(root.path, target)

    def verify(path: Path, *others: Any) -> None:
        monkeypatch.undo()
        raise OSError(errno.EIO, os.strerror(errno.EIO), path)

    monkeypatch.setattr(storing, "verify_blob", verify)
    assert backup.take(root.path, target, recheck=True).copied_blobs == 1
    assert storing.verify_blob is original
    backup.verify(target)


def test_all_that_is_damaged_is_named_at_once(root: Root, tmp_path: Path) -> None:
    root.commit("base", data=b"rather more data" * 100)
    root.commit("more", data=b"rather more data" * 100)
    root.write_blob(b"blob" * 1000)
    target = tmp_path / "target"
    backup.take(root.path, target)
    (blob,) = (target / "content").glob("*/*")
    for path in (target / "layers/1/fs/sparse", target / "layers/2/fs/etc/file", blob):
        harm(path, HARMS["middle"])
    with pytest.raises(DataLoss) as caught:
        backup.verify(target)
    for words in ("layers/1 is damaged: sparse", "layers/2 is damaged: etc/file", blob.name):
        assert words in str(caught.value)
