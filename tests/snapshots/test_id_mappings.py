"""The labels of user namespaces: what they mean, and which are refused."""

from __future__ import annotations

import errno

import pytest

from snapfs.model import InvalidArgument
from snapfs.snapshots.idmapping import EVERYBODY, GID_LABEL, NOBODY, UID_LABEL, IdMapping, IdRange


def test_without_labels_there_is_no_mapping() -> None:
    assert IdMapping.of(None) is None
    assert IdMapping.of({"other": "0:1:2", UID_LABEL: ""}) is None


def test_several_ranges_are_read_and_the_missing_label_maps_nothing() -> None:
    mapping = IdMapping.of({UID_LABEL: "0:100000:1000,5000:7000:1"})
    assert mapping == IdMapping((IdRange(0, 100000, 1000), IdRange(5000, 7000, 1)), EVERYBODY)
    stored = (0, 999, 1000, 5000)
    assert [mapping.shown_uid(uid) for uid in stored] == [100000, 100999, NOBODY, 7000]
    assert [mapping.stored_uid(uid) for uid in (100000, 100999, 7000)] == [0, 999, 5000]
    assert mapping.shown_gid(123456) == mapping.stored_gid(123456) == 123456
    with pytest.raises(OSError) as caught:
        mapping.stored_uid(0)
    assert caught.value.errno == errno.EOVERFLOW


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0:1", "is not CONTAINER-ID:HOST-ID:SIZE"),
        ("0:1:2:3", "is not CONTAINER-ID:HOST-ID:SIZE"),
        ("a:1:2", "is not CONTAINER-ID:HOST-ID:SIZE"),
        ("-1:1:2", "is not CONTAINER-ID:HOST-ID:SIZE"),
        ("0:1:2,", "is not CONTAINER-ID:HOST-ID:SIZE"),
        ("0:1:0", "is empty or ends after"),
        ("0:4294967290:10", "is empty or ends after"),
        ("0:10:5,4:100:5", "container ids overlap"),
        ("0:10:5,5:14:5", "host ids overlap"),
        (",".join(f"{n}:{n}:1" for n in range(341)), "at most 340"),
    ],
)
@pytest.mark.parametrize("label", [UID_LABEL, GID_LABEL])
def test_a_bad_label_is_refused_by_name(label: str, text: str, said: str) -> None:
    with pytest.raises(InvalidArgument, match=said) as caught:
        IdMapping.of({label: text})
    assert label in str(caught.value)
