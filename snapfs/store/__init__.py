"""A durable transactional object store on LMDB; see docs/metastore.md.

Tables declare their bodies, indexes and references; the store keeps the rest. One process writes
(`Store`), any number read (`ReadStore`).
"""

from snapfs.store.checking import Problem
from snapfs.store.events import Event, RowCreated, RowDeleted, RowUpdated, UpdateCommitted
from snapfs.store.finding import (
    All,
    By,
    ByCustom,
    ByCustomPrefix,
    ByName,
    ByNamePrefix,
    ByOid,
    ByValue,
    ByValuePrefix,
    Or,
    custom,
)
from snapfs.store.reading import ReadTx
from snapfs.store.readstore import ReadStore
from snapfs.store.store import Store
from snapfs.store.tables import Index, InvalidFindBy, Reference, Row, Table
from snapfs.store.views import Stats
from snapfs.store.writing import WriteTx

__all__ = [
    "All",
    "By",
    "ByCustom",
    "ByCustomPrefix",
    "ByName",
    "ByNamePrefix",
    "ByOid",
    "ByValue",
    "ByValuePrefix",
    "Event",
    "Index",
    "InvalidFindBy",
    "Or",
    "Problem",
    "ReadStore",
    "ReadTx",
    "Reference",
    "Row",
    "RowCreated",
    "RowDeleted",
    "RowUpdated",
    "Stats",
    "Store",
    "Table",
    "UpdateCommitted",
    "WriteTx",
    "custom",
]
