"""`snapfs remote`: add, list, remove; `snapfs remote-serve`, which ssh runs at the other end."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from snapfs.cli import output
from snapfs.cli.options import AbsolutePath, client_options, config_option, json_option, resolve

if TYPE_CHECKING:
    from snapfs.service.remote_client import RemoteClient
    from snapfs.sync.remotes import Remote


@contextmanager
def connect(address: Path | None, config_path: Path | None) -> Iterator[RemoteClient]:
    """Open the remotes' client of the service that the configuration names."""
    from snapfs.service.remote_client import RemoteClient

    settings = resolve(config_path, address=address).config
    with RemoteClient(settings.address, timeout_s=settings.timeouts.call_s) as client:
        yield client


@click.group()
def remote() -> None:
    """Other hosts that volumes are pushed to, pulled from and synced with.

    \b
    Example:
      snapfs remote add backup ssh://backup.example.org/var/lib/snapfs
      snapfs push db backup
    """


@remote.command()
@client_options
@json_option
@click.argument("name")
@click.argument("url", metavar="URL")
def add(address: Path | None, config_path: Path | None, as_json: bool, name: str, url: str) -> None:
    """Call the snapfs at URL by NAME.

    URL is ssh://[USER@]HOST[:PORT][/ROOT], unix:///PATH (a socket or a root), or https://HOST:PORT.

    \b
    Example:
      snapfs remote add backup ssh://backup.example.org/var/lib/snapfs
    """
    with connect(address, config_path) as client:
        added = client.add(name, url)
    if as_json:
        output.print_json(_shape(added))
    else:
        click.echo(output.printable(f"remote {added.name} is {added.url}"))


@remote.command("list")
@client_options
@json_option
def list_(address: Path | None, config_path: Path | None, as_json: bool) -> None:
    """List remotes.

    \b
    Example:
      snapfs remote list
    """
    with connect(address, config_path) as client:
        found = client.remotes()
    if as_json:
        output.print_json([_shape(it) for it in found])
        return
    rows = [
        (it.name, it.url, it.store or "(not asked yet)", output.when(it.added_ns)) for it in found
    ]
    output.table(("NAME", "URL", "STORE", "ADDED"), rows)


@remote.command()
@client_options
@click.argument("name")
def remove(address: Path | None, config_path: Path | None, name: str) -> None:
    """Forget a remote; volumes stay as they are.

    \b
    Example:
      snapfs remote remove backup
    """
    with connect(address, config_path) as client:
        client.remove(name)


@click.command("remote-serve")
@config_option
@click.option("--stdio", is_flag=True, help="Over standard input and output.  [required]")
@click.argument("root", type=AbsolutePath(), required=False)
def remote_serve(config_path: Path | None, stdio: bool, root: Path | None) -> None:
    """Let another host sync with the service here, or that of ROOT; ssh runs this.

    It can do nothing else, so it may be the forced command of a key (sshd(8), authorized_keys).

    \b
    Example:
      snapfs remote-serve --stdio /var/lib/snapfs
    """
    if not stdio:
        raise click.UsageError("give --stdio; there is no other way yet")
    from snapfs.service import exchanging
    from snapfs.service import stdio as joined

    settings = resolve(config_path).config
    where = root or settings.root
    joined.join(exchanging.address_of(where), 0, 1)


def _shape(it: Remote) -> dict[str, Any]:
    return {
        "name": it.name,
        "url": it.url,
        "store": it.store or None,
        "added": output.iso(it.added_ns),
    }
