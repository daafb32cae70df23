"""Making derived rows anew when a table's indexes or references are not those last stored."""

from __future__ import annotations

from typing import Any

import lmdb

from snapfs.model import FailedPrecondition
from snapfs.store import faults, schema, tables
from snapfs.store.environment import Environment
from snapfs.store.keeping import Keeper
from snapfs.store.schema import FORWARD, REVERSE, Sub
from snapfs.store.tables import Registry, Table


def run(environment: Environment, registry: Registry) -> None:
    """Bring what is stored in line with the tables of `registry`, durably, before updates begin.

    Raises FailedPrecondition when there are rows of a table that the registry lacks: their indexes
    and references could not be kept.
    """
    with faults.translated(environment.path):
        while True:
            try:
                _attempt(environment, registry)
            except lmdb.MapFullError:
                environment.resize(environment.map_size_bytes * 2)
            else:
                return


def _attempt(environment: Environment, registry: Registry) -> None:
    txn = environment.begin_write()
    try:
        if _Reshaper(txn, environment.dbs, registry).reshape(environment):
            txn.commit()
    finally:
        txn.abort()


class _Reshaper(Keeper):
    def reshape(self, environment: Environment) -> bool:
        """Do what is to be done and say whether anything was."""
        stored = {shape.tag: shape for shape in self.stored_shapes()}
        wanted = {shape.tag: shape for shape in self.registry.shapes()}
        for tag, shape in stored.items():
            if tag not in wanted and self._has_rows(tag):
                raise FailedPrecondition(
                    f"store {environment.path} has rows of table {shape.name} ({tag}), which this "
                    "program does not know; use the program that made them"
                )
        new = stored | wanted
        if new == stored:
            return False
        for tag in wanted:
            if tag not in stored:
                continue
            if stored[tag].fold_case != wanted[tag].fold_case:
                self._rename(self.registry.by_tag[tag])
            if _derived(stored[tag]) != _derived(wanted[tag]):
                self._rebuild(self.registry.by_tag[tag])
        self._put_sys(schema.TABLES_KEY, tables.encode_shapes([new[tag] for tag in sorted(new)]))
        return True

    def _has_rows(self, tag: int) -> bool:
        return next(self._walk(Sub.NAME, schema.U16.pack(tag), batch=1), None) is not None

    def _rename(self, table: Table[Any]) -> None:
        """Make the table's names anew; raise AlreadyExists when two rows would have one."""
        oids = []
        for key, value in self._walk(Sub.NAME, schema.U16.pack(table.tag)):
            oids.append(schema.number(value))
            self._remove(Sub.NAME, key)
        for oid in oids:
            row = self.by_oid(table, oid)
            if row is None:
                continue  # a broken name: check() reports it
            self._check_name_free(table, row.scope, row.name)
            self._change_name(table, None, row)

    def _rebuild(self, table: Table[Any]) -> None:
        for key, _ in self._walk(Sub.IDX, schema.U16.pack(table.tag)):
            self._remove(Sub.IDX, key)
        for _, value in self._walk(Sub.NAME, schema.U16.pack(table.tag)):
            row = self.by_oid(table, schema.number(value))
            if row is None:
                continue  # a broken name: check() reports it
            values = table.index_values(row.body)
            self._check_unique(table, row, values)
            self._check_targets(table, row)
            self._change_indexes(table, row, set(), values)
            self._drop_edges(row.oid)
            self._change_edges(row.oid, {}, table.edges(row.body))

    def _drop_edges(self, oid: int) -> None:
        for key, _ in self._walk(Sub.EDGE, schema.edge_prefix(FORWARD, oid)):
            _, _, kind, target = schema.split_edge_key(key)
            self._remove(Sub.EDGE, key)
            self._remove(Sub.EDGE, schema.edge_key(REVERSE, target, kind, oid))


def _derived(shape: tables.Shape) -> tuple[object, object]:
    return shape.indexes, shape.references
