"""What was done to a root on a recorded disk, when, and what must be there after a cut at a moment.

An act begins and ends at moments of the disk. Once it has ended, it was acknowledged and must have
happened, wherever the cut was; before it began it cannot have; in between it may, but whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from snapfs import backup, seals, tables
from snapfs.backup import storing
from snapfs.images import Importer, Platform, Wanted
from snapfs.metadata import Metadata
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, SHARED
from snapfs.model import Active, Committed, Snapshot
from snapfs.snapshots import NoTrees, Snapshotter
from tests.images import kit

Kind = Literal["active", "committed", "image", "backup"]
Moment = Callable[[], int]


@dataclass
class Act:
    """Something that came into being, and perhaps went."""

    kind: Kind
    name: str
    made: tuple[int, int]
    gone: tuple[int, int] | None = None
    digest: bytes = b""
    """Of a committed layer."""
    snapshot: Snapshot | None = None
    """As it was acknowledged."""

    def must_be(self, moment: int) -> bool:
        return self.made[1] <= moment and (self.gone is None or self.gone[0] > moment)

    def may_be(self, moment: int) -> bool:
        return self.made[0] < moment and (self.gone is None or self.gone[1] > moment)


@dataclass
class Work:
    """Does things to a root and remembers them."""

    place: Path
    """The mounted disk: `root` and `backup` are in it."""
    now: Moment
    acts: list[Act] = field(default_factory=list)
    actives: dict[str, Act] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.snapshotter = Snapshotter(
            self.place / "root", trees=NoTrees(), tables=tables.TABLES, seals=False
        )
        content = self.place / "root" / "content"
        self.metadata = Metadata(self.snapshotter.store, content, {"snapfs": self.snapshotter})

    def close(self) -> None:
        self.metadata.close()
        self.snapshotter.close()

    @contextmanager
    def _act(self, kind: Kind, name: str) -> Iterator[Act]:
        act = Act(kind, name, (self.now(), 1 << 62))
        self.acts.append(act)
        yield act
        act.made = (act.made[0], self.now())

    def prepare(self, key: str, parent: str = "") -> Path:
        with self._act("active", key) as act:
            self.snapshotter.prepare(key, parent)
        self.actives[key] = act
        return self.place / "root/layers" / str(self.snapshotter.stat(key).id) / "fs"

    def commit(self, key: str, name: str) -> None:
        before, active = self.now(), self.actives.pop(key)
        upper = self.place / "root/layers" / str(self.snapshotter.stat(key).id) / "fs"
        active.gone = (before, 1 << 62)
        with self._act("committed", name) as act:
            act.digest = seals.measure(upper)
            act.snapshot = self.snapshotter.commit(key, name)
        active.gone = (before, self.now())

    def remove(self, name: str) -> None:
        (act,) = (it for it in self.acts if it.name == name and it.gone is None)
        act.gone = (self.now(), 1 << 62)
        self.snapshotter.remove(name)
        act.gone = (act.gone[0], self.now())

    def import_image(self, layout: Path, name: str) -> None:
        before = {it.name for it in self.snapshotter.walk()}
        wanted = Wanted(platform=Platform("amd64", "linux"), name=name)
        with self._act("image", name) as image:
            Importer(self.metadata, self.snapshotter).import_path("default", layout, wanted)
        for it in self.snapshotter.walk():
            if it.name not in before and isinstance(it, Committed):
                layer = self.place / "root/layers" / str(it.id) / "fs"
                self.acts.append(
                    Act("committed", it.name, image.made, digest=seals.measure(layer), snapshot=it)
                )

    def backup(self) -> None:
        with self._act("backup", "backup") as act:
            taken = backup.take(self.place / "root", self.place / "backup")
        act.name = str(taken.record.revision)


def fill(upper: Path, number: int) -> None:
    """Write what layers have in them: data of all sizes, links, attributes, whiteouts."""
    (upper / "etc").mkdir()
    for index, size in enumerate((0, 100, 5000, 70_000)):
        (upper / "etc" / f"file{index}").write_bytes(bytes([number % 251]) * size)
    os.link(upper / "etc/file2", upper / "other")
    (upper / "link").symlink_to("etc/file1")
    os.mknod(upper / "gone", stat.S_IFCHR, os.makedev(0, 0))
    os.setxattr(upper / "etc", "trusted.overlay.opaque", b"y")
    (upper / "etc/file3").rename(upper / "etc/moved")


def work(place: Path, now: Moment, layout: Path) -> list[Act]:
    """Do some of everything; return what was done."""
    doing = Work(place, now)
    try:
        for number in range(6):
            fill(doing.prepare(f"key{number}", f"name{number - 1}" if number % 3 else ""), number)
            doing.commit(f"key{number}", f"name{number}")
        doing.import_image(layout, "example.org/one:1")
        doing.backup()
        fill(doing.prepare("kept", "name5"), 100)
        doing.remove("name2")
        fill(doing.prepare("last", "name1"), 101)
        doing.commit("last", "top")
        doing.remove("top")
        doing.backup()
        doing.remove("kept")
        for number in range(3):
            fill(doing.prepare(f"more{number}"), number)
            doing.commit(f"more{number}", f"end{number}")
        assert doing.snapshotter.cleanup() == ()
    finally:
        doing.close()
    return doing.acts


def check(place: Path, acts: list[Act], moment: int) -> None:
    """Start on what a cut at `moment` left, and see that nothing acknowledged is lost."""
    root = place / "root"
    with Snapshotter(root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS) as opened:
        assert opened.cleanup() == ()
        report = opened.fsck()
        assert report.clean, report
        _check_snapshots(opened, acts, moment)
        _check_content(opened, root, acts, moment)
        opened.prepare("goes on")
        opened.commit("goes on", "went on")
    _check_backup(place / "backup", acts, moment)


def _check_snapshots(opened: Snapshotter, acts: list[Act], moment: int) -> None:
    found = {it.name: it for it in opened.walk()}
    known = {it.name: it for it in acts if it.kind in ("active", "committed")}
    importing = any(it.kind == "image" and it.made[0] < moment < it.made[1] for it in acts)
    for name, act in known.items():
        assert name in found or not act.must_be(moment), f"{name} is lost"
    for name, it in found.items():
        if name not in known:
            assert importing, f"{name} comes from nowhere"
            assert isinstance(it, Active), f"{name} is committed by nobody"
            continue
        act = known[name]
        assert act.may_be(moment), f"{name} should not be"
        if act.kind == "committed":
            assert it == act.snapshot, f"{name} is not what was acknowledged"
            layer = opened.root / "layers" / str(it.id) / "fs"
            assert seals.measure(layer) == act.digest, f"{name} has other data"


def _check_content(opened: Snapshotter, root: Path, acts: list[Act], moment: int) -> None:
    with opened.store.view() as tx:
        blobs = [row for row in tx.rows(BLOBS, SHARED) if not row.body.going]
    for row in blobs:
        storing.verify_blob(blob_path(root / "content", row.name), row.name, row.body.size_bytes)
    images = Metadata(opened.store, root / "content", {"snapfs": opened}).images
    found = {it.name for it in images.walk("default")}
    for act in acts:
        if act.kind == "image":
            assert act.name in found or not act.must_be(moment)
            assert act.name not in found or act.may_be(moment)


def _check_backup(target: Path, acts: list[Act], moment: int) -> None:
    taken = [int(it.name) for it in acts if it.kind == "backup" and it.must_be(moment)]
    if taken or (target / "backup.json").exists():
        assert backup.verify(target).revision >= max(taken, default=0)


def layout(path: Path) -> Path:
    """Make an image to import."""
    made = kit.Layout(path)
    base = [kit.directory("etc"), kit.file("etc/hosts", b"x" * 9000), kit.directory("bin")]
    made.image([base, [kit.directory("etc"), kit.file("etc/new", b"new")]], compress="gzip")
    return path
