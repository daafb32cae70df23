"""Names with a time history; see docs/anchors.md.

`Anchors` is for programs; `reading`, `writing` and `merging` are the same as functions of a
transaction, for rooms whose own changes write anchors. `TABLES` is what the store must know,
`CHECKS` what verifies it.
"""

from snapfs.anchors.anchors import Anchors, Expired
from snapfs.anchors.checking import CHECKS
from snapfs.anchors.entries import Deleted, Entry, Put
from snapfs.anchors.facts import Fact, History, Key, Ref, parse_ref
from snapfs.anchors.merging import Merged
from snapfs.anchors.schema import FACTS, TABLES, TARGET_EDGE
from snapfs.anchors.writing import Statement

__all__ = [
    "CHECKS",
    "FACTS",
    "TABLES",
    "TARGET_EDGE",
    "Anchors",
    "Deleted",
    "Entry",
    "Expired",
    "Fact",
    "History",
    "Key",
    "Merged",
    "Put",
    "Ref",
    "Statement",
    "parse_ref",
]
