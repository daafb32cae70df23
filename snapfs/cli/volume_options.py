"""Options that the commands on volumes and branches share."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click
from click.shell_completion import CompletionItem

from snapfs.cli.moments import MOMENT
from snapfs.cli.options import client_options, json_option, resolve
from snapfs.cli.people import me
from snapfs.model import SnapfsError

if TYPE_CHECKING:
    from snapfs.service.volumes_client import VolumesClient

F = TypeVar("F", bound=Callable[..., Any])

_COMPLETION_TIMEOUT_S = 1.0


class Reference(click.ParamType[str]):
    """A snapshot: an id, a short id, a branch, HEAD^, main~2, main@{TIME}."""

    name = "ref"

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        from snapfs.volumes.refs import with_times

        def moment(text: str) -> int:
            return text if text.isdigit() else MOMENT.convert(text, param, ctx)  # type: ignore[return-value]

        return with_times(value, moment)


class VolumeName(click.ParamType[str]):
    """A volume; completion asks the service, briefly and silently."""

    name = "name"

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        from snapfs.service.volumes_client import VolumesClient

        try:
            found = resolve(ctx.params.get("config_path"), address=ctx.params.get("address"))
            with VolumesClient(found.config.address, timeout_s=_COMPLETION_TIMEOUT_S) as client:
                names = [it.volume.name for it in client.walk()]
        except SnapfsError:
            return []
        return [CompletionItem(name) for name in names if name.startswith(incomplete)]


REF = Reference()
VOLUME = VolumeName()


def reading(command: F) -> F:
    """Add the options of a command that prints something."""
    return client_options(json_option(command))


def manner_options(command: F) -> F:
    """Add what is done with who uses a volume while it is replaced."""
    signal = click.option(
        "--signal",
        "signal_name",
        default="",
        metavar="SIGNAL",
        help="Send this to who uses it, such as TERM, and wait until they have ended.",
    )
    pause = click.option(
        "--pause",
        is_flag=True,
        help="Freeze the control groups of who uses it meanwhile.",
    )
    return signal(pause(command))


@contextmanager
def connect(address: Path | None, config_path: Path | None) -> Iterator[VolumesClient]:
    """Open the client of the service that the configuration names."""
    from snapfs.service.volumes_client import VolumesClient

    settings = resolve(config_path, address=address).config
    timeout_s = settings.timeouts.call_s
    with VolumesClient(settings.address, author=me(), timeout_s=timeout_s) as client:
        yield client
