"""Rows are found by every declared index, by prefixes and by any of several, each once."""

from __future__ import annotations

from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from snapfs.model import AlreadyExists, InvalidArgument
from snapfs.store import (
    All,
    By,
    ByCustom,
    ByCustomPrefix,
    ByName,
    ByNamePrefix,
    ByOid,
    ByValue,
    ByValuePrefix,
    Index,
    InvalidFindBy,
    Or,
    Row,
    Store,
    Table,
    WriteTx,
    custom,
)

SCOPE = "finders"


class Item(msgspec.Struct, frozen=True):
    kind: str = ""
    pairs: tuple[tuple[str, str], ...] = ()
    values: tuple[bytes, ...] = ()


ITEMS = Table(
    1,
    "item",
    Item,
    indexes=(
        Index("kind", lambda item: [item.kind.encode()]),
        custom(lambda item: item.pairs),
        Index("value", lambda item: item.values),
    ),
)
FOLDED = Table(2, "folded", Item, fold_case=True)
EXACT = Table(2, "folded", Item)


def names(store: Store, by: By) -> list[str]:
    with store.view() as tx:
        return [row.name for row in tx.select(ITEMS, by, scope=SCOPE)]


@pytest.fixture
def items(tmp_path: Path) -> Store:
    store = Store.open(tmp_path / "s", [ITEMS, FOLDED])
    store.update(_fill)
    return store


def _fill(tx: WriteTx) -> None:
    tx.create(ITEMS, SCOPE, "ant", Item("insect", (("a", "1"), ("a", "12"), ("b", "1"))))
    tx.create(ITEMS, SCOPE, "bee", Item("insect", (("a", "2"),)))
    tx.create(ITEMS, SCOPE, "bear", Item("insectivore"))
    tx.create(ITEMS, "other", "bee", Item("insect", (("a", "1"),)))


@pytest.mark.parametrize(
    ("by", "found"),
    [
        (All(), ["ant", "bear", "bee"]),
        (ByOid(2), ["bee"]),
        (ByOid(4), []),
        (ByOid(99), []),
        (ByName("ant"), ["ant"]),
        (ByName("ANT"), []),
        (ByNamePrefix("be"), ["bear", "bee"]),
        (ByValue("kind", b"insect"), ["ant", "bee"]),
        (ByValuePrefix("kind", b"insect"), ["ant", "bee", "bear"]),
        (ByCustom("a", "1"), ["ant"]),
        (ByCustom("a", ""), []),
        (ByCustomPrefix("a", ""), ["ant", "bee"]),
        (ByCustomPrefix("a", "1"), ["ant"]),
        (ByCustomPrefix("", ""), []),
        (Or(()), []),
        (Or((ByName("bee"), ByValue("kind", b"insect"), ByOid(2))), ["bee", "ant"]),
        (Or((Or((ByOid(1),)), All())), ["ant", "bear", "bee"]),
    ],
)
def test_each_finder_finds_its_rows_of_the_scope_once(
    items: Store, by: By, found: list[str]
) -> None:
    assert names(items, by) == found
    items.close()


@pytest.mark.parametrize("by", [ByValue("no", b""), ByValuePrefix("no", b""), ByCustom("a", "b")])
def test_an_index_that_the_table_lacks_is_refused_before_the_first_row(
    items: Store, by: By
) -> None:
    with items.view() as tx, pytest.raises(InvalidFindBy, match="no index"):
        tx.select(FOLDED, Or((All(), by)), scope="nothing here")
    items.close()


def test_a_zero_byte_in_a_custom_key_cannot_pass_for_another_pair(items: Store) -> None:
    with items.view() as tx, pytest.raises(InvalidArgument, match="zero byte"):
        tx.select(ITEMS, ByCustom("a\0b", "c"), scope=SCOPE)
    items.close()


VALUES = st.sampled_from(
    [b"", b"\0", b"a", b"a\0", b"a\0\0\0\0\0\0\0\0\1", b"ab", b"v" * 400, b"v" * 401, b"v" * 450]
)


@settings(max_examples=40, deadline=None)
@given(bodies=st.lists(st.lists(VALUES, max_size=4), max_size=6), wanted=VALUES)
def test_prefixes_find_each_row_once_whatever_its_values_are(
    tmp_path_factory: pytest.TempPathFactory, bodies: list[list[bytes]], wanted: bytes
) -> None:
    with Store.open(tmp_path_factory.mktemp("s") / "s", [ITEMS, FOLDED]) as store:
        for number, values in enumerate(bodies):
            body = Item(values=tuple(values))
            store.update(lambda tx, n=number, b=body: tx.create(ITEMS, SCOPE, f"{n}", b))  # type: ignore[misc]
        expected = sorted(
            f"{number}"
            for number, values in enumerate(bodies)
            if any(value.startswith(wanted) for value in values)
        )
        assert sorted(names(store, ByValuePrefix("value", wanted))) == expected


def test_folded_names_are_one_in_any_case_and_kept_as_given(items: Store) -> None:
    row = items.update(lambda tx: tx.create(FOLDED, SCOPE, "Straße", Item()))
    with items.view() as tx:
        assert tx.get(FOLDED, SCOPE, "STRASSE") == row
        assert list(tx.rows(FOLDED, SCOPE, prefix="sTR")) == [row]
        assert list(tx.rows(FOLDED, SCOPE, after="STRASSE")) == []
    with pytest.raises(AlreadyExists):
        items.update(lambda tx: tx.create(FOLDED, SCOPE, "strasse", Item()))
    renamed = items.update(lambda tx: tx.update(row, Item(), name="STRASSE"))
    assert renamed.name == "STRASSE"
    assert items.check() == []
    items.close()


def _reopen(path: Path, table: Table[Item]) -> list[Row[Item]]:
    with Store.open(path, [ITEMS, table]) as store, store.view() as tx:
        assert store.check() == []
        return list(tx.rows(table, SCOPE))


def test_a_table_may_begin_and_cease_to_fold_case(tmp_path: Path) -> None:
    with Store.open(tmp_path / "s", [ITEMS, EXACT]) as store:
        row = store.update(lambda tx: tx.create(EXACT, SCOPE, "Name", Item()))
    assert _reopen(tmp_path / "s", FOLDED) == [row]
    assert _reopen(tmp_path / "s", EXACT) == [row]


def test_a_table_cannot_begin_to_fold_case_over_two_names_that_would_be_one(
    tmp_path: Path,
) -> None:
    with Store.open(tmp_path / "s", [ITEMS, EXACT]) as store:
        store.update(lambda tx: tx.create(EXACT, SCOPE, "name", Item()))
        store.update(lambda tx: tx.create(EXACT, SCOPE, "NAME", Item()))
    with pytest.raises(AlreadyExists, match="choose another name"):
        Store.open(tmp_path / "s", [ITEMS, FOLDED])
    assert len(_reopen(tmp_path / "s", EXACT)) == 2
