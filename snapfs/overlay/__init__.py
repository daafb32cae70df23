"""The rules of a merged tree: no pyfuse3, no gRPC, no LMDB.

Layers on disk are as kernel overlayfs has them; see docs/overlay.md. A `Tree` merges them, `Inodes`
holds the nodes of all trees of one mount.
"""

from ._names import Handed, Index, Places
from .check import check_upper
from .copyup import CopyUp
from .layercopy import LayerCopy, has_changed
from .metacopying import Completion
from .node import Dir, Inodes, Node
from .owners import Owners
from .sealing import Atime, is_sealed
from .settle import is_settled, settle_offline
from .syscalls import RENAME_EXCHANGE, RENAME_NOREPLACE, RENAME_WHITEOUT
from .tree import Tree
from .types import Attributes, DirEntry, Listed, SetAttr, TreeSpec

__all__ = [
    "RENAME_EXCHANGE",
    "RENAME_NOREPLACE",
    "RENAME_WHITEOUT",
    "Atime",
    "Attributes",
    "Completion",
    "CopyUp",
    "Dir",
    "DirEntry",
    "Handed",
    "Index",
    "Inodes",
    "LayerCopy",
    "Listed",
    "Node",
    "Owners",
    "Places",
    "SetAttr",
    "Tree",
    "TreeSpec",
    "check_upper",
    "has_changed",
    "is_sealed",
    "is_settled",
    "settle_offline",
]
