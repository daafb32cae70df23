"""`snapfs content`: the bytes of images, by digest: look, read, push, label, remove."""

from __future__ import annotations

import hashlib
import sys
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

import click

from snapfs.cli import output
from snapfs.cli.bars import bar
from snapfs.cli.options import (
    AbsolutePath,
    client_options,
    json_option,
    namespace_option,
    parse_labels,
    resolve,
)
from snapfs.model import AlreadyExists

if TYPE_CHECKING:
    from snapfs.metadata import Content, Ingest
    from snapfs.service.content_client import ContentClient

_ROOT = "containerd.io/gc.root"
_HASH_BYTES = 1 << 20


@click.group()
def content() -> None:
    """Content: the bytes of images, by digest.

    \b
    Example:
      snapfs content list
      snapfs content get sha256:4f4fb7... -o layer.tar.gz
    """


@content.command("list")
@client_options
@json_option
@namespace_option
@click.argument("filters", nargs=-1)
def list_(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    filters: tuple[str, ...],
) -> None:
    """List content, all or what a filter selects.

    \b
    Example:
      snapfs content list
    """
    from snapfs.service.metadata_client import MetadataClient

    settings = resolve(config_path, address=address).config
    with MetadataClient(settings.address, timeout_s=settings.timeouts.call_s) as client:
        found = list(client.content(namespace, filters))
    if as_json:
        output.print_json([_shape(it) for it in found])
        return
    rows = [(it.digest, output.size(it.size_bytes), output.when(it.created_ns)) for it in found]
    output.table(("DIGEST", "SIZE", "CREATED"), rows, right=("SIZE",))


@content.command()
@client_options
@json_option
@namespace_option
@click.argument("digest")
def info(
    address: Path | None, config_path: Path | None, as_json: bool, namespace: str, digest: str
) -> None:
    """Show content with its labels.

    \b
    Example:
      snapfs content info sha256:4f4fb7...
    """
    with _connect(address, config_path, namespace) as client:
        found = client.get(digest)
    if as_json:
        output.print_json(_shape(found))
        return
    output.pairs(
        [
            ("digest", found.digest),
            ("size", output.size(found.size_bytes)),
            ("created", output.when(found.created_ns)),
            *(("label", f"{key}={value}") for key, value in sorted(found.labels.items())),
        ]
    )


@content.command()
@client_options
@namespace_option
@click.option("-o", "--output", "path", type=AbsolutePath(), metavar="FILE", help="A new file.")
@click.argument("digest")
def get(
    address: Path | None, config_path: Path | None, namespace: str, path: Path | None, digest: str
) -> None:
    """Write content to standard output, or to a new file; its digest is verified.

    \b
    Example:
      snapfs content get sha256:4f4fb7... -o layer.tar.gz
      snapfs content get sha256:4f4fb7... | jq .
    """
    with _connect(address, config_path, namespace) as client:
        if path is None:
            for data in client.read(digest):
                sys.stdout.buffer.write(data)
            sys.stdout.buffer.flush()
            return
        _save(client, digest, path)


@content.command()
@client_options
@json_option
@namespace_option
@click.option("--digest", default="", help="What it must be.  [default: a file's own]")
@click.option("--ref", default="", help="Name to go on by after an interruption.")
@click.option("--lease", default="", metavar="ID", help="Lease that holds it.")
@click.option("--label", "labels", multiple=True, metavar="KEY=VALUE", help="Label it.")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, allow_dash=True))
def push(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    digest: str,
    ref: str,
    lease: str,
    labels: tuple[str, ...],
    file: str,
) -> None:
    """Make content of FILE, or of standard input (-).

    A push that was interrupted goes on where it stopped when it is made again; from standard input
    only with the same --ref. Without --lease the content is kept by the label
    containerd.io/gc.root until it is removed.

    \b
    Example:
      snapfs content push layer.tar.gz
      curl -s https://example.org/layer.tar.gz | snapfs content push --ref layer -
    """
    from snapfs.service.content_client import Push

    wanted = parse_labels(labels)
    if not lease:
        wanted.setdefault(_ROOT, "push")
    with click.open_file(file, "rb") as opened, _connect(address, config_path, namespace) as client:
        source = cast(BinaryIO, opened)
        total = 0 if file == "-" else Path(file).stat().st_size
        digest = digest or ("" if file == "-" else _digest(source))
        ref = ref or f"push-{digest or uuid.uuid4()}"
        request = Push(ref=ref, lease=lease, expected=digest, total_bytes=total, labels=wanted)
        try:
            with bar("push", total) as report:
                made = client.push(source, request, report)
        except AlreadyExists:
            if not digest:
                raise
            made = client.get(digest)
    if as_json:
        output.print_json(_shape(made))
    else:
        click.echo(made.digest)


@content.command()
@client_options
@namespace_option
@click.argument("digest")
@click.argument("labels", nargs=-1, required=True, metavar="KEY=VALUE...")
def label(
    address: Path | None,
    config_path: Path | None,
    namespace: str,
    digest: str,
    labels: tuple[str, ...],
) -> None:
    """Set labels of content; an empty value deletes one.

    \b
    Example:
      snapfs content label sha256:4f4fb7... containerd.io/gc.root=
    """
    with _connect(address, config_path, namespace) as client:
        client.label(digest, parse_labels(labels))


@content.command()
@client_options
@namespace_option
@click.argument("digests", nargs=-1, required=True, metavar="DIGEST...")
def remove(
    address: Path | None, config_path: Path | None, namespace: str, digests: tuple[str, ...]
) -> None:
    """Remove content from a namespace; its bytes go when no other has it.

    An image that needs it is damaged by that: `snapfs image remove` and the collector do it well.

    \b
    Example:
      snapfs content remove sha256:4f4fb7...
    """
    with _connect(address, config_path, namespace) as client:
        for digest in digests:
            client.remove(digest)


@content.command()
@client_options
@json_option
@namespace_option
@click.argument("filters", nargs=-1)
def ingests(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    filters: tuple[str, ...],
) -> None:
    """List what is being written, or was when it was interrupted.

    \b
    Example:
      snapfs content ingests
    """
    with _connect(address, config_path, namespace) as client:
        found = client.ingests(filters)
    if as_json:
        output.print_json([_ingest_shape(it) for it in found])
        return
    rows = [
        (
            output.fitted(it.ref),
            output.size(it.offset_bytes),
            output.size(it.total_bytes) if it.total_bytes else "-",
            output.when(it.updated_ns),
        )
        for it in found
    ]
    output.table(("REF", "WRITTEN", "OF", "UPDATED"), rows, right=("WRITTEN", "OF"))


@content.command()
@client_options
@namespace_option
@click.argument("refs", nargs=-1, required=True, metavar="REF...")
def abort(
    address: Path | None, config_path: Path | None, namespace: str, refs: tuple[str, ...]
) -> None:
    """Drop what was written under references and not finished.

    \b
    Example:
      snapfs content abort layer
    """
    with _connect(address, config_path, namespace) as client:
        for ref in refs:
            client.abort(ref)


@contextmanager
def _connect(
    address: Path | None, config_path: Path | None, namespace: str
) -> Iterator[ContentClient]:
    from snapfs.service.content_client import ContentClient

    settings = resolve(config_path, address=address).config
    timeout_s = settings.timeouts.call_s
    with ContentClient(settings.address, namespace, timeout_s=timeout_s) as client:
        yield client


def _save(client: ContentClient, digest: str, path: Path) -> None:
    """Write content to a file that is there whole or not at all."""
    from snapfs.wholefile import whole

    total = client.get(digest).size_bytes
    if path.exists():
        raise AlreadyExists(f"{path} exists; remove it or name another file")
    with whole(path) as file, bar("get", total) as report:
        done = 0
        for data in client.read(digest):
            done += file.write(data)
            report(done)


def _digest(file: BinaryIO) -> str:
    hash_ = hashlib.sha256()
    while data := file.read(_HASH_BYTES):
        hash_.update(data)
    file.seek(0)
    return f"sha256:{hash_.hexdigest()}"


def _shape(it: Content) -> dict[str, Any]:
    return {
        "digest": it.digest,
        "size_bytes": it.size_bytes,
        "labels": dict(it.labels),
        "created": output.iso(it.created_ns),
    }


def _ingest_shape(it: Ingest) -> dict[str, Any]:
    return {
        "ref": it.ref,
        "offset_bytes": it.offset_bytes,
        "total_bytes": it.total_bytes,
        "expected": it.expected,
        "started": output.iso(it.started_ns),
        "updated": output.iso(it.updated_ns),
    }
