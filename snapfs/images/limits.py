"""How much a layer may unpack to, so that a small file cannot fill a disk."""

from __future__ import annotations

from dataclasses import dataclass

from snapfs.model import TooLarge


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one layer."""

    max_bytes: int = 64 << 30
    max_entries: int = 5_000_000
    max_ratio: int = 1000
    """Unpacked over packed bytes, beyond `free_bytes`."""
    free_bytes: int = 1 << 30
    """So much may come out of however little."""

    def check(self, packed_bytes: int, unpacked_bytes: int, entries: int, what: str) -> None:
        """Raise TooLarge when a layer has gone over a bound."""
        if unpacked_bytes > self.max_bytes:
            raise TooLarge(f"{what} unpacks to over {self.max_bytes} bytes")
        if entries > self.max_entries:
            raise TooLarge(f"{what} has over {self.max_entries} files")
        if unpacked_bytes > self.free_bytes and unpacked_bytes > packed_bytes * self.max_ratio:
            raise TooLarge(
                f"{what} unpacks to over {self.max_ratio} times its size; it is not unpacked"
            )
