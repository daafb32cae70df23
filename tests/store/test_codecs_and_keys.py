"""Every codec gives back what it was given, and byte order of keys is the order they promise."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.model import DataLoss, InvalidArgument, TooLarge
from snapfs.store import Row, events, schema, tables
from snapfs.store.events import Stored
from snapfs.store.schema import Sub
from snapfs.store.tables import Registry
from tests.store.kit import DOCS, TABLES, Doc

u16 = st.integers(0, 2**16 - 1)
u32 = st.integers(0, 2**32 - 1)
u64 = st.integers(0, 2**64 - 1)
raw = st.binary(max_size=600) | st.builds(
    lambda head, tail: head * 420 + tail, st.binary(min_size=1, max_size=1), st.binary(max_size=9)
)
names = st.text(st.characters(codec="utf-8"), min_size=1, max_size=500)
docs = st.builds(
    Doc, text=st.text(st.characters(codec="utf-8")), parent=u64, tags=st.lists(names).map(tuple)
)
rows = st.builds(
    Row[Doc],
    table=st.just(DOCS.tag),
    oid=u64,
    scope=names,
    name=names,
    create_rev=u64,
    mod_rev=u64,
    spec_rev=u64,
    created_ns=st.integers(-(2**63), 2**63),
    updated_ns=u64,
    expires_ns=st.none() | u64,
    body=docs,
)


@given(raw, st.binary())
def test_sealed_value_comes_back(key: bytes, payload: bytes) -> None:
    assert schema.unseal(Sub.SYS, key, schema.seal(key, payload)) == payload


@given(st.binary(), st.binary(), st.data())
def test_sealed_value_shows_every_changed_bit(
    key: bytes, payload: bytes, data: st.DataObject
) -> None:
    value = bytearray(schema.seal(key, payload))
    value[data.draw(st.integers(0, len(value) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    with pytest.raises(DataLoss, match="checksum"):
        schema.unseal(Sub.SYS, key, bytes(value))


def test_sealed_value_belongs_to_its_key() -> None:
    with pytest.raises(DataLoss):
        schema.unseal(Sub.INTENT, b"other", schema.seal(b"key", b"payload"))


@given(raw)
def test_fitted_value_tells_whether_it_was_cut_and_fits_a_key(value: bytes) -> None:
    fitted = schema.fit(value)
    assert schema.is_cut(fitted) == (len(value) > schema.NAME_BYTES)
    assert len(schema.index_key(1, 1, 1, value, 1)) <= 511
    assert len(schema.name_key(1, 1, value)) <= 511


@given(raw, raw)
def test_fitted_values_are_equal_only_for_equal_values(one: bytes, other: bytes) -> None:
    assert (schema.fit(one) == schema.fit(other)) == (one == other)


@given(raw, raw)
def test_fitted_values_keep_byte_order_unless_both_are_long_with_one_head(
    one: bytes, other: bytes
) -> None:
    if one[: schema.NAME_BYTES] != other[: schema.NAME_BYTES] or len(one) <= schema.NAME_BYTES:
        assert (schema.fit(one) < schema.fit(other)) == (one < other)


@given(u16, u32, raw)
def test_name_key_comes_apart(table: int, scope: int, name: bytes) -> None:
    key = schema.name_key(table, scope, name)
    assert schema.split_name_key(key) == (table, scope, schema.fit(name))


@given(u16, st.integers(0, 255), u32, raw, u64)
def test_index_key_comes_apart(table: int, index: int, scope: int, value: bytes, oid: int) -> None:
    key = schema.index_key(table, index, scope, value, oid)
    assert schema.split_index_key(key) == (table, index, scope, schema.fit(value), oid)


@given(st.tuples(st.integers(0, 1), u64, u16, u64), st.tuples(st.integers(0, 1), u64, u16, u64))
def test_edge_keys_come_apart_and_sort_as_numbers(
    one: tuple[int, int, int, int], other: tuple[int, int, int, int]
) -> None:
    assert schema.split_edge_key(schema.edge_key(*one)) == one
    assert (schema.edge_key(*one) < schema.edge_key(*other)) == (one < other)


@given(st.tuples(u64, u32), st.tuples(u64, u32))
def test_log_keys_come_apart_and_sort_as_numbers(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert schema.split_log_key(schema.log_key(*one)) == one
    assert (schema.log_key(*one) < schema.log_key(*other)) == (one < other)


@given(st.tuples(u64, u64), st.tuples(u64, u64))
def test_expiry_keys_come_apart_and_sort_by_time(
    one: tuple[int, int], other: tuple[int, int]
) -> None:
    assert schema.split_expiry_key(schema.expiry_key(*one)) == one
    assert (schema.expiry_key(*one) < schema.expiry_key(*other)) == (one < other)


@given(u32)
def test_format_comes_back_and_foreign_bytes_are_none(version: int) -> None:
    assert schema.parse_format(schema.format_payload(version)) == version
    assert schema.parse_format(b"else" + schema.format_payload(version)) is None
    assert schema.parse_format(None) is None


@given(rows)
def test_row_comes_back(row: Row[Doc]) -> None:
    tag, packed = tables.decode_tag(row.oid, DOCS.encode(row))
    assert tag == DOCS.tag
    assert tables.decode_row(DOCS, row.oid, packed) == row


@given(rows, st.data())
def test_row_shows_every_changed_byte(row: Row[Doc], data: st.DataObject) -> None:
    value = bytearray(DOCS.encode(row))
    value[data.draw(st.integers(0, len(value) - 1))] ^= data.draw(st.integers(1, 255))
    with pytest.raises(DataLoss):
        tables.decode_tag(row.oid, bytes(value))


@given(rows, st.sampled_from([events.CREATE, events.UPDATE, events.DELETE, events.COMMIT]))
def test_event_comes_back(row: Row[Doc], kind: int) -> None:
    value = DOCS.encode(row)
    stored = Stored(kind, row.oid, new=value, old=value)
    key = schema.log_key(7, 0)
    assert events.decode_stored(key, events.encode(key, stored)) == stored
    event = events.decode(Registry(TABLES), key, events.encode(key, stored))
    assert event is not None
    assert event.revision == 7
    assert getattr(event, "row", row) == row


def test_event_of_an_unknown_table_is_left_out() -> None:
    row = Row(1, 1, "s", "n", 1, 1, 1, 0, 0, None, Doc())
    key = schema.log_key(1, 0)
    packed = events.encode(key, Stored(events.CREATE, 1, new=DOCS.encode(row)))
    assert events.decode(Registry([]), key, packed) is None


@given(st.lists(st.builds(tables.Shape, u16, names, st.just([("i", True)]), st.just([(1, False)]))))
def test_shapes_come_back(shapes: list[tables.Shape]) -> None:
    assert tables.decode_shapes(tables.encode_shapes(shapes)) == shapes


def test_row_larger_than_the_limit_is_too_large() -> None:
    row = Row(1, 1, "s", "n", 1, 1, 1, 0, 0, None, Doc("x" * tables.MAX_ROW_BYTES))
    with pytest.raises(TooLarge, match="'n' takes"):
        DOCS.encode(row)


def test_tables_with_one_tag_are_refused() -> None:
    with pytest.raises(InvalidArgument, match="same tag"):
        Registry([DOCS, tables.Table(1, "other", Doc)])
