"""`snapfs lease`, `snapfs namespace` and `snapfs gc`: what is kept, and why."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.bars import waiting
from snapfs.cli.options import (
    client_options,
    json_option,
    namespace_option,
    parse_labels,
    resolve,
)

if TYPE_CHECKING:
    from snapfs.metadata import Resource, Step
    from snapfs.service.metadata_client import MetadataClient
    from snapfs.service.metadata_wire import LeaseRecord

_EXPIRE = "containerd.io/gc.expire"
_OBJECT_HELP = "TYPE is content, images, ingests or snapshots/SNAPSHOTTER."


@click.group()
def lease() -> None:
    """Leases: what they hold is not collected until they are removed or expire.

    \b
    Example:
      snapfs lease create build-7 --expire +3600
      snapfs lease add build-7 images:base
    """


@lease.command("create")
@client_options
@namespace_option
@click.option("--expire", metavar="TIME", help="When it ends by itself: RFC 3339 or `+SECONDS`.")
@click.argument("id_", metavar="ID")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def create_lease(
    address: Path | None,
    config_path: Path | None,
    namespace: str,
    expire: str | None,
    id_: str,
    labels: tuple[str, ...],
) -> None:
    """Create a lease.

    \b
    Example:
      snapfs lease create build-7 --expire +3600
    """
    wanted = parse_labels(labels)
    if expire is not None:
        wanted[_EXPIRE] = _moment(expire)
    with _connect(address, config_path) as client:
        click.echo(client.create_lease(namespace, id_, wanted).id)


@lease.command("list")
@client_options
@json_option
@namespace_option
@click.argument("filters", nargs=-1)
def list_leases(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    filters: tuple[str, ...],
) -> None:
    """List leases and what they hold.

    \b
    Example:
      snapfs lease list
    """
    with _connect(address, config_path) as client:
        found = client.leases(namespace, filters)
    if as_json:
        output.print_json([_lease_shape(it) for it in found])
        return
    rows = [
        (
            it.id,
            it.labels.get(_EXPIRE, "never"),
            ", ".join(output.fitted(f"{held.type}:{held.id}") for held in it.resources) or "-",
        )
        for it in found
    ]
    output.table(("LEASE", "EXPIRES", "HOLDS"), rows)


def _change(name: str, what: str) -> click.Command:
    example = f"\b\nExample:\n  snapfs lease {name} build-7 images:base"

    @lease.command(name, help=f"{what} {_OBJECT_HELP}\n\n{example}")
    @client_options
    @namespace_option
    @click.argument("id_", metavar="ID")
    @click.argument("objects", nargs=-1, required=True, metavar="TYPE:ID...")
    def command(
        address: Path | None,
        config_path: Path | None,
        namespace: str,
        id_: str,
        objects: tuple[str, ...],
    ) -> None:
        changed = [_object(text) for text in objects]
        with _connect(address, config_path) as client:
            if name == "add":
                client.change_lease(namespace, id_, add=changed)
            else:
                client.change_lease(namespace, id_, remove=changed)

    return command


_change("add", "Let a lease hold objects, which need not exist yet.")
_change("release", "Let a lease hold objects no more.")


@lease.command("remove")
@client_options
@namespace_option
@click.argument("ids", nargs=-1, required=True, metavar="ID...")
def remove_leases(
    address: Path | None, config_path: Path | None, namespace: str, ids: tuple[str, ...]
) -> None:
    """Remove leases; what only they held is collected.

    \b
    Example:
      snapfs lease remove build-7
    """
    with _connect(address, config_path) as client:
        for id_ in ids:
            client.remove_lease(namespace, id_)


@click.group()
def namespace() -> None:
    """Namespaces: each has images, leases and content of its own; bytes are shared.

    \b
    Example:
      snapfs namespace list
      snapfs image list --namespace team-a
    """


@namespace.command("list")
@client_options
@json_option
def list_namespaces(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """List namespaces, also those that are only in use.

    \b
    Example:
      snapfs namespace list
    """
    with _connect(address, config_path) as client:
        found = client.namespaces()
    if as_json:
        output.print_json([{"name": it.name, "labels": dict(it.labels)} for it in found])
        return
    rows = [
        (it.name, ", ".join(f"{key}={value}" for key, value in sorted(it.labels.items())) or "-")
        for it in found
    ]
    output.table(("NAMESPACE", "LABELS"), rows)


@namespace.command("create")
@client_options
@click.argument("name")
@click.argument("labels", nargs=-1, metavar="[KEY=VALUE]...")
def create_namespace(
    address: Path | None, config_path: Path | None, name: str, labels: tuple[str, ...]
) -> None:
    """Create a namespace; one that is used comes into being by itself.

    \b
    Example:
      snapfs namespace create team-a
    """
    with _connect(address, config_path) as client:
        client.create_namespace(name, parse_labels(labels))


@namespace.command("label")
@client_options
@click.argument("name")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label_namespace(
    address: Path | None, config_path: Path | None, name: str, labels: tuple[str, ...]
) -> None:
    """Set labels of a namespace; an empty value deletes one.

    \b
    Example:
      snapfs namespace label team-a owner=ann
    """
    with _connect(address, config_path) as client:
        client.label_namespace(name, parse_labels(labels))


@namespace.command("remove")
@client_options
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
def remove_namespaces(
    address: Path | None, config_path: Path | None, names: tuple[str, ...]
) -> None:
    """Remove empty namespaces.

    \b
    Example:
      snapfs namespace remove team-a
    """
    with _connect(address, config_path) as client:
        for name in names:
            client.remove_namespace(name)


@click.group(invoke_without_command=True)
@client_options
@json_option
@click.option("--dry-run", is_flag=True, help="Only list what would go.")
@click.pass_context
def gc(
    ctx: click.Context,
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    dry_run: bool,
) -> None:
    """Collect garbage now: images' layers and content that nothing keeps.

    It runs by itself after changes; this one waits until it is done.

    \b
    Example:
      snapfs gc --dry-run
      snapfs gc explain images:docker.io/library/debian:12
    """
    if ctx.invoked_subcommand is not None:
        return
    with _connect(address, config_path) as client:
        if dry_run:
            _print_steps(list(client.garbage()), as_json=as_json)
            return
        with waiting("collecting"):
            done = client.collect()
    if as_json:
        output.print_json(
            {
                "removed": done.removed,
                "failed": done.failed,
                "failures": done.failures,
                "kept": done.marked,
                "elapsed_ns": done.elapsed_ns,
            }
        )
    else:
        removed = ", ".join(f"{count} {name}" for name, count in sorted(done.removed.items()))
        kept = output.count(done.marked, "object")
        click.echo(f"removed {removed or 'nothing'}; {kept} kept ({done.elapsed_ns / 1e9:.2f} s)")
    for name in done.failed:
        click.echo(output.printable(f"not removed, tried again next time: {name}"), err=True)
    if done.failures > len(done.failed):
        more = done.failures - len(done.failed)
        click.echo(f"not removed, tried again next time: {more} more", err=True)
    if done.failed:
        raise SystemExit(1)


@gc.command("log")
@client_options
@json_option
def log_(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """Show what the last collections did, the newest first; of idle ones the last.

    \b
    Example:
      snapfs gc log
    """
    with _connect(address, config_path) as client:
        found = client.collections()
    if as_json:
        output.print_json(
            [
                {
                    "began": output.iso(it.began_ns),
                    "elapsed_ns": it.elapsed_ns,
                    "mark_ns": it.mark_ns,
                    "kept": it.marked,
                    "removed": it.removed,
                    "failed": it.failed,
                }
                for it in found
            ]
        )
        return
    rows = [
        (
            output.when(it.began_ns),
            f"{it.elapsed_ns / 1e9:.2f} s",
            f"{it.mark_ns / 1e9:.2f} s",
            str(it.marked),
            ", ".join(f"{count} {name}" for name, count in sorted(it.removed.items())) or "-",
            str(it.failed),
        )
        for it in found
    ]
    header = ("BEGAN", "TOOK", "MARK", "KEPT", "REMOVED", "FAILED")
    output.table(header, rows, right=("TOOK", "MARK", "KEPT", "FAILED"))


@gc.command()
@client_options
@json_option
@namespace_option
@click.argument("object_", metavar="TYPE:ID")
def explain(
    address: Path | None, config_path: Path | None, as_json: bool, namespace: str, object_: str
) -> None:
    """Say why an object is kept, as the path from what keeps it, or that it will go.

    TYPE is content, images, ingests or snapshots/SNAPSHOTTER.

    \b
    Example:
      snapfs gc explain snapshots/snapfs:sha256:4f4fb7...
    """
    with _connect(address, config_path) as client:
        why = client.explain(namespace, _object(object_))
    if as_json:
        output.print_json(
            {"kept": why.kept, "reason": why.reason, "path": [_step_shape(it) for it in why.path]}
        )
        return
    for depth, step in enumerate(why.path):
        note = f"  ({why.reason})" if depth == 0 else ""
        what = f"{step.table} {output.fitted(step.name)}"
        click.echo(output.printable(f"{'  ' * depth}{what}{note}"))
    if not why.kept:
        click.echo(why.reason)


@contextmanager
def _connect(address: Path | None, config_path: Path | None) -> Iterator[MetadataClient]:
    from snapfs.service.metadata_client import MetadataClient

    settings = resolve(config_path, address=address).config
    with MetadataClient(settings.address, timeout_s=settings.timeouts.call_s) as client:
        yield client


def _object(text: str) -> Resource:
    """Read TYPE:ID; digests have colons of their own."""
    from snapfs.metadata import Resource

    type_, colon, id_ = text.partition(":")
    if not colon or not type_ or not id_:
        raise click.UsageError(f"object {text!r} is not TYPE:ID. {_OBJECT_HELP}")
    return Resource(type_, id_)


def _moment(text: str) -> str:
    """Return a time in RFC 3339 of one, or of `+SECONDS` from now."""
    from datetime import UTC, datetime, timedelta

    from snapfs.metadata.words import parse_time_ns

    if text.startswith("+") and text[1:].isdigit():
        moment = datetime.now(UTC) + timedelta(seconds=int(text[1:]))
        return moment.strftime("%Y-%m-%dT%H:%M:%SZ")
    if parse_time_ns(text) is None:
        raise click.UsageError(f"time {text!r} is neither RFC 3339 nor +SECONDS")
    return text


def _lease_shape(it: LeaseRecord) -> dict[str, Any]:
    return {
        "id": it.id,
        "labels": dict(it.labels),
        "created": output.iso(it.created_ns),
        "resources": [{"type": held.type, "id": held.id} for held in it.resources],
    }


def _step_shape(it: Step) -> dict[str, str]:
    return {"table": it.table, "namespace": it.namespace, "name": it.name}


def _print_steps(found: list[Step], *, as_json: bool) -> None:
    if as_json:
        output.print_json([_step_shape(it) for it in found])
        return
    rows = [(it.table, it.namespace, output.fitted(it.name)) for it in found]
    output.table(("KIND", "NAMESPACE", "NAME"), rows)
