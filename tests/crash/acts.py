"""What was done to a root on a recorded disk, when, and what must be there after a cut at a moment.

An act begins and ends at moments of the disk. Once it has ended, it was acknowledged and must have
happened, wherever the cut was; before it began it cannot have; in between it may, but whole.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import pytest

from snapfs import backup, seals, tables
from snapfs.backup import storing
from snapfs.images import Importer, Platform, Wanted
from snapfs.metadata import Metadata
from snapfs.metadata.blobs import blob_path
from snapfs.metadata.schema import BLOBS, SHARED
from snapfs.model import Active, Committed, FailedPrecondition, Snapshot
from snapfs.snapshots import NoTrees, Snapshotter, Verdict, roots, verify
from tests.images import kit
from tests.support.daemon import eventually

Kind = Literal["active", "committed", "sealed", "image", "backup", "restored"]
Moment = Callable[[], int]


@dataclass(frozen=True)
class Contents:
    """What a backup was taken of."""

    layers: dict[str, bytes]
    """Digest of each committed one, by name."""
    images: frozenset[str]


@dataclass
class Act:
    """Something that came into being, and perhaps went."""

    kind: Kind
    name: str
    made: tuple[int, int]
    gone: tuple[int, int] | None = None
    digest: bytes = b""
    """Of a committed layer."""
    snapshot: Committed | None = None
    """As it was acknowledged."""
    contents: Contents | None = None
    """Of a restored root."""

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
    backed_up: Contents | None = None

    def __post_init__(self) -> None:
        self.snapshotter = Snapshotter(
            self.place / "root", trees=NoTrees(), tables=tables.TABLES, seals=True
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

    def commit(self, key: str, name: str, *, seal: bool = True) -> None:
        before, active = self.now(), self.actives.pop(key)
        upper = self.place / "root/layers" / str(self.snapshotter.stat(key).id) / "fs"
        active.gone = (before, 1 << 62)
        with self._act("committed", name) as act:
            act.digest = seals.measure(upper)
            act.snapshot = replace(self.snapshotter.commit(key, name), digest=b"")
        active.gone = (before, self.now())
        if seal:
            self._seal(name, before, act.digest)

    def _seal(self, name: str, before: int, digest: bytes) -> None:
        """Wait until a layer has a digest, which is acknowledged by being shown."""

        def has_digest() -> bool:
            found = self.snapshotter.stat(name)
            assert isinstance(found, Committed)
            return found.digest == digest

        eventually(has_digest, timeout_s=60, what=f"the digest of {name}")
        self.acts.append(Act("sealed", name, (before, self.now()), digest=digest))

    def remove(self, name: str) -> None:
        gone = [it for it in self.acts if it.name == name and it.gone is None]
        before = self.now()
        self.snapshotter.remove(name)
        for act in gone:
            act.gone = (before, self.now())

    def remove_image(self, name: str) -> None:
        """Remove an image and collect what only it had: layers and content."""
        layers = {it.name for it in self.snapshotter.walk()}
        (image,) = (it for it in self.acts if it.name == name and it.kind == "image")
        before = self.now()
        self.metadata.images.delete("default", name)
        image.gone = (before, self.now())
        self.metadata.collector.collect()
        layers -= {it.name for it in self.snapshotter.walk()}
        assert layers, "the image had layers"
        for act in self.acts:
            if act.name in layers and act.gone is None:
                act.gone = (before, self.now())

    def import_image(self, layout: Path, name: str) -> None:
        before = {it.name for it in self.snapshotter.walk()}
        wanted = Wanted(platform=Platform("amd64", "linux"), name=name)
        with self._act("image", name) as image:
            Importer(self.metadata, self.snapshotter).import_path("default", layout, wanted)
        for it in self.snapshotter.walk():
            if it.name not in before and isinstance(it, Committed):
                digest = seals.measure(layer_of(self.place / "root", it))
                made = replace(it, digest=b"")
                self.acts.append(Act("committed", it.name, image.made, None, digest, made))
                self._seal(it.name, image.made[0], digest)

    def backup(self) -> None:
        with self._act("backup", "backup") as act:
            taken = backup.take(self.place / "root", self.place / "backup")
        act.name = str(taken.record.revision)
        now = {it.name for it in self.snapshotter.walk()}
        digests = {it.name: it.digest for it in self.acts if it.kind == "committed"}
        images = frozenset(it.name for it in self.metadata.images.walk("default"))
        self.backed_up = Contents({it: digests[it] for it in now & digests.keys()}, images)

    def restore(self, name: str, *, interrupted: bool = False) -> None:
        """Make a new root of the backup, after a restore that ended in the middle if need be."""

        def stop(progress: backup.Progress) -> None:
            if progress.done >= progress.total // 2:
                raise KeyboardInterrupt

        with self._act("restored", name) as act:
            act.contents = self.backed_up
            if interrupted:
                with suppress(KeyboardInterrupt):
                    backup.restore(self.place / "backup", self.place / name, report=stop)
            backup.restore(self.place / "backup", self.place / name)


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
        doing.restore("new")
        fill(doing.prepare("kept", "name5"), 100)
        doing.remove("name2")
        fill(doing.prepare("last", "name1"), 101)
        doing.commit("last", "top")
        doing.remove("top")
        doing.remove_image("example.org/one:1")
        doing.backup()
        doing.restore("newer", interrupted=True)
        doing.remove("kept")
        for number in range(3):
            fill(doing.prepare(f"more{number}"), number)
            doing.commit(f"more{number}", f"end{number}", seal=number == 2)
        assert doing.snapshotter.cleanup() == ()
    finally:
        doing.close()
    return doing.acts


def check(place: Path, acts: list[Act], moment: int) -> None:
    """Start on what a cut at `moment` left, and see that nothing acknowledged is lost."""
    root = place / "root"
    _check_root(root, acts, moment)
    _check_seals(root, acts, moment)
    _check_backup(place / "backup", acts, moment)
    for act in acts:
        if act.kind == "restored":
            _check_restored(place, act, moment)


def _check_root(root: Path, acts: list[Act], moment: int) -> None:
    with opened(root) as snapshotter:
        assert snapshotter.cleanup() == ()
        report = snapshotter.fsck()
        assert report.clean, report
        _check_snapshots(snapshotter, acts, moment)
        _check_content(snapshotter, acts, moment)
        snapshotter.prepare("goes on")
        snapshotter.commit("goes on", "went on")
        _check_collection(snapshotter)


def opened(root: Path, *, seal: bool = False) -> Snapshotter:
    """Open a root as a service does."""
    return Snapshotter(
        root, trees=NoTrees(), tables=tables.TABLES, checks=tables.CHECKS, seals=seal
    )


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
            _check_committed(opened.root, it, act)


def _check_committed(root: Path, it: Snapshot, act: Act) -> None:
    assert isinstance(it, Committed)
    assert act.snapshot is not None
    assert it.digest in (b"", act.digest), f"{it.name} has another digest"
    unsealed = replace(it, digest=b"", updated_ns=act.snapshot.updated_ns)  # both come later
    assert unsealed == act.snapshot, f"{it.name} is not what was acknowledged"
    assert seals.measure(layer_of(root, it)) == act.digest, f"{it.name} has other data"


def layer_of(root: Path, it: Snapshot) -> Path:
    return root / "layers" / str(it.id) / "fs"


def _check_seals(root: Path, acts: list[Act], moment: int) -> None:
    """See that digests that were shown are there, and that the others are made at a start."""
    digests = {it.name: it.digest for it in acts if it.kind == "committed"}
    found = {it.name: it.verdict for it in verify(root) if it.name in digests}
    for name, verdict in found.items():
        assert verdict is not Verdict.DAMAGED, f"{name} is damaged"
    for act in acts:
        if act.kind == "sealed" and act.must_be(moment):
            assert found[act.name] is Verdict.SOUND, f"the digest of {act.name} is lost"
    if Verdict.UNSEALED in found.values():
        with opened(root, seal=True) as snapshotter:

            def are_sealed() -> bool:
                return all(it.digest for it in snapshotter.walk() if isinstance(it, Committed))

            eventually(are_sealed, timeout_s=60, what="the digests")
    with opened(root) as snapshotter:
        for it in snapshotter.walk():
            if isinstance(it, Committed) and it.name in digests:
                assert it.digest == digests[it.name], f"{it.name} has another digest"
                assert seals.digest_of(layer_of(root, it).parent / seals.SEAL) == it.digest


def _check_content(opened: Snapshotter, acts: list[Act], moment: int) -> None:
    content = opened.root / "content"
    with opened.store.view() as tx:
        blobs = [row for row in tx.rows(BLOBS, SHARED) if not row.body.going]
    for row in blobs:
        storing.verify_blob(blob_path(content, row.name), row.name, row.body.size_bytes)
    with Metadata(opened.store, content, {"snapfs": opened}) as metadata:
        found = {it.name for it in metadata.images.walk("default")}
    for act in acts:
        if act.kind == "image":
            assert act.name in found or not act.must_be(moment)
            assert act.name not in found or act.may_be(moment)


def _check_collection(opened: Snapshotter) -> None:
    """See that a collection takes what a cut one left, and nothing that an image has."""
    content = opened.root / "content"
    with Metadata(opened.store, content, {"snapfs": opened}) as metadata:
        before = {it.name for it in metadata.images.walk("default")}
        assert metadata.collector.collect().failures == 0
        assert {it.name for it in metadata.images.walk("default")} == before
    with opened.store.view() as tx:
        blobs = {blob_path(content, row.name): row for row in tx.rows(BLOBS, SHARED)}
    for path, row in blobs.items():
        storing.verify_blob(path, row.name, row.body.size_bytes)
    assert set(content.glob("blobs/*/*")) == set(blobs)
    assert opened.fsck().clean


def _check_backup(target: Path, acts: list[Act], moment: int) -> None:
    taken = [int(it.name) for it in acts if it.kind == "backup" and it.must_be(moment)]
    if taken or (target / "backup.json").exists():
        assert backup.verify(target).revision >= max(taken, default=0)
    if any(it.kind == "backup" and it.made[0] < moment < it.made[1] for it in acts):
        _check_backup_goes_on(target)


def _check_backup_goes_on(target: Path) -> None:
    """See that the next backup removes what the cut one left, and what was of the one before."""
    record = backup.take(target.with_name("root"), target).record
    assert {it.name for it in (target / "layers").iterdir()} == {str(it.id) for it in record.layers}
    assert [it.name for it in target.glob("metadata-*")] == [record.metadata]
    content = {blob_path(target / "content", it.digest).name for it in record.blobs}
    assert {it.name for it in (target / "content").rglob("*") if it.is_file()} == content
    assert backup.verify(target).revision == record.revision


def _check_restored(place: Path, act: Act, moment: int) -> None:
    """See that a restored root is whole, or is none yet and is made by the same command."""
    root = place / act.name
    is_there = (root / "metadata").exists()
    assert is_there or not act.must_be(moment), f"the restored root {act.name} is lost"
    assert act.may_be(moment) or not root.exists(), f"{act.name} comes from nowhere"
    if not act.may_be(moment):
        return
    if not is_there:
        if set(root.glob("*")) - {root / f"{roots.RESTORING}.part"}:
            with pytest.raises(FailedPrecondition, match="restored in part only"):
                roots.check_whole(root)
        backup.restore(place / "backup", root)
    roots.check_whole(root)
    assert act.contents is not None
    with opened(root) as snapshotter:
        assert snapshotter.fsck().clean
        found = {it.name: it for it in snapshotter.walk()}
        assert set(found) == set(act.contents.layers)
        for it in found.values():
            assert isinstance(it, Committed)
            digest = act.contents.layers[it.name]
            assert it.digest == seals.measure(layer_of(root, it)) == digest, f"{it.name} differs"
        _check_content(snapshotter, [], moment)
        with Metadata(snapshotter.store, root / "content", {"snapfs": snapshotter}) as metadata:
            assert {it.name for it in metadata.images.walk("default")} == act.contents.images
        snapshotter.prepare("goes on")
        snapshotter.commit("goes on", "went on")
    assert not [it for it in verify(root) if it.verdict is Verdict.DAMAGED]


def layout(path: Path) -> Path:
    """Make an image to import."""
    made = kit.Layout(path)
    base = [kit.directory("etc"), kit.file("etc/hosts", b"x" * 9000), kit.directory("bin")]
    made.image([base, [kit.directory("etc"), kit.file("etc/new", b"new")]], compress="gzip")
    return path
