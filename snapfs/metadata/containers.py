"""Containers and sandboxes: what runs, or shall run, and what it needs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from snapfs.filters import Adaptor
from snapfs.metadata import linking, masks
from snapfs.metadata.manager import Manager, adaptor, check_revision, found
from snapfs.metadata.objects import Container, Context, Sandbox, Typed
from snapfs.metadata.schema import CONTAINERS, SANDBOXES, ContainerBody, SandboxBody
from snapfs.metadata.words import check_identifier, check_namespace, shown
from snapfs.model import InvalidArgument, check_labels
from snapfs.store import Row, WriteTx

_CONTAINER_FIELDS = ("spec", "image", "snapshotkey")
_SANDBOX_FIELDS = ("spec", "runtime")
_MAPS = ("labels", "extensions")


class Containers(Manager):
    """The containers of a store, by namespace and id."""

    def create(self, context: Context, container: Container) -> Container:
        """Create a container.

        Raises AlreadyExists, InvalidArgument for a bad id, label or extension, or without a
        runtime or a spec, or with a snapshot key but no snapshotter.
        """
        check_namespace(context.namespace)
        body = _container(container)
        return _show_container(
            self._update(
                lambda tx: linking.create(tx, CONTAINERS, context.namespace, container.id, body)
            )
        )

    def get(self, namespace: str, id_: str) -> Container:
        """Return a container, or raise NotFound."""
        return _show_container(self._get(CONTAINERS, namespace, id_))

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Container]:
        """Yield containers; filters know id, runtime.name, image, labels."""
        return self._walk(CONTAINERS, namespace, filters, _show_container, _adapt_container)

    def update(
        self,
        context: Context,
        container: Container,
        paths: Sequence[str] = (),
        *,
        expect_revision: int | None = None,
    ) -> Container:
        """Update by field mask: spec, image, snapshotkey, labels[.KEY], extensions[.KEY].

        Without a mask all of these are taken over, and the snapshotter and the runtime's name must
        be what they are. Raises NotFound, Conflict, InvalidArgument.
        """
        check_namespace(context.namespace)
        chosen = masks.check(paths, fields=_CONTAINER_FIELDS, maps=_MAPS, what="a container")

        def change(tx: WriteTx) -> Row[ContainerBody]:
            row = found(CONTAINERS, *_at(tx, context.namespace, container.id))
            check_revision(row, expect_revision, "container")
            if not paths:
                _check_fixed(row, container)
            return linking.update(tx, row, _merge_container(row.body, container, chosen))

        return _show_container(self._update(change))

    def delete(self, namespace: str, id_: str) -> None:
        """Delete a container. Raises NotFound."""
        check_namespace(namespace)
        self._update(
            lambda tx: tx.delete(found(CONTAINERS, *_at(tx, namespace, id_))), deletion=True
        )


class Sandboxes(Manager):
    """The sandboxes of a store, by namespace and id."""

    def create(self, context: Context, sandbox: Sandbox) -> Sandbox:
        """Create a sandbox. Raises AlreadyExists, InvalidArgument."""
        check_namespace(context.namespace)
        body = _sandbox(sandbox)
        return _show_sandbox(
            self._update(
                lambda tx: linking.create(tx, SANDBOXES, context.namespace, sandbox.id, body)
            )
        )

    def get(self, namespace: str, id_: str) -> Sandbox:
        """Return a sandbox, or raise NotFound."""
        return _show_sandbox(self._get(SANDBOXES, namespace, id_))

    def walk(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Sandbox]:
        """Yield sandboxes; filters know id and labels."""
        return self._walk(
            SANDBOXES,
            namespace,
            filters,
            _show_sandbox,
            lambda sandbox: adaptor({"id": sandbox.id}, {"labels": sandbox.labels}),
        )

    def update(
        self,
        context: Context,
        sandbox: Sandbox,
        paths: Sequence[str] = (),
        *,
        expect_revision: int | None = None,
    ) -> Sandbox:
        """Update by field mask: spec, runtime, labels[.KEY], extensions[.KEY].

        The sandboxer and the runtime's name cannot change. Raises NotFound, Conflict,
        InvalidArgument.
        """
        check_namespace(context.namespace)
        chosen = masks.check(paths, fields=_SANDBOX_FIELDS, maps=_MAPS, what="a sandbox")

        def change(tx: WriteTx) -> Row[SandboxBody]:
            row = tx.get(SANDBOXES, context.namespace, sandbox.id)
            row = found(SANDBOXES, row, context.namespace, sandbox.id)
            check_revision(row, expect_revision, "sandbox")
            return linking.update(tx, row, _merge_sandbox(row, sandbox, chosen))

        return _show_sandbox(self._update(change))

    def delete(self, namespace: str, id_: str) -> None:
        """Delete a sandbox. Raises NotFound."""
        check_namespace(namespace)

        def drop(tx: WriteTx) -> None:
            tx.delete(found(SANDBOXES, tx.get(SANDBOXES, namespace, id_), namespace, id_))

        self._update(drop, deletion=True)


def _at(tx: WriteTx, namespace: str, id_: str) -> tuple[Row[ContainerBody] | None, str, str]:
    return tx.get(CONTAINERS, namespace, id_), namespace, id_


def _container(container: Container) -> ContainerBody:
    check_identifier(container.id, "container id")
    what = f"container {shown(container.id)}"
    if not container.runtime.name:
        raise InvalidArgument(f"{what} needs the name of a runtime")
    if container.spec is None:
        raise InvalidArgument(f"{what} needs a spec")
    if container.snapshot_key and not container.snapshotter:
        raise InvalidArgument(f"{what} names a snapshot, so it must name the snapshotter too")
    return ContainerBody(
        runtime=container.runtime,
        spec=container.spec,
        image=container.image,
        snapshotter=container.snapshotter,
        snapshot_key=container.snapshot_key,
        sandbox_id=container.sandbox_id,
        labels=check_labels(container.labels),
        extensions=_check_extensions(container.extensions, what),
    )


def _merge_container(old: ContainerBody, new: Container, paths: Sequence[str]) -> ContainerBody:
    return _container(
        Container(
            id=new.id,
            runtime=old.runtime,
            spec=new.spec if "spec" in paths else old.spec,
            image=new.image if "image" in paths else old.image,
            snapshotter=old.snapshotter,
            snapshot_key=new.snapshot_key if "snapshotkey" in paths else old.snapshot_key,
            sandbox_id=old.sandbox_id,
            labels=masks.merge(old.labels, new.labels, paths, "labels"),
            extensions=masks.merge(old.extensions, new.extensions, paths, "extensions"),
        )
    )


def _check_fixed(row: Row[ContainerBody], new: Container) -> None:
    for field, old, wanted in (
        ("snapshotter", row.body.snapshotter, new.snapshotter),
        ("runtime name", row.body.runtime.name, new.runtime.name),
    ):
        if old != wanted:
            raise InvalidArgument(
                f"container {shown(row.name)}: the {field} is {old!r} and cannot become {wanted!r}"
            )


def _sandbox(sandbox: Sandbox) -> SandboxBody:
    check_identifier(sandbox.id, "sandbox id")
    what = f"sandbox {shown(sandbox.id)}"
    if not sandbox.runtime.name:
        raise InvalidArgument(f"{what} needs the name of a runtime")
    return SandboxBody(
        runtime=sandbox.runtime,
        spec=sandbox.spec,
        sandboxer=sandbox.sandboxer,
        labels=check_labels(sandbox.labels),
        extensions=_check_extensions(sandbox.extensions, what),
    )


def _merge_sandbox(row: Row[SandboxBody], new: Sandbox, paths: Sequence[str]) -> SandboxBody:
    old = row.body
    if "runtime" in paths and new.runtime.name != old.runtime.name:
        raise InvalidArgument(
            f"sandbox {shown(row.name)}: the runtime name is {old.runtime.name!r} and cannot "
            f"become {new.runtime.name!r}"
        )
    return _sandbox(
        Sandbox(
            id=new.id,
            runtime=new.runtime if "runtime" in paths else old.runtime,
            spec=new.spec if "spec" in paths else old.spec,
            sandboxer=old.sandboxer,
            labels=masks.merge(old.labels, new.labels, paths, "labels"),
            extensions=masks.merge(old.extensions, new.extensions, paths, "extensions"),
        )
    )


def _check_extensions(extensions: Mapping[str, Typed], what: str) -> dict[str, Typed]:
    if "" in extensions:
        raise InvalidArgument(f"{what} has an extension without a name; give it one")
    return dict(extensions)


def _show_container(row: Row[ContainerBody]) -> Container:
    body = row.body
    return Container(
        id=row.name,
        runtime=body.runtime,
        spec=body.spec,
        image=body.image,
        snapshotter=body.snapshotter,
        snapshot_key=body.snapshot_key,
        sandbox_id=body.sandbox_id,
        labels=body.labels,
        extensions=body.extensions,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )


def _adapt_container(container: Container) -> Adaptor:
    fields = {
        "id": container.id,
        "image": container.image,
        "runtime.name": container.runtime.name,
    }
    return adaptor(fields, {"labels": container.labels})


def _show_sandbox(row: Row[SandboxBody]) -> Sandbox:
    body = row.body
    return Sandbox(
        id=row.name,
        runtime=body.runtime,
        spec=body.spec,
        sandboxer=body.sandboxer,
        labels=body.labels,
        extensions=body.extensions,
        created_ns=row.created_ns,
        updated_ns=row.updated_ns,
        revision=row.mod_rev,
    )
