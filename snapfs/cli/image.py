"""`snapfs image`: import, export, commit, list, get, info, history, verify, tag, remove."""

from __future__ import annotations

import os
import shlex
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.bars import bars
from snapfs.cli.moments import MOMENT
from snapfs.cli.options import (
    SNAPSHOT,
    AbsolutePath,
    client_options,
    json_option,
    namespace_option,
    resolve,
)

if TYPE_CHECKING:
    from snapfs.images import Progress
    from snapfs.service.metadata_client import ImageClient
    from snapfs.service.metadata_wire import ImageRecord

_SHORT_DIGEST = len("sha256:") + 12


@click.group()
def image() -> None:
    """Images: archives of layers, imported into snapshots that can be mounted.

    \b
    Example:
      snapfs image import debian.tar
      snapfs mount docker.io/library/debian:12 /mnt
    """


@image.command("import")
@client_options
@json_option
@namespace_option
@click.option("--name", default="", help="Name of an image without one, or of the only one.")
@click.option(
    "--platform", default="", metavar="OS/ARCH", help="Of an image for many.  [default: this one]"
)
@click.option("--no-unpack", is_flag=True, help="Keep the content, make no snapshots.")
@click.argument("path", type=AbsolutePath(exists=True))
def import_(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    name: str,
    platform: str,
    no_unpack: bool,
    path: Path,
) -> None:
    """Import the images of PATH: an OCI layout (a directory or an archive), or a docker-archive.

    Digests are verified. Each layer is unpacked once, however many images share it; an import that
    was interrupted goes on where it stopped.

    \b
    Example:
      docker save debian:12 -o debian.tar
      snapfs image import debian.tar
      snapfs mount docker.io/library/debian:12 /mnt
    """
    with _connect(address, config_path, namespace) as client, _progress() as report:
        made = client.import_path(
            path, name=name, platform=platform, unpack=not no_unpack, report=report
        )
    if as_json:
        output.print_json([_shape(it) for it in made])
        return
    for it in made:
        click.echo(output.printable(f"{it.name}  {it.digest}"))


@image.command("list")
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
    """List images, all or those that a filter selects.

    \b
    Example:
      snapfs image list
      snapfs image list 'name~=debian'
    """
    with _connect(address, config_path, namespace) as client:
        found = list(client.walk(filters))
    if as_json:
        output.print_json([_shape(it) for it in found])
        return
    rows = [
        (
            output.fitted(it.name),
            it.digest[:_SHORT_DIGEST],
            it.platform or "-",
            output.size(it.size_bytes),
            "yes" if it.snapshot else "no",
            output.when(it.created_ns),
        )
        for it in found
    ]
    header = ("NAME", "DIGEST", "PLATFORM", "SIZE", "UNPACKED", "CREATED")
    output.table(header, rows, right=("SIZE",), whole=header[1:])


@image.command()
@client_options
@json_option
@namespace_option
@click.option(
    "--at",
    "at_ns",
    type=MOMENT,
    metavar="TIME",
    help="What the name stood for then.  [default: what it stands for]",
)
@click.argument("name")
def get(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    at_ns: int | None,
    name: str,
) -> None:
    """Print the digest and the snapshot that the image NAME stands for, or stood for at a time.

    \b
    Example:
      snapfs image get docker.io/library/debian:12 --at '2026-11-20 09:00'
    """
    with _connect(address, config_path, namespace) as client:
        it = client.get(name, at_ns=at_ns)
    if as_json:
        output.print_json(_shape(it))
    else:
        click.echo(output.printable(f"{it.digest}  {it.snapshot or '-'}"))


@image.command()
@client_options
@json_option
@namespace_option
@click.argument("name")
def info(
    address: Path | None, config_path: Path | None, as_json: bool, namespace: str, name: str
) -> None:
    """Show an image.

    \b
    Example:
      snapfs image info docker.io/library/debian:12
    """
    with _connect(address, config_path, namespace) as client:
        it = client.get(name)
    if as_json:
        output.print_json(_shape(it))
        return
    output.pairs(
        [
            ("name", it.name),
            ("digest", it.digest),
            ("media type", it.media_type),
            ("platform", it.platform or "-"),
            ("size", output.size(it.size_bytes)),
            ("layers", str(len(it.layers))),
            ("snapshot", it.snapshot or "not unpacked"),
            ("created", output.when(it.created_ns)),
            ("updated", output.when(it.updated_ns)),
            *((f"label {key}", value) for key, value in sorted(it.labels.items())),
        ]
    )


@image.command()
@client_options
@json_option
@namespace_option
@click.argument("name")
def history(
    address: Path | None, config_path: Path | None, as_json: bool, namespace: str, name: str
) -> None:
    """Show the layers of an image, the newest first, and what made them.

    \b
    Example:
      snapfs image history docker.io/library/debian:12
    """
    with _connect(address, config_path, namespace) as client:
        it = client.get(name)
    layers = list(reversed(it.layers))
    if as_json:
        output.print_json([_layer_shape(layer) for layer in layers])
        return
    rows = [
        (layer.digest[:_SHORT_DIGEST], output.size(layer.size_bytes), layer.created_by or "-")
        for layer in layers
    ]
    output.table(("LAYER", "SIZE", "CREATED BY"), rows, right=("SIZE",))


@image.command()
@client_options
@namespace_option
@click.argument("name")
@click.argument("new_name")
def tag(
    address: Path | None, config_path: Path | None, namespace: str, name: str, new_name: str
) -> None:
    """Give the image NAME another name as well.

    \b
    Example:
      snapfs image tag docker.io/library/debian:12 base
    """
    with _connect(address, config_path, namespace) as client:
        it = client.tag(name, new_name)
    click.echo(output.printable(f"{it.name}  {it.digest}"))


@image.command()
@client_options
@namespace_option
@click.option("--wait", is_flag=True, help="Return when what only it kept is gone too.")
@click.argument("names", nargs=-1, required=True)
def remove(
    address: Path | None,
    config_path: Path | None,
    namespace: str,
    wait: bool,
    names: tuple[str, ...],
) -> None:
    """Remove names of images; layers that nothing keeps any more are collected.

    \b
    Example:
      snapfs image remove --wait docker.io/library/debian:12
    """
    with _connect(address, config_path, namespace) as client:
        for name in names:
            client.remove(name, wait=wait and name == names[-1])


@image.command()
@client_options
@namespace_option
@click.argument("names", nargs=-1, required=True, metavar="NAME...")
@click.argument("path", type=AbsolutePath())
def export(
    address: Path | None,
    config_path: Path | None,
    namespace: str,
    names: tuple[str, ...],
    path: Path,
) -> None:
    """Write images to the new file PATH: an OCI layout that `docker load` reads too.

    \b
    Example:
      snapfs image export mine:1 mine.tar
    """
    with _connect(address, config_path, namespace) as client, _progress() as report:
        client.export(names, path, report=report)


@image.command()
@client_options
@json_option
@namespace_option
@click.option("--base", default="", metavar="IMAGE", help="What it stands on.  [default: found]")
@click.option("--author", default="", help="Who made it.")
@click.option("-m", "--message", default="", help="What was changed; the history shows it.")
@click.argument("key", type=SNAPSHOT)
@click.argument("name")
def commit(
    address: Path | None,
    config_path: Path | None,
    as_json: bool,
    namespace: str,
    base: str,
    author: str,
    message: str,
    key: str,
    name: str,
) -> None:
    """Make the image NAME of the active snapshot KEY, which becomes a committed one.

    The cost is that of the change, not of the image. With SOURCE_DATE_EPOCH set, the same tree
    has the same digest.

    \b
    Example:
      snapfs mount debian:12 /mnt --writable --key work
      snapfs umount /mnt
      snapfs image commit -m 'add a user' work mine:1
    """
    epoch = os.environ.get("SOURCE_DATE_EPOCH", "")
    if epoch and not epoch.isdigit():
        raise click.UsageError(f"SOURCE_DATE_EPOCH {epoch!r} is no number of seconds")
    with _connect(address, config_path, namespace) as client, _progress() as report:
        made = client.commit(
            key,
            name,
            base=base,
            author=author,
            comment=message,
            created_by=f"snapfs image commit -m {shlex.quote(message)}" if message else "",
            epoch_s=int(epoch) if epoch else None,
            report=report,
        )
    if as_json:
        output.print_json(_shape(made))
    else:
        click.echo(output.printable(f"{made.name}  {made.digest}"))


@image.command()
@client_options
@json_option
@namespace_option
@click.argument("name")
def verify(
    address: Path | None, config_path: Path | None, as_json: bool, namespace: str, name: str
) -> None:
    """Read all content of an image again and compare it with its digests.

    \b
    Example:
      snapfs image verify docker.io/library/debian:12
    """
    with _connect(address, config_path, namespace) as client:
        problems = client.verify(name)
    if as_json:
        output.print_json({"name": name, "problems": problems})
    for problem in [] if as_json else problems or ["all content is what its digests say"]:
        click.echo(output.printable(problem))
    if problems:
        raise SystemExit(1)


@contextmanager
def _connect(
    address: Path | None, config_path: Path | None, namespace: str
) -> Iterator[ImageClient]:
    from snapfs.service.metadata_client import ImageClient

    settings = resolve(config_path, address=address).config
    with ImageClient(settings.address, namespace, timeout_s=settings.timeouts.call_s) as client:
        yield client


@contextmanager
def _progress() -> Iterator[Callable[[Progress], None]]:
    """Show a bar for each blob and layer, on a terminal; elsewhere nothing."""
    with bars() as tell:

        def report(step: Progress) -> None:
            if step.step != "done":
                text = f"{step.step:6} {step.what[:_SHORT_DIGEST]}"
                tell(text, step.done_bytes, step.total_bytes)

        yield report


def _shape(it: ImageRecord) -> dict[str, Any]:
    return {
        "name": it.name,
        "digest": it.digest,
        "media_type": it.media_type,
        "platform": it.platform,
        "size_bytes": it.size_bytes,
        "snapshot": it.snapshot or None,
        "labels": dict(it.labels),
        "created": output.iso(it.created_ns),
        "updated": output.iso(it.updated_ns),
        "layers": [_layer_shape(layer) for layer in it.layers],
    }


def _layer_shape(layer: Any) -> dict[str, Any]:
    return {
        "digest": layer.digest,
        "size_bytes": layer.size_bytes,
        "diff_id": layer.diff_id,
        "snapshot": layer.snapshot,
        "created_by": layer.created_by,
    }
