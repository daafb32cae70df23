"""A service that ends itself, as a kill -9 would, at a moment of a change of a volume.

The test writes the name of a moment into the file that ORDER names; a service that comes to it
removes the file and dies. Moments of replacing a working copy:

    prepared   the new one is made
    unbound    the old one is unmounted
    recorded   the transaction is durable
    bound      the new one is mounted
    discarded  the old one is removed

and of taking a snapshot the steps of copying, `copy.made` to `copy.recorded`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from functools import wraps
from pathlib import Path
from typing import Any

from tests.support.daemon import RunningDaemon

ORDER = "DIES_AT"
_CODE = (
    "import sys; sys.path.insert(0, {!r}); from tests.support import dying_service as it; it.main()"
)

REPLACING = ("prepared", "unbound", "recorded", "bound", "discarded")
COPYING = ("copy.made", "copy.warm", "copy.frozen", "copy.copied", "copy.durable", "copy.recorded")


class DyingService(RunningDaemon):
    """A service that dies when it is told, in a call."""

    def __init__(self, base: Path) -> None:
        self._order = base / "order"
        super().__init__(base, environ={ORDER: str(self._order)})

    def command(self) -> list[str]:
        code = _CODE.format(str(Path(__file__).parents[2]))
        return [sys.executable, "-P", "-c", code, *super().command()[1:]]

    def dies_at(self, moment: str, *arguments: str) -> None:
        """Run a command in which the service dies, and wait until it has."""
        self._order.write_text(moment)
        done = self.run(*arguments, check=False)
        assert not self._order.exists(), f"{moment} did not come: {done.output}"
        assert done.exit_code == 1
        assert self.process is not None
        assert self.process.wait(20) == -signal.SIGKILL


def main() -> None:
    """Be a service."""
    from snapfs.cli.main import cli
    from snapfs.snapshots.copying import LayerCopier
    from snapfs.volumes import mounting, replacing
    from snapfs.volumes.common import Common
    from snapfs.volumes.data import VolumeData

    VolumeData.prepare = _dying("prepared", VolumeData.prepare)  # type: ignore[method-assign]
    replacing._unbind = _dying("unbound", replacing._unbind)
    Common.update = _dying("recorded", Common.update)  # type: ignore[method-assign]
    mounting.bind = _dying("bound", mounting.bind)
    VolumeData.discard = _dying("discarded", VolumeData.discard)  # type: ignore[method-assign]
    LayerCopier.__init__ = _stepping(LayerCopier.__init__)  # type: ignore[method-assign]
    cli(sys.argv[1:], prog_name="snapfs")


def _stepping(initialise: Callable[..., None]) -> Callable[..., None]:
    @wraps(initialise)
    def wrapped(self: object, *args: Any, **kwargs: Any) -> None:
        initialise(self, *args, **{**kwargs, "steps": _die_if_told})

    return wrapped


def _dying(moment: str, method: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(method)
    def wrapped(*args: Any, **kwargs: Any) -> Any:
        result = method(*args, **kwargs)
        _die_if_told(moment)
        return result

    return wrapped


def _die_if_told(moment: str) -> None:
    order = Path(os.environ[ORDER])
    if order.exists() and order.read_text() == moment:
        order.unlink()
        os.kill(os.getpid(), signal.SIGKILL)
