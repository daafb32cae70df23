"""Options that commands share, and the connection to the service."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from snapfs.model import InvalidArgument, SnapfsError

if TYPE_CHECKING:
    from snapfs.config import Resolved
    from snapfs.service.client import Client

F = TypeVar("F", bound=Callable[..., Any])


class AbsolutePath(click.Path):
    """A path made absolute against the working directory; symbolic links stay.

    An empty one, as of an unset variable, is wrong usage: it would mean the working directory.
    """

    def convert(self, value: Any, param: Any, ctx: Any) -> Path:
        if not os.fspath(value):
            self.fail("the path is empty; give one, or leave the option out", param, ctx)
        return Path(os.path.abspath(os.fsdecode(super().convert(value, param, ctx))))


config_option = click.option(
    "--config",
    "config_path",
    type=AbsolutePath(),
    metavar="FILE",
    help="Configuration file.  [default: /etc/snapfs/config.toml]",
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON for programs.")
_address_option = click.option(
    "--address",
    type=AbsolutePath(),
    metavar="SOCKET",
    help="Socket of the service.  [default: from the configuration]",
)


class SnapshotName(click.ParamType[str]):
    """A key or name; completion asks the service, briefly and silently."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from snapfs.service.client import Client

        try:
            address = resolve(ctx.params.get("config_path"), address=ctx.params.get("address"))
            with Client(address.config.address, timeout_s=_COMPLETION_TIMEOUT_S) as client:
                names = [it.snapshot.name for it in client.list(())]
        except SnapfsError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


class Size(click.ParamType[int]):
    """A number of bytes, with a unit."""

    name = "size"

    def convert(self, value: Any, param: Any, ctx: Any) -> int:
        from snapfs.snapshots.quota import parse_size

        try:
            return parse_size(value)
        except InvalidArgument as error:
            self.fail(str(error), param, ctx)


SIZE = Size()
SNAPSHOT = SnapshotName()
_COMPLETION_TIMEOUT_S = 1.0


namespace_option = click.option(
    "-n",
    "--namespace",
    default="default",
    metavar="NAME",
    help="Namespace of images, leases and content.  [default: default]",
)


def client_options(command: F) -> F:
    """Add --address and --config to a command that talks to the service."""
    return _address_option(config_option(command))


def resolve(config_path: Path | None, **flags: object) -> Resolved:
    """Return the configuration in force for this command."""
    from snapfs import config

    return config.resolve(flags, path=config_path)


@contextmanager
def connect(address: Path | None, config_path: Path | None) -> Iterator[Client]:
    """Open the client of the service that the configuration names."""
    from snapfs.service.client import Client

    settings = resolve(config_path, address=address).config
    with Client(settings.address, timeout_s=settings.timeouts.call_s) as client:
        yield client


def parse_labels(pairs: tuple[str, ...]) -> dict[str, str]:
    """Read `KEY=VALUE` arguments; a missing `=` is wrong usage."""
    labels = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise click.UsageError(f"{pair!r} is not of the form KEY=VALUE")
        labels[key] = value
    return labels
