"""Images: archives in, snapshots and content out; see docs/images.md."""

from snapfs.images.catalog import Catalog, Described
from snapfs.images.committing import Committer, Statement
from snapfs.images.differ import UNCOMPRESSED, Asked, Contents, Differ
from snapfs.images.exporting import Exporter
from snapfs.images.importing import Importer, Wanted
from snapfs.images.limits import Limits
from snapfs.images.manifests import Platform, parse_platform
from snapfs.images.owncontents import OwnContents
from snapfs.images.packing import TAR_GZIP, Packed
from snapfs.images.progress import Progress
from snapfs.images.standing import clear_copies
from snapfs.images.unpacking import SNAPSHOTTER, clear_unpacked

__all__ = [
    "SNAPSHOTTER",
    "TAR_GZIP",
    "UNCOMPRESSED",
    "Asked",
    "Catalog",
    "Committer",
    "Contents",
    "Described",
    "Differ",
    "Exporter",
    "Importer",
    "Limits",
    "OwnContents",
    "Packed",
    "Platform",
    "Progress",
    "Statement",
    "Wanted",
    "clear_copies",
    "clear_unpacked",
    "parse_platform",
]
