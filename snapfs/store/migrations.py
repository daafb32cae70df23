"""Bringing a store of an older format to the present one, before it is opened for writing.

A step takes the store from one version to the next. It works on the bare environment, since the
schema of this program is not the one it finds. All steps and the new version are one transaction:
a store is of the old format or of the new one, also after a crash.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TypeAlias

import lmdb

from snapfs.model import FailedPrecondition
from snapfs.store import faults, readertable, schema
from snapfs.store.environment import Txn
from snapfs.store.schema import Sub

Step: TypeAlias = Callable[[lmdb.Environment, Txn], None]

STEPS: Mapping[int, Step] = {}
"""By the version they start from; format 1 is the first, so there is none yet."""

_MAX_DBS = 64


def run(
    path: Path,
    found: int,
    map_size_bytes: int,
    *,
    steps: Mapping[int, Step] = STEPS,
    target: int = schema.FORMAT,
) -> None:
    """Migrate the sound store in `path` from version `found` to `target`; durable on return.

    Does nothing when it is there already. Raises FailedPrecondition when a step is missing. The
    map grows as it must.
    """
    missing = [version for version in range(found, target) if version not in steps]
    if missing:
        raise FailedPrecondition(
            f"store {path} is of format {found}, which this snapfs cannot bring to {target}; "
            "use an older snapfs first"
        )
    if found < target:
        with faults.translated(path):
            _migrate(path, map_size_bytes, [steps[v] for v in range(found, target)], target)


def _migrate(path: Path, map_size_bytes: int, steps: list[Step], target: int) -> None:
    readertable.reserve(path)
    env = lmdb.open(str(path), map_size=map_size_bytes, create=False, max_dbs=_MAX_DBS)
    try:
        while True:
            try:
                _apply(env, steps, target)
            except lmdb.MapFullError:
                env.set_mapsize(env.info()["map_size"] * 2)
            else:
                return
    finally:
        env.close()


def _apply(env: lmdb.Environment, steps: list[Step], target: int) -> None:
    with env.begin(write=True) as txn:
        for step in steps:
            step(env, txn)
        key = schema.FORMAT_KEY
        sys = env.open_db(Sub.SYS.value, txn=txn, create=False)
        txn.put(key, schema.seal(key, schema.format_payload(target)), db=sys)
