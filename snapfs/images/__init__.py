"""Images: archives in, snapshots and content out; see docs/images.md."""

from snapfs.images.importing import Importer, Wanted
from snapfs.images.limits import Limits
from snapfs.images.manifests import Platform, parse_platform
from snapfs.images.progress import Progress

__all__ = ["Importer", "Limits", "Platform", "Progress", "Wanted", "parse_platform"]
