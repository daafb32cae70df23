"""Volume sets that travel between stores: remotes, three-way merge, push, pull, sync.

The rules are pure: `versions`, `threeway`, `merging`, `lineage`, `planning`. `looking` and
`applying` are functions of a transaction. `Replica` is a root as a `peer.Peer`, `Engine` runs syncs
of it with another peer, wherever that is. See docs/sync.md.
"""

from snapfs.sync.schema import TABLES

__all__ = ["TABLES"]
