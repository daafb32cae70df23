"""Volumes as a program uses them: working copies with history, mounted where they are wanted.

    volumes = Volumes(snapshotter, state / "volumes", changed=has_changed)
    volumes.create("db", mount_path="/srv/db")
    volumes.mount("db")
    volumes.history.snapshot("db", "before the upgrade", why=Note(author="ann"))
    volumes.branches.create("db", "experiment")
    volumes.history.switch("db", "experiment")

Thread-safe; one call at a time on the volumes of a set. What a call changed is durable when it
returns.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

import structlog

from snapfs.model import (
    FailedPrecondition,
    NotFound,
    SnapfsError,
    Unavailable,
    Usage,
)
from snapfs.snapshots import Snapshotter
from snapfs.snapshots.copying import Changed
from snapfs.store import ReadTx, WriteTx
from snapfs.volumes import (
    ancestry,
    branches,
    copies,
    groups,
    mounting,
    names,
    queries,
    refs,
    sets,
    snapshots,
    users,
)
from snapfs.volumes.catalog import Catalog
from snapfs.volumes.common import Common, blob, refusing
from snapfs.volumes.copies import VolumeRow
from snapfs.volumes.errors import VolumeNotFound
from snapfs.volumes.ids import (
    NewId,
    VolumeId,
    VolumeSetId,
    VolumeSnapshotId,
    new_id,
)
from snapfs.volumes.lines import Lines
from snapfs.volumes.model import (
    DEFAULT_BRANCH,
    NO_NOTE,
    Attributes,
    Note,
    Volume,
    VolumeSet,
    VolumeSnapshot,
)
from snapfs.volumes.mounting import Bound
from snapfs.volumes.schema import SCOPE, SNAPSHOTS, VOLUMES
from snapfs.volumes.timelines import Timelines

log = structlog.get_logger(__name__)

T = TypeVar("T")

DEADLINE_S = 60.0
_LOOKS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Described:
    """A volume with what belongs to it."""

    volume: Volume
    set: VolumeSet
    branch: str
    """Name of the branch that its next snapshot goes to; empty when detached or unnamed."""
    usage: Usage
    mounted_at: str
    """Where it is mounted now; empty for nowhere."""


class Volumes:
    """The volumes of one root."""

    def __init__(
        self,
        snapshotter: Snapshotter,
        place: Path,
        *,
        changed: Changed,
        new_id: NewId = new_id,
        deadline_s: float = DEADLINE_S,
    ) -> None:
        """`place` is the directory below which volumes without a path of their own are mounted."""
        self.common = Common(
            snapshotter, place, changed=changed, new_id=new_id, deadline_s=deadline_s
        )
        self.history = Timelines(self.common)
        self.branches = Lines(self.common)
        self.sets = Catalog(self.common)

    def start(self) -> None:
        """Settle what a crash left, make working copies that lack, mount what is to be mounted."""
        try:
            groups.thaw_left(self.common.frozen_groups)
        except OSError as error:  # the next start tries again
            log.error("volume.groups_left_frozen", error=str(error))
        self.common.data.sweep()
        self._complete()
        for volume in self.walk():
            if volume.is_mounted:
                try:
                    mounting.bind(self.common.data.source(volume.key), Path(volume.mount_path))
                except (OSError, SnapfsError) as error:
                    log.error("volume.not_mounted", name=volume.name, error=str(error))

    def _complete(self) -> None:
        """Give each volume that a restore left without a working copy one of what it stands on."""
        for volume in self.walk():
            if not volume.key:
                try:
                    with self.common.held(volume.id):
                        pass
                except (OSError, SnapfsError) as error:
                    log.error("volume.no_working_copy", name=volume.name, error=str(error))

    # Making and removing

    def create(
        self,
        name: str,
        *,
        prefix: str = "",
        description: str = "",
        attributes: Attributes | None = None,
        mount_path: str = "",
        size_bytes: int | None = None,
        branch: str = DEFAULT_BRANCH,
        why: Note = NO_NOTE,
    ) -> Volume:
        """Create an empty volume and its set, both called `name`.

        Raises AlreadyExists, InvalidArgument. Nothing is left of a refusal.
        """
        made = VolumeSet(
            id=VolumeSetId(self.common.new_id()),
            name=name,
            prefix=prefix,
            description=description,
            attributes=attributes or {},
            creator=why.author,
        )
        volume = self._new(name, made.id, mount_path, size_bytes, next_branch=branch)

        def record(tx: WriteTx, whole: Volume) -> Volume:
            sets.create(tx, made)
            return copies.show(copies.create(tx, whole, why))

        return self._make(volume, "", record)

    def clone(
        self,
        source: str,
        name: str,
        *,
        ref: str = refs.HEAD,
        branch: str = "",
        mount_path: str = "",
        size_bytes: int | None = None,
        why: Note = NO_NOTE,
    ) -> Volume:
        """Make another volume of the set of `source`, a volume or a set, at a snapshot.

        Its first snapshot makes a branch, called as the volume unless `branch` says otherwise.
        What `source` has not in a snapshot is not in it.
        """
        with self.common.store.view() as tx:
            set_id, row = self.common.source(tx, source)
            target = refs.resolve(tx, set_id, ref, row).row
        volume = self._new(name, set_id, mount_path, size_bytes, next_branch=branch or name)
        based = replace(volume, base=VolumeSnapshotId(target.name))
        return self._make(
            based, blob(target), lambda tx, whole: copies.show(copies.create(tx, whole, why))
        )

    def _new(
        self,
        name: str,
        set_id: VolumeSetId,
        mount_path: str,
        size_bytes: int | None,
        *,
        next_branch: str,
    ) -> Volume:
        return Volume(
            id=VolumeId(self.common.new_id()),
            name=name,
            set_id=set_id,
            base=None,
            branch=None,
            next_branch=next_branch,
            mount_path=mounting.real(names.check_mount_path(mount_path)) if mount_path else "",
            size_bytes=size_bytes,
        )

    def _make(
        self, volume: Volume, blob: str, record: Callable[[WriteTx, Volume], Volume]
    ) -> Volume:
        key = self.common.data.prepare(volume.id, blob)
        with self.common.discarding(key):
            if volume.size_bytes:
                self.common.data.limit(key, volume.size_bytes)
            whole = replace(volume, key=key)
            made = self.common.update(lambda tx: record(tx, whole))
        log.info("volume.created", name=made.name, set=made.set_id)
        return made

    def remove(self, name: str, *, history: bool = False, why: Note = NO_NOTE) -> None:
        """Remove a volume; with `history`, or when there is none, its set too.

        FailedPrecondition while it is used, or while the set has other volumes.
        """
        with self.common.held(name) as row:
            tree = self._check_unused(row)
            set_id = VolumeSetId(row.body.set_id)
            blobs: list[str] = []

            def forget(tx: WriteTx) -> None:
                copies.delete(tx, copies.resolve(tx, row.name), why)
                blobs.clear()
                if history or _is_bare(tx, set_id):
                    blobs.extend(sets.delete(tx, set_id, why))

            with self._mounted_again(row):
                self._unbind(row)
                if tree is not None:
                    mounting.check_nowhere(tree)
                self.common.data.remove(row.body.key, forget)
            for blob in blobs:
                self.common.data.discard(blob)
        log.info("volume.removed", name=row.body.name, history=history)

    # Looking

    def walk(self) -> list[Volume]:
        """Return all volumes, in the order of names."""
        with self.common.store.view() as tx:
            found = [copies.show(row) for row in tx.rows(VOLUMES, SCOPE)]
        return sorted(found, key=lambda it: it.name)

    def describe_all(self) -> Iterator[Described]:
        """Yield all volumes with what belongs to them, but for those that are gone meanwhile."""
        for volume in self.walk():
            with suppress(VolumeNotFound):
                yield self.describe(volume.id)

    def describe(self, name: str) -> Described:
        """Return a volume with what belongs to it; or raise VolumeNotFound."""
        for _ in range(_LOOKS):
            with suppress(NotFound):  # the working copy was replaced after it was looked up
                return self._describe(name)
        return self._describe(name)

    def _describe(self, name: str) -> Described:
        with self.common.store.view() as tx:
            row = copies.resolve(tx, name)
            volume = copies.show(row)
            found = sets.show(tx, sets.find(tx, volume.set_id))
            on = branches.find(tx, volume.set_id, volume.branch) if volume.branch else None
        bound = volume.mount_path and mounting.at(Path(volume.mount_path))
        return Described(
            volume=volume,
            set=found,
            branch=on.body.name if on is not None else volume.next_branch,
            usage=self.common.data.usage(volume.key),
            mounted_at=volume.mount_path if bound else "",
        )

    def log(self, name: str, ref: str = "", *, everything: bool = False) -> list[VolumeSnapshot]:
        """Return a line of history, newest first: of a reference, or of HEAD; or all of the set."""
        with self.common.store.view() as tx:
            set_id, row = self.common.source(tx, name)
            if everything:
                query = queries.Query(sort=queries.Sort.TIME)
                return queries.list_snapshots(tx, set_id, query)[::-1]
            if row is not None and not ref and not row.body.base:
                return []
            target = refs.resolve(tx, set_id, ref or refs.HEAD, row)
            return [snapshots.show(tx, it) for it in ancestry.upward(tx, target.row)]

    def resolve(self, name: str, ref: str) -> VolumeSnapshot:
        """Return the snapshot that a reference means, for a volume or a set."""
        with self.common.store.view() as tx:
            set_id, row = self.common.source(tx, name)
            return snapshots.show(tx, refs.resolve(tx, set_id, ref, row).row)

    def layers(self, name: str, ref: str = "") -> tuple[Path, ...]:
        """Return the layers of a snapshot, topmost first, or of a volume's working copy."""
        if ref:
            return self.common.data.layers(self.common.blob_of(self.resolve(name, ref)))
        with self.common.store.view() as tx:
            key = copies.resolve(tx, name).body.key
        return self.common.data.layers(key)

    def has_changed(self, name: str) -> bool:
        """Say whether a volume has changes that no snapshot has."""
        with self.common.store.view() as tx:
            key = copies.resolve(tx, name).body.key
        return self.common.data.has_changed(key)

    # Mounting

    def mount(self, name: str, path: str = "") -> str:
        """Mount a volume, at its path or at another from now on; return the path.

        It is mounted again at each start of the service until `umount`.
        """
        with self.common.held(name) as row:
            given = path or row.body.mount_path or os.fspath(self.common.place / row.body.name)
            wanted = mounting.real(names.check_mount_path(given))
            source = self.common.data.source(row.body.key)
            with self._mounted_again(row), refusing(f"mount volume {row.body.name!r}"):
                mounting.is_bound(source, Path(wanted))
                if row.body.is_mounted and wanted != row.body.mount_path:
                    self._unbind(row)
                self._say_mounted(row, wanted, is_mounted=True)
                mounting.bind(source, Path(wanted))
        return wanted

    def umount(self, name: str) -> None:
        """Unmount a volume; FailedPrecondition names who uses it."""
        with self.common.held(name) as row:
            self._unbind(row)
            self._say_mounted(row, row.body.mount_path, is_mounted=False)

    def _say_mounted(self, row: VolumeRow, path: str, *, is_mounted: bool) -> None:
        self.common.update(
            lambda tx: copies.edit(
                tx, copies.resolve(tx, row.name), mount_path=path, is_mounted=is_mounted
            )
        )

    @contextmanager
    def _mounted_again(self, row: VolumeRow) -> Iterator[None]:
        """Have a volume mounted as it was, and its row say so, when the block fails."""
        was = mounting.at(Path(row.body.mount_path)) if row.body.mount_path else []
        is_done = False
        try:
            yield
            is_done = True
        finally:
            if not is_done:
                self._mount_again(row, is_mounted=bool(was))

    def _mount_again(self, row: VolumeRow, *, is_mounted: bool) -> None:
        body = row.body
        try:
            self._say_mounted(row, body.mount_path, is_mounted=body.is_mounted)
            if is_mounted:
                mounting.bind(self.common.data.source(body.key), Path(body.mount_path))
        except (OSError, SnapfsError) as error:
            log.error("volume.not_mounted", name=body.name, error=str(error))

    def _check_unused(self, row: VolumeRow) -> Bound | None:
        """Refuse while a container has the volume: our own mount says nothing of that.

        Return the tree, None where no lane shows it.
        """
        tree = self.common.data.tree(row.body.key, row.body.mount_path)
        if tree is None:
            return None
        if found := users.users_of(tree.device, tree.root, mounting.here(tree)):
            raise FailedPrecondition(
                f"volume {row.body.name!r} is used by {users.shown(found)}; stop that first"
            )
        return tree

    def _unbind(self, row: VolumeRow) -> None:
        if not row.body.mount_path:
            return
        path = Path(row.body.mount_path)
        try:
            mounting.unbind(path)
        except OSError as error:
            if error.errno != errno.EBUSY:
                raise Unavailable(f"cannot unmount {path}: {error}") from error
            who = users.shown(users.users(path)) or "something mounted below it"
            raise FailedPrecondition(f"{path} is used by {who}; stop that first") from error

    def resize(self, name: str, size_bytes: int | None) -> Volume:
        """Set what a volume's own changes may take, from the next write on; None for no limit."""
        with self.common.held(name) as row:
            self.common.data.limit(row.body.key, size_bytes)
            return self.common.update(
                lambda tx: copies.show(
                    copies.edit(tx, copies.resolve(tx, row.name), size_bytes=size_bytes or 0)
                )
            )


def _is_bare(tx: ReadTx, set_id: VolumeSetId) -> bool:
    """Whether a set has neither snapshots nor volumes."""
    has_volumes = any(it.body.set_id == set_id for it in tx.rows(VOLUMES, SCOPE))
    return not has_volumes and next(tx.rows(SNAPSHOTS, set_id), None) is None
