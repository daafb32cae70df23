"""What the gRPC services need of a snapshotter; snapshots.Snapshotter is the one there is."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Protocol

from snapfs.model import Labels, Mount, Quota, Snapshot, Unbound, Usage


class Snapshotter(Protocol):
    """Every method may be called from any thread, raises SnapfsError, and waits a bounded time."""

    def prepare(self, key: str, parent: str, labels: Labels, *, owner: str = "") -> list[Mount]: ...

    def view(self, key: str, parent: str, labels: Labels, *, owner: str = "") -> list[Mount]: ...

    def mounts(self, key: str) -> list[Mount]: ...

    def commit(self, key: str, name: str, labels: Labels, parent: str = "") -> Snapshot: ...

    def remove(self, key: str) -> Any: ...

    def stat(self, key: str) -> Snapshot: ...

    def update(
        self, key: str, labels: Labels, fieldpaths: Sequence[str] | None = None
    ) -> Snapshot: ...

    def walk(self, filters: Sequence[str] = ()) -> Iterator[Snapshot]: ...

    def usage(self, key: str) -> Usage: ...

    def cleanup(self) -> Any: ...


class FoundProblem(Protocol):
    """One thing that fsck found."""

    @property
    def kind(self) -> str: ...
    @property
    def subject(self) -> str: ...
    @property
    def message(self) -> str: ...
    @property
    def repaired(self) -> bool: ...


class FsckReport(Protocol):
    """What fsck found, and what it mended."""

    @property
    def problems(self) -> Sequence[FoundProblem]: ...


class ChangedPath(Protocol):
    """One path that differs from the parent's; `kind` is added, changed or deleted."""

    @property
    def kind(self) -> str: ...
    @property
    def path(self) -> bytes: ...


class Administered(Snapshotter, Protocol):
    """A snapshotter with what an operator needs of it."""

    def quota(self, key: str) -> Quota: ...

    def set_quota(
        self, key: str, *, size_bytes: int | None = None, inodes: int | None = None
    ) -> Quota: ...

    def unbound(self, key: str) -> Unbound: ...

    def diff(self, name: str) -> Iterator[ChangedPath]: ...

    def fsck(self, repair: bool) -> FsckReport: ...
