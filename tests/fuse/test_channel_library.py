"""The channel's library in this process: loading, answers kept for replies, INIT by mode."""

from __future__ import annotations

import os
import struct
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.fuse import _channel, channel
from snapfs.fuse.channel import Opcode
from snapfs.fuse.features import features
from snapfs.fuse.handover import (
    STACK_DEPTH,
    WANTED,
    WANTED_NO_OPEN,
    WANTED_PASSTHROUGH,
    Init,
    InitRequest,
)

EVERYTHING = InitRequest(2, 45, 131072, Init(sum(Init)))
ATTEMPT = """
import snapfs.fuse, sys
from snapfs.fuse import channel
print(channel.loaded(), channel.why_not())
"""


def python(code: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_library_is_built_and_loaded() -> None:
    assert channel.loaded(), channel.why_not()
    assert channel.why_not() == ""
    assert _channel.missing() in (None, "libfuse3")  # the latter before pyfuse3 was imported


def test_library_finds_the_libfuse_that_pyfuse3_brought() -> None:
    code = (
        "import snapfs.fuse, pyfuse3; from snapfs.fuse import _channel; print(_channel.missing())"
    )
    assert python(code) == "None"


def test_environment_leaves_pyfuse3_alone_and_the_reason_is_told() -> None:
    assert python(ATTEMPT, SNAPFS_CHANNEL="off") == "False SNAPFS_CHANNEL=off"


def test_missing_library_is_told_and_not_raised() -> None:
    code = "import sys; sys.modules['snapfs.fuse._channel'] = None\n" + ATTEMPT
    assert python(code).startswith("False the library is not built (")


def test_library_of_another_version_is_not_used() -> None:
    code = (
        "import types, sys; m = types.ModuleType('snapfs.fuse._channel'); m.ABI = 0\n"
        "sys.modules['snapfs.fuse._channel'] = m\n" + ATTEMPT
    )
    assert python(code).startswith("False the library is of version 0, not ")


def test_importing_the_package_leaves_the_way_of_loading_others_as_it_was() -> None:
    code = (
        "import sys; a = sys.getdlopenflags(); import snapfs.fuse; print(a == sys.getdlopenflags())"
    )
    assert python(code) == "True"


numbers = st.integers(0, (1 << 64) - 1)
answers = st.tuples(numbers, st.integers(0, (1 << 32) - 1), st.integers(-(1 << 31), (1 << 31) - 1))


@given(st.lists(answers, max_size=60))
def test_last_answer_for_a_handle_is_taken_once(given_answers: list[tuple[int, int, int]]) -> None:
    for fh, flags, backing_id in given_answers:
        channel.answer_open(fh, flags, backing_id)
    expected = {fh: (flags, backing_id) for fh, flags, backing_id in given_answers}
    for fh, answer in expected.items():
        assert _channel.take_answer(fh) == answer
        assert _channel.take_answer(fh) is None


def test_mask_has_a_bit_for_each_opcode() -> None:
    assert channel.mask_of([Opcode.LOOKUP, Opcode.STATX]) == 1 << 1 | 1 << 52
    assert channel.mask_of([]) == 0


@pytest.mark.parametrize("wanted", [WANTED, WANTED_PASSTHROUGH, WANTED_NO_OPEN])
def test_modes_get_what_they_want_where_all_is_offered(wanted: Init) -> None:
    fields = struct.unpack_from("<IIIIHHIIHHII", EVERYTHING.answer(wanted), 16)
    assert fields[3] | fields[10] << 32 == wanted
    assert fields[11] == (STACK_DEPTH if Init.PASSTHROUGH in wanted else 0)


def test_features_that_are_off_say_why() -> None:
    old = InitRequest(2, 31, 131072, EVERYTHING.offered & ~Init.PASSTHROUGH)
    by_name = {it.name: it for it in features(old, WANTED_PASSTHROUGH)}
    assert by_name["channel"].on
    assert by_name["passthrough"].reason == "the kernel does not offer it; Linux 6.9 does"
    assert by_name["no-opendir"].on
    assert by_name["no-open"].reason == "the lane's mode goes without"
    assert {it.name: it.on for it in features(EVERYTHING, WANTED)}["passthrough"] is False
    assert {it.name: it.on for it in features(EVERYTHING, WANTED_NO_OPEN)}["no-open"] is True
