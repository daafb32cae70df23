"""Bytes of strangers are read or refused, never anything else; see targets.py."""

from __future__ import annotations

import io
import os
import tarfile
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from snapfs.fuse import _channel, control
from snapfs.fuse.inflight import InFlight
from snapfs.overlay import Places
from snapfs.service import snapfs_v1_pb2
from tests.fuzz.targets import NUMBERS, TARGETS, fuzz_layers, left
from tests.images import kit

EXAMPLES = 300


def flipped(seeds: list[bytes]) -> st.SearchStrategy[bytes]:
    """Yield a seed with some bytes changed, cut out or put in."""
    change = st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 2), st.binary(max_size=9))

    def apply(seed: bytes, changes: list[tuple[float, int, bytes]]) -> bytes:
        raw = bytearray(seed)
        for place, kind, data in changes:
            at = int(place * (len(raw) + 1))
            raw[at : at + (len(data) if kind == 0 else kind * 3)] = data
        return bytes(raw)

    return st.builds(apply, st.sampled_from(seeds), st.lists(change, max_size=5))


def requests_in_flight() -> bytes:
    number = 0
    with left(b"") as fd:
        journal = InFlight(fd, lambda: number)
        for number in NUMBERS:
            with journal.request() as once:
                once.intend(number + 1, number + 2)
        return os.pread(fd, 512, 0)


def counts_of_opens() -> bytes:
    with left(b"") as fd:
        opened = _channel.Opened(fd, 10)
        for number, nodeid in enumerate(NUMBERS):
            opened.add(nodeid, 1 + number % 3, 0 if number % 3 == 2 else number + 1, 7, number)
            opened.enter(nodeid, number % 3 == 1, 1, 100 + number)
        return os.pread(fd, 1280, 0)


def places() -> bytes:
    with left(b"") as fd:
        noted = Places(fd)
        for ino in range(1, 150):
            noted.note(ino * 12345, ino)
        return os.pread(fd, 1 << 16, 0)


SEEDS: dict[str, list[bytes]] = {
    "requests_in_flight": [requests_in_flight()],
    "counts_of_opens": [counts_of_opens()],
    "places": [places(), places()[:6000]],
    "words_of_workers": [
        control.encode(control.Answer(3, error="x", held_ns=5)),
        control.encode(control.Freeze(3, 7, 1.0)),
        control.encode(control.Hello(1, "0", "main", (1, 2), (None, 5))),
    ],
    "filters": [b'name==x,labels."a.b"~=/^a(b|c)+$/', b"kind!=committed"],
    "protobufs": [
        snapfs_v1_pb2.Snapshot(
            id=7, name="n", kind=3, parent="p", parent_ids=[1, 2], labels={"k": "v"}
        ).SerializeToString()
    ],
    "layers": [
        kit.tar(
            [
                kit.directory("etc"),
                kit.file("etc/hosts", b"x" * 700, pax={"SCHILY.xattr.user.a": "b"}),
                kit.hardlink("etc/other", "etc/hosts"),
                kit.symlink("etc/link", "../../outside"),
                kit.whiteout("etc/gone"),
                kit.opaque("etc"),
            ]
        )
    ],
    "records": [b'{"format":1,"source":"/x","file_system":"ext4","uuid":"u"}'],
    "configuration": [b'root = "/x"\n[timeouts]\nstop_s = 3\n[service]\nmax_workers = 5\n'],
    "saved_stores": [b"snapfs store 1\n\0\0\0\5\0\0\0\0abcde"],
}


@pytest.mark.parametrize("name", TARGETS)
def test_any_bytes_are_read_or_refused(name: str) -> None:
    target: Callable[[bytes], None] = TARGETS[name]
    bytes_of_all_kinds = st.binary(max_size=2000)
    if name in SEEDS:
        bytes_of_all_kinds |= flipped(SEEDS[name])

    @settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
    @given(bytes_of_all_kinds)
    def run(data: bytes) -> None:
        target(data)

    run()


NAMES = st.lists(
    st.sampled_from(
        ["..", ".", "", "a", "etc", ".wh.a", ".wh..wh..opq", ".wh...", ".wh.", "x" * 300]
    ),
    min_size=1,
    max_size=5,
).map("/".join)
KINDS = [tarfile.REGTYPE, tarfile.DIRTYPE, tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE, b"9"]


@settings(max_examples=EXAMPLES, deadline=None)
@given(st.lists(st.tuples(NAMES, st.sampled_from(KINDS), NAMES), max_size=8))
def test_members_of_any_name_and_kind_stay_inside(members: list[tuple[str, bytes, str]]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name, kind, link in members:
            entry = kit.Entry(name, b"data", type=kind, link=link)
            archive.addfile(entry.member(), io.BytesIO(entry.data))
    fuzz_layers(out.getvalue())
