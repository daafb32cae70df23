"""What a mount can do beyond plain pyfuse3, and why it cannot do the rest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from snapfs.fuse import channel
from snapfs.fuse.handover import Init, InitRequest
from snapfs.fuse.modes import GOES_WITHOUT


@dataclass(frozen=True, slots=True)
class Feature:
    """One ability; `reason` says why it is off."""

    name: str
    reason: str = ""

    @property
    def on(self) -> bool:
        return not self.reason


class _Negotiated(NamedTuple):
    """An ability that is a flag of INIT."""

    flag: Init
    since: str
    """What first offered it."""
    by_channel: bool = False
    """It is of no use without the channel."""


_NEGOTIATED = {
    "passthrough": _Negotiated(Init.PASSTHROUGH, "Linux 6.9", by_channel=True),
    "shared mappings of direct files": _Negotiated(
        Init.DIRECT_IO_ALLOW_MMAP, "Linux 6.6", by_channel=True
    ),
    "no-open": _Negotiated(Init.NO_OPEN_SUPPORT, "Linux 3.16", by_channel=True),
    "no-opendir": _Negotiated(Init.NO_OPENDIR_SUPPORT, "Linux 5.1", by_channel=True),
    "POSIX ACLs": _Negotiated(Init.POSIX_ACL, "Linux 4.9"),
    "killpriv": _Negotiated(Init.HANDLE_KILLPRIV_V2, "Linux 5.11"),
    "resend": _Negotiated(Init.HAS_RESEND, "Linux 6.9"),
    "no opens by handle": _Negotiated(Init.NO_EXPORT_SUPPORT, "Linux 6.9"),
    "idmapped mounts": _Negotiated(Init.ALLOW_IDMAP, "Linux 6.12"),
}


def features(init: InitRequest, wanted: Init) -> tuple[Feature, ...]:
    """List what a mount can do that was offered `init` and got what it wanted of it."""
    return (
        Feature("channel", channel.why_not()),
        *(Feature(name, _why_off(init, wanted, it)) for name, it in _NEGOTIATED.items()),
    )


def _why_off(init: InitRequest, wanted: Init, it: _Negotiated) -> str:
    if it.by_channel and not channel.loaded():
        return "the channel is off"
    if it.flag not in wanted:
        return GOES_WITHOUT
    return "" if it.flag in init.offered else f"the kernel does not offer it; {it.since} does"
