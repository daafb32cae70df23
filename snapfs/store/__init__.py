"""A durable transactional object store on LMDB; see docs/metastore.md.

Tables declare their bodies, indexes and references; the store keeps the rest. One process writes
(`Store`), any number read (`ReadStore`).

Each name is imported when it is asked for: a worker that others wait for needs few of them.
"""

from typing import TYPE_CHECKING

from snapfs.loading import on_demand

if TYPE_CHECKING:
    from snapfs.store.batch import Done, Failed, Outcome
    from snapfs.store.changes import Change
    from snapfs.store.checking import Problem
    from snapfs.store.edges import EdgeSource, EdgeTable
    from snapfs.store.events import Event, RowCreated, RowDeleted, RowUpdated, UpdateCommitted
    from snapfs.store.feed import Overflow, WatchClosed
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
    from snapfs.store.proposer import LocalProposer, Proposer
    from snapfs.store.reading import ReadTx
    from snapfs.store.readstore import ReadStore
    from snapfs.store.restoring import Restored
    from snapfs.store.specifiers import Action, Specifier
    from snapfs.store.store import Store
    from snapfs.store.stream import Stream, saved
    from snapfs.store.tables import Index, InvalidFindBy, Reference, Row, Table
    from snapfs.store.views import Stats
    from snapfs.store.watchdog import Wedge
    from snapfs.store.watching import News, Watch
    from snapfs.store.writing import WriteTx
else:
    __getattr__ = on_demand(
        __name__,
        {
            "batch": "Done Failed Outcome",
            "changes": "Change",
            "checking": "Problem",
            "edges": "EdgeSource EdgeTable",
            "events": "Event RowCreated RowDeleted RowUpdated UpdateCommitted",
            "feed": "Overflow WatchClosed",
            "finding": "All By ByCustom ByCustomPrefix ByName ByNamePrefix ByOid "
            "ByValue ByValuePrefix Or custom",
            "proposer": "LocalProposer Proposer",
            "reading": "ReadTx",
            "readstore": "ReadStore",
            "restoring": "Restored",
            "specifiers": "Action Specifier",
            "store": "Store",
            "stream": "Stream saved",
            "tables": "Index InvalidFindBy Reference Row Table",
            "views": "Stats",
            "watchdog": "Wedge",
            "watching": "News Watch",
            "writing": "WriteTx",
        },
    )

__all__ = [
    "Action",
    "All",
    "By",
    "ByCustom",
    "ByCustomPrefix",
    "ByName",
    "ByNamePrefix",
    "ByOid",
    "ByValue",
    "ByValuePrefix",
    "Change",
    "Done",
    "EdgeSource",
    "EdgeTable",
    "Event",
    "Failed",
    "Index",
    "InvalidFindBy",
    "LocalProposer",
    "News",
    "Or",
    "Outcome",
    "Overflow",
    "Problem",
    "Proposer",
    "ReadStore",
    "ReadTx",
    "Reference",
    "Restored",
    "Row",
    "RowCreated",
    "RowDeleted",
    "RowUpdated",
    "Specifier",
    "Stats",
    "Store",
    "Stream",
    "Table",
    "UpdateCommitted",
    "Watch",
    "WatchClosed",
    "Wedge",
    "WriteTx",
    "custom",
    "saved",
]
