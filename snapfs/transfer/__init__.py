"""Layers that travel: what a layer is as a manifest and chunks, sending one, receiving one.

`Source` and `Sink` know nothing of hosts or connections: what carries manifest and chunks from one
to the other is somebody else's. See docs/sync.md.
"""

from snapfs.transfer.manifest import Digest
from snapfs.transfer.packing import Packed
from snapfs.transfer.receiving import PREFIX, Landing, Sink
from snapfs.transfer.sending import Offer, Source
from snapfs.transfer.stock import Stock

__all__ = ["PREFIX", "Digest", "Landing", "Offer", "Packed", "Sink", "Source", "Stock"]
