"""Sizes, times, tables and trees, without a terminal and without a service."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.cli import forest, output
from snapfs.model import Active, Committed, NotFound, Snapshot, SnapshotId, Usage, View
from snapfs.service.records import Record


def test_a_long_name_is_shortened_in_a_table_and_one_of_containerd_is_not() -> None:
    name = "k8s.io/1234/extract-123456789-abcd sha256:" + "0123456789abcdef" * 4
    assert output.shortened(name) == name
    shown = output.shortened("a" * 5000 + "z")
    assert len(shown) == output.MAX_COLUMN
    assert shown.startswith("aaa")
    assert shown.endswith("az")
    assert "…" in shown


@pytest.mark.parametrize(
    ("size_bytes", "text"),
    [
        (0, "0 B"),
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1536, "1.5 KiB"),
        (10 * 1024**2, "10 MiB"),
        (1023 * 1024, "1023 KiB"),
        (3 * 1024**4, "3 TiB"),
        (5000 * 1024**4, "5000 TiB"),
    ],
)
def test_sizes_have_binary_units(size_bytes: int, text: str) -> None:
    assert output.size(size_bytes) == text


def test_json_times_keep_nanoseconds() -> None:
    assert output.iso(1_700_000_000_000_000_001) == "2023-11-14T22:13:20.000000001Z"


@given(st.text())
def test_nothing_printed_can_act_on_a_terminal(text: str) -> None:
    assert output.printable(text).isprintable()


def test_printable_keeps_what_people_read() -> None:
    assert output.printable("naïve 名前") == "naïve 名前"
    assert output.printable("a\x1b[31mb\n") == "a\\x1b[31mb\\n"
    assert output.printable("\udcff") == "\\xff"


def test_a_piped_table_is_plain_and_never_wrapped(capsys: pytest.CaptureFixture[str]) -> None:
    output.table(("NAME", "SIZE"), [("x" * 300, "1"), ("[bold]y", "22")], right=("SIZE",))
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 3
    assert lines[1].split() == ["x" * 300, "1"]
    assert lines[2].split() == ["[bold]y", "22"]
    assert len(lines[1]) == len(lines[2])
    assert "\x1b" not in "".join(lines)


def record(snapshot: Snapshot, *mounted_at: str) -> Record:
    usage = snapshot.usage if isinstance(snapshot, Committed) else Usage(2048, 1)
    return Record(
        snapshot=snapshot,
        usage=usage,
        layer=Path("/layers"),
        mounted_at=tuple(map(Path, mounted_at)),
    )


def ids(*numbers: int) -> tuple[SnapshotId, ...]:
    return tuple(map(SnapshotId, numbers))


RECORDS = [
    record(Committed(id=SnapshotId(1), name="base", usage=Usage(4096, 2))),
    record(Committed(id=SnapshotId(2), name="app", parent="base", parent_ids=ids(1))),
    record(Active(id=SnapshotId(3), name="work", parent="app", parent_ids=ids(2, 1)), "/mnt/w"),
    record(View(id=SnapshotId(4), name="look", parent="base", parent_ids=ids(1))),
    record(Active(id=SnapshotId(5), name="alone")),
]


def test_a_tree_draws_chains_with_sizes_and_mounts(capsys: pytest.CaptureFixture[str]) -> None:
    for branch in forest.plant(RECORDS):
        output.show(forest.draw(branch))
    assert capsys.readouterr().out.splitlines() == [
        "alone  active, 2 KiB",
        "base  committed, 4 KiB",
        "├── app  committed, 0 B",
        "│   └── work  active, 2 KiB  mounted at /mnt/w",
        "└── look  view",
    ]


def test_a_tree_may_begin_at_a_name() -> None:
    (branch,) = forest.plant(RECORDS, "app")
    assert branch.record.snapshot.name == "app"
    assert [it.record.snapshot.name for it in branch.children] == ["work"]
    with pytest.raises(NotFound, match="'none' does not exist"):
        forest.plant(RECORDS, "none")


def test_a_tree_as_json_nests_children() -> None:
    base = forest.as_json(forest.plant(RECORDS)[1])
    assert base["name"] == "base"
    assert [it["name"] for it in base["children"]] == ["app", "look"]
    assert base["children"][0]["children"][0]["mounted_at"] == ["/mnt/w"]


def test_a_chain_of_thousands_is_drawn(capsys: pytest.CaptureFixture[str]) -> None:
    chain = [
        record(
            Committed(
                id=SnapshotId(n),
                name=f"c{n}",
                parent=f"c{n - 1}" if n else "",
                parent_ids=ids(*range(n - 1, -1, -1)),
            )
        )
        for n in range(600)
    ]
    (branch,) = forest.plant(chain)
    output.show(forest.draw(branch))
    assert len(capsys.readouterr().out.splitlines()) == 600


def test_a_parent_removed_while_listing_does_not_hide_its_children() -> None:
    orphan = record(Active(id=SnapshotId(9), name="o", parent="gone", parent_ids=ids(8)))
    assert [it.record.snapshot.name for it in forest.plant([orphan])] == ["o"]
