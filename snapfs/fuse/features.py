"""What a mount can do beyond plain pyfuse3, and why it cannot do the rest."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.fuse import channel
from snapfs.fuse.handover import WANTED_NO_OPEN, WANTED_PASSTHROUGH, Init, InitRequest
from snapfs.fuse.modes import GOES_WITHOUT


@dataclass(frozen=True, slots=True)
class Feature:
    """One ability; `reason` says why it is off."""

    name: str
    reason: str = ""

    @property
    def on(self) -> bool:
        return not self.reason


_NEGOTIATED = {
    "passthrough": (Init.PASSTHROUGH, "Linux 6.9"),
    "shared mappings of direct files": (Init.DIRECT_IO_ALLOW_MMAP, "Linux 6.6"),
    "no-open": (Init.NO_OPEN_SUPPORT, "Linux 3.16"),
    "no-opendir": (Init.NO_OPENDIR_SUPPORT, "Linux 5.1"),
    "plain listings": (Init.READDIRPLUS_AUTO, "Linux 3.9"),
}
"""By name: the flag of INIT, and what first offered it. All need the channel too."""


def features(init: InitRequest, wanted: Init) -> tuple[Feature, ...]:
    """List what a mount can do that was offered `init` and got what it wanted of it."""
    known = WANTED_PASSTHROUGH | WANTED_NO_OPEN
    return (
        Feature("channel", channel.why_not()),
        *(
            Feature(name, _why_off(init, wanted, flag, since))
            for name, (flag, since) in _NEGOTIATED.items()
            if flag in known
        ),
    )


def _why_off(init: InitRequest, wanted: Init, flag: Init, since: str) -> str:
    if not channel.loaded():
        return "the channel is off"
    if flag not in wanted:
        return GOES_WITHOUT
    return "" if flag in init.offered else f"the kernel does not offer it; {since} does"
