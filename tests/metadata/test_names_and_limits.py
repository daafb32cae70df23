"""What may be called what."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.metadata import words
from snapfs.model import InvalidArgument


@pytest.mark.parametrize(
    "text", ["default", "k8s.io", "a", "a-b_c.d", "0", "A" * 76, "moby", "1.2.3"]
)
def test_identifiers_of_groups_joined_by_one_separator_are_taken(text: str) -> None:
    assert words.check_identifier(text, "namespace") == text


@pytest.mark.parametrize(
    "text",
    ["", ".a", "a.", "a..b", "a.-b", "a b", "a/b", "ä", "A" * 77, "a\n", "-a", "__", "a\0b"],
)
def test_other_identifiers_are_refused(text: str) -> None:
    with pytest.raises(InvalidArgument, match="namespace"):
        words.check_identifier(text, "namespace")


def test_a_namespace_may_not_be_called_version() -> None:
    with pytest.raises(InvalidArgument, match="reserved"):
        words.check_namespace("version")


@pytest.mark.parametrize(
    ("text", "good"),
    [
        ("sha256:" + "a" * 64, True),
        ("sha512:" + "0" * 128, True),
        ("sha256:" + "A" * 64, False),
        ("sha256:" + "a" * 63, False),
        ("md5:" + "a" * 32, False),
        ("a" * 64, False),
        ("sha256:" + "a" * 64 + "\n", False),
        ("", False),
    ],
)
def test_digests_are_an_algorithm_and_lower_hex_of_its_length(text: str, good: bool) -> None:
    assert words.is_digest(text) == good


@pytest.mark.parametrize(
    ("text", "ns"),
    [
        ("1970-01-01T00:00:01Z", 1_000_000_000),
        ("1970-01-01T01:00:00.5+01:00", 500_000_000),
        ("1970-01-01t00:00:00.000000001z", 1),
        ("2026-02-30T00:00:00Z", None),
        ("yesterday", None),
        ("1970-01-01 00:00:00Z", None),
        ("", None),
    ],
)
def test_times_in_labels_are_rfc_3339_or_ignored(text: str, ns: int | None) -> None:
    assert words.parse_time_ns(text) == ns


@given(st.text())
def test_no_time_in_a_label_raises(text: str) -> None:
    words.parse_time_ns(text)
