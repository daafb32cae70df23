"""`snapfs container` and `snapfs sandbox`: what clients said that runs, and what it needs.

A client that runs containers on our metadata writes these over snapfs.v1.Containers and Sandboxes;
an operator looks, labels and clears up.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias

import click

from snapfs.cli import output
from snapfs.cli.options import (
    client_options,
    json_option,
    namespace_option,
    parse_labels,
    resolve,
)

if TYPE_CHECKING:
    from snapfs.metadata import Container, Sandbox, Typed
    from snapfs.service.container_client import ContainerClient, SandboxClient

    Connect: TypeAlias = Callable[
        [Path | None, Path | None, str], AbstractContextManager[ContainerClient | SandboxClient]
    ]


@click.group()
def container() -> None:
    """Containers: what runs or shall run, and the image and snapshot that it keeps.

    \b
    Example:
      snapfs container list
      snapfs container info web
    """


@container.command("list")
@client_options
@json_option
@namespace_option
@click.argument("filters", nargs=-1)
def list_containers(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    filters: tuple[str, ...],
) -> None:
    """List containers, all or those that a filter selects.

    \b
    Example:
      snapfs container list
    """
    with _containers(address, config_path, namespace) as client:
        found = list(client.walk(filters))
    if as_json:
        output.print_json([_container_shape(it) for it in found])
        return
    rows = [
        (
            it.id,
            output.fitted(it.image or "-"),
            it.runtime.name,
            output.fitted(it.snapshot_key or "-"),
            output.when(it.created_ns),
        )
        for it in found
    ]
    output.table(("CONTAINER", "IMAGE", "RUNTIME", "SNAPSHOT", "CREATED"), rows)


@click.group()
def sandbox() -> None:
    """Sandboxes: what containers share, and what it keeps.

    \b
    Example:
      snapfs sandbox list
      snapfs sandbox info pod-1
    """


@sandbox.command("list")
@client_options
@json_option
@namespace_option
@click.argument("filters", nargs=-1)
def list_sandboxes(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    filters: tuple[str, ...],
) -> None:
    """List sandboxes, all or those that a filter selects.

    \b
    Example:
      snapfs sandbox list
    """
    with _sandboxes(address, config_path, namespace) as client:
        found = list(client.walk(filters))
    if as_json:
        output.print_json([_sandbox_shape(it) for it in found])
        return
    rows = [
        (it.id, it.sandboxer or "-", it.runtime.name, output.when(it.created_ns)) for it in found
    ]
    output.table(("SANDBOX", "SANDBOXER", "RUNTIME", "CREATED"), rows)


@contextmanager
def _containers(
    address: Path | None, config_path: Path | None, namespace: str
) -> Iterator[ContainerClient]:
    from snapfs.service.container_client import ContainerClient

    settings = resolve(config_path, address=address).config
    timeout_s = settings.timeouts.call_s
    with ContainerClient(settings.address, namespace, timeout_s=timeout_s) as client:
        yield client


@contextmanager
def _sandboxes(
    address: Path | None, config_path: Path | None, namespace: str
) -> Iterator[SandboxClient]:
    from snapfs.service.container_client import SandboxClient

    settings = resolve(config_path, address=address).config
    timeout_s = settings.timeouts.call_s
    with SandboxClient(settings.address, namespace, timeout_s=timeout_s) as client:
        yield client


def _container_pairs(it: Container) -> list[tuple[str, str]]:
    return [
        ("container", it.id),
        ("image", it.image or "-"),
        ("runtime", it.runtime.name),
        ("snapshot", f"{it.snapshotter}/{it.snapshot_key}" if it.snapshot_key else "-"),
        ("sandbox", it.sandbox_id or "-"),
    ]


def _sandbox_pairs(it: Sandbox) -> list[tuple[str, str]]:
    return [("sandbox", it.id), ("sandboxer", it.sandboxer or "-"), ("runtime", it.runtime.name)]


def _add_verbs(
    group: click.Group,
    many: str,
    connect: Connect,
    pairs: Callable[[Any], list[tuple[str, str]]],
    shape: Callable[[Any], dict[str, Any]],
) -> None:
    """Add the verbs that containers and sandboxes have alike."""
    one = group.name

    def example(words: str) -> str:
        return f"\n\n\b\nExample:\n  snapfs {one} {words}"

    @group.command("info", help=f"Show a {one}; its spec with --json.{example('info ID')}")
    @client_options
    @json_option
    @namespace_option
    @click.argument("id_", metavar="ID")
    def show(
        address: Path | None, config_path: Path | None, as_json: bool, namespace: str, id_: str
    ) -> None:
        with connect(address, config_path, namespace) as client:
            found = client.get(id_)
        if as_json:
            output.print_json(shape(found))
        else:
            output.pairs([*pairs(found), *_common(found)])

    @group.command(
        "label",
        help=f"Set labels of a {one}; an empty value deletes one.{example('label ID owner=ann')}",
    )
    @client_options
    @namespace_option
    @click.argument("id_", metavar="ID")
    @click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
    def label(
        address: Path | None,
        config_path: Path | None,
        namespace: str,
        id_: str,
        labels: tuple[str, ...],
    ) -> None:
        with connect(address, config_path, namespace) as client:
            client.label(id_, parse_labels(labels))

    @group.command(
        "remove",
        help=f"Remove {many}; what only they kept is collected. Nothing that runs is ended."
        + example("remove ID"),
    )
    @client_options
    @namespace_option
    @click.argument("ids", nargs=-1, required=True, metavar="ID...")
    def remove(
        address: Path | None, config_path: Path | None, namespace: str, ids: tuple[str, ...]
    ) -> None:
        with connect(address, config_path, namespace) as client:
            for id_ in ids:
                client.remove(id_)


def _common(it: Container | Sandbox) -> Iterator[tuple[str, str]]:
    yield "created", output.when(it.created_ns)
    yield "updated", output.when(it.updated_ns)
    for name in sorted(it.extensions):
        yield "extension", name
    for key, value in sorted(it.labels.items()):
        yield "label", f"{key}={value}"


def _container_shape(it: Container) -> dict[str, Any]:
    return {
        "id": it.id,
        "image": it.image,
        "snapshotter": it.snapshotter,
        "snapshot_key": it.snapshot_key,
        "sandbox": it.sandbox_id,
        **_common_shape(it),
    }


def _sandbox_shape(it: Sandbox) -> dict[str, Any]:
    return {"id": it.id, "sandboxer": it.sandboxer, **_common_shape(it)}


def _common_shape(it: Container | Sandbox) -> dict[str, Any]:
    return {
        "runtime": {"name": it.runtime.name, "options": _typed_shape(it.runtime.options)},
        "spec": _typed_shape(it.spec),
        "extensions": {name: _typed_shape(value) for name, value in it.extensions.items()},
        "labels": dict(it.labels),
        "created": output.iso(it.created_ns),
        "updated": output.iso(it.updated_ns),
        "revision": it.revision,
    }


def _typed_shape(it: Typed | None) -> dict[str, Any] | None:
    """Return a value of somebody else's type: as JSON if it is that, else its bytes in base64."""
    if it is None:
        return None
    try:
        return {"type": it.type_url, "value": json.loads(it.value)}
    except ValueError:
        return {"type": it.type_url, "base64": base64.b64encode(it.value).decode()}


_add_verbs(container, "containers", _containers, _container_pairs, _container_shape)
_add_verbs(sandbox, "sandboxes", _sandboxes, _sandbox_pairs, _sandbox_shape)
