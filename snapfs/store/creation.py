"""Making a new, empty store so that it is there whole or not at all.

It is made in a directory beside its place and its data file is renamed into place, so that a
process that dies here leaves nothing that looks like a store.
"""

from __future__ import annotations

import os
import secrets
import shutil
import tempfile
from pathlib import Path

import lmdb

from snapfs.store import faults, inspection, schema, space, tables
from snapfs.store.schema import Sub
from snapfs.store.tables import Registry

_FIRST_MAP_BYTES = 1 << 20


def create(path: Path, registry: Registry, now_ns: int) -> None:
    """Make an empty store in the directory `path`, durably; the caller holds the writer's lock."""
    with faults.translated(path):
        for leftover in path.glob(inspection.NEW_PREFIX + "*"):
            shutil.rmtree(leftover)
        new = Path(tempfile.mkdtemp(prefix=inspection.NEW_PREFIX, dir=path))
        _fill(new, registry, now_ns)
        (new / inspection.DATA_FILE).rename(path / inspection.DATA_FILE)
        sync_directory(path)
        shutil.rmtree(new)


def make_directory(path: Path) -> None:
    """Make the store's directory, private to its owner, if it is not there."""
    with faults.translated(path):
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        space.write_in_place(path)
        sync_directory(path.parent)


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _fill(new: Path, registry: Registry, now_ns: int) -> None:
    env = lmdb.open(
        str(new), map_size=_FIRST_MAP_BYTES, max_dbs=len(Sub), mode=0o600, lib_version=0
    )
    try:
        with env.begin(write=True) as txn:
            for sub in Sub:
                env.open_db(sub.value, txn=txn)
            sys = env.open_db(Sub.SYS.value, txn=txn)
            for key, payload in _first_values(registry, now_ns).items():
                txn.put(key, schema.seal(key, payload), db=sys)
    finally:
        env.close()


def _first_values(registry: Registry, now_ns: int) -> dict[bytes, bytes]:
    zero = schema.U64.pack(0)
    return {
        schema.FORMAT_KEY: schema.format_payload(schema.FORMAT),
        schema.UUID_KEY: secrets.token_bytes(16),
        schema.CREATED_KEY: schema.U64.pack(now_ns),
        schema.REVISION_KEY: zero,
        schema.COMPACTED_KEY: zero,
        schema.OID_KEY: zero,
        schema.INTENT_KEY: zero,
        schema.SCOPES_KEY: zero,
        schema.TABLES_KEY: tables.encode_shapes(registry.shapes()),
    }
