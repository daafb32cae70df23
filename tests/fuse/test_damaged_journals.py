"""What a dead worker left is damaged: the next one says so, serves, and shows no other bytes."""

from __future__ import annotations

import errno
import os
import random
import signal
import struct
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from snapfs.fuse import channel
from snapfs.fuse.backing import BackingIds, Kind
from snapfs.fuse.inflight import IN_DOUBT, RECORD_BYTES, InFlight, State, summed
from snapfs.model import FailedPrecondition
from snapfs.overlay import Places
from snapfs.snapshots.quota import SIZE_LABEL
from tests.support.daemon import eventually
from tests.support.lanes import House, Mode, Tree, drop_dentries

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.logs("lane.worker_died", "lane.worker_restarted"),
]

FILES = 30
MEMORY = ("backing", "inflight", "places")
"""In the order of handover.Connection.memory; each is named so in the log."""


def fill(layer: Path) -> None:
    for number in range(FILES):
        (layer / f"lower{number}").write_bytes(b"lower %d" % number)


def cut_off(fd: int) -> None:
    os.ftruncate(fd, 0)


def cut_in_the_middle(fd: int) -> None:
    os.ftruncate(fd, os.fstat(fd).st_size // 2 + 13)


def flip_bits(fd: int) -> None:
    """Flip a bit in one byte of 40 that say something."""
    dice = random.Random(7)
    raw = bytearray(os.pread(fd, 1 << 24, 0))
    for at, value in enumerate(raw):
        if value and dice.random() < 1 / 40:
            raw[at] ^= 1 << dice.randrange(8)
    os.pwrite(fd, raw, 0)


def fill_with_noise(fd: int) -> None:
    os.pwrite(fd, random.Random(8).randbytes(os.fstat(fd).st_size), 0)


def fill_with_ones(fd: int) -> None:
    os.pwrite(fd, b"\xff" * os.fstat(fd).st_size, 0)


DAMAGES = [cut_off, cut_in_the_middle, flip_bits, fill_with_noise, fill_with_ones]


def right_or_refused(path: Path, expected: bytes) -> None:
    try:
        found = path.read_bytes()
    except OSError as error:
        if error.errno == errno.EIO:
            return
        raise
    assert found == expected


def kill_and_damage(house: House, which: int, damage: Callable[[int], None]) -> None:
    """Return when another worker serves, on memory of which one part was damaged before."""
    mount = house.lane._seat.mount
    assert mount is not None
    pid = house.lane.status().pid
    assert pid is not None
    os.kill(pid, signal.SIGSTOP)
    damage(mount.connection.memory[which])
    os.kill(pid, signal.SIGKILL)

    def is_next() -> bool:
        status = house.lane.status()
        return status.serving and status.pid != pid

    eventually(is_next, timeout_s=60, what="the next worker")


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
@pytest.mark.parametrize("which", range(len(MEMORY)), ids=MEMORY)
def test_next_worker_serves_and_shows_nobody_other_bytes(
    own_house: House,
    which: int,
    damage: Callable[[int], None],
    capfd: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:
    tree = own_house.active(fill)
    expected = {f"lower{number}": b"lower %d" % number for number in range(FILES)}
    for number in range(FILES):
        expected[f"own{number}"] = b"own %d" % number
        (tree / f"own{number}").write_bytes(expected[f"own{number}"])
    files = ExitStack()
    request.addfinalizer(files.close)
    held = {
        name: files.enter_context((tree / name).open("rb", buffering=0))
        for name in expected
        if name[-1] in "123"
    }
    writer = files.enter_context((tree / "own4").open("r+b", buffering=0))
    kill_and_damage(own_house, which, damage)
    for name, file in held.items():
        with suppress(OSError):  # one that the worker has to find again
            assert os.pread(file.fileno(), 100, 0) == expected[name]
    with suppress(OSError):
        os.pwrite(writer.fileno(), b"OWN", 0)
        expected["own4"] = b"OWN 4"
    for name, content in expected.items():
        right_or_refused(tree / name, content)
    (tree / "made").write_bytes(b"made")
    (tree / "made").rename(tree / "moved")
    assert sorted(os.listdir((tree / "made").parent)) == sorted([*expected, "moved"])
    files.close()
    drop_dentries()
    for name, content in expected.items():
        if name != "own4":
            right_or_refused(tree / name, content)
    assert (tree / "moved").read_bytes() == b"made"
    assert own_house.lane.status().deaths <= 1
    found = capfd.readouterr().err
    has_ids = own_house.mode is not Mode.NO_OPEN
    if damage in (fill_with_noise, fill_with_ones) and (which or has_ids):
        assert f"{MEMORY[which]}.damaged" in found
    if damage is flip_bits and not which and has_ids:
        assert "backing.damaged" in found


def left_at_the_beginning(memory: Sequence[int]) -> None:
    for fd in memory:
        os.ftruncate(fd, 0)
    Places(memory[-1])


def test_first_worker_that_is_killed_as_it_begins_leaves_nothing_damaged(
    own_house: House, capfd: pytest.CaptureFixture[str]
) -> None:
    mount = own_house.lane._seat.mount
    assert mount is not None
    kill_and_damage(own_house, 2, lambda _: left_at_the_beginning(mount.connection.memory))
    assert "places.short" not in capfd.readouterr().err


STORE = """
import mmap, os, sys
mapped = []
for path in sys.argv[1:]:
    fd = os.open(path, os.O_RDWR)
    mapped.append(mmap.mmap(fd, 6))
    os.close(fd)
print(flush=True)
for line in sys.stdin:
    for it in mapped:
        it[int(line)] = ord("X")
    print(flush=True)
"""
"""Stores a byte in each file through a mapping, at the place that it is told."""


@contextmanager
def storing(paths: list[Path]) -> Iterator[Callable[[int], None]]:
    with subprocess.Popen(
        [sys.executable, "-c", STORE, *paths], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as program:
        assert program.stdin is not None
        assert program.stdout is not None
        commands, said = program.stdin, program.stdout

        def store(at: int) -> None:
            commands.write(b"%d\n" % at)
            commands.flush()
            assert said.readline() == b"\n"

        try:
            assert said.readline() == b"\n"
            yield store
        finally:
            commands.close()
            program.wait(60)


@pytest.mark.modes(Mode.PASSTHROUGH, Mode.NO_OPEN)
@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
def test_commit_has_what_a_mapping_changed_whatever_was_damaged(
    own_house: House, damage: Callable[[int], None]
) -> None:
    """Also after one more worker, which finds the memory of the one before sound."""
    if own_house.passes_through:  # else the kernel writes to the layer by itself
        key = own_house.name()
        parent = own_house.base_layers(fill)
        own_house.snapshots.prepare(key, parent, {SIZE_LABEL: "100000000"})
        tree = Tree(own_house, key)
    else:
        tree = own_house.active(fill)
    (tree / "dir").mkdir()
    names = [*(f"lower{it}" for it in range(FILES)), *(f"dir/own{it}" for it in range(FILES))]
    for name in names[FILES:]:
        (tree / name).write_bytes(b"before")
    with storing([tree / name for name in names]) as store:
        store(0)
        kill_and_damage(own_house, 0 if own_house.passes_through else 2, damage)
        own_house.kill_worker()
        own_house.worker()
        store(5)
        own_house.snapshots.commit(tree.key, own_house.name())
        for name in names:
            found = (tree.upper / name).read_bytes()
            assert found[0:1] + found[5:6] == b"XX", name


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda it: it.__name__)
def test_commit_is_refused_while_somebody_writes_past_us_whatever_was_damaged(
    own_house: House, damage: Callable[[int], None]
) -> None:
    tree = own_house.active(fill)
    for number in range(FILES):
        (tree / f"own{number}").write_bytes(b"own %d" % number)
    with (tree / "own4").open("r+b", buffering=0) as writer, (tree / "own5").open("rb"):
        kill_and_damage(own_house, 0, damage)
        with pytest.raises(FailedPrecondition, match="open for writing: /own4;"):
            own_house.snapshots.commit(tree.key, own_house.name())
        writer.write(b"OWN")

    def is_committed() -> bool:
        try:
            own_house.snapshots.commit(tree.key, own_house.name())
        except FailedPrecondition:
            return False
        return True

    eventually(is_committed, what="the commit")
    assert (tree.upper / "own4").read_bytes() == b"OWN 4"


def flipped(fd: int, at: int, bit: int) -> None:
    (byte,) = os.pread(fd, 1, at)
    os.pwrite(fd, bytes([byte ^ 1 << bit]), at)


def test_every_flipped_bit_of_a_note_is_found_and_its_request_is_in_doubt() -> None:
    for at in range(RECORD_BYTES):
        for bit in range(8):
            fd = os.memfd_create("inflight")
            InFlight(fd, lambda: 50).request().intend(11, 12)
            flipped(fd, RECORD_BYTES + at, bit)
            found = InFlight(fd, lambda: 50)
            assert found.damaged == 1
            assert found.earlier(50 | channel.RESENT) is IN_DOUBT
            assert found.earlier(50) is None
            os.close(fd)


@given(st.lists(st.integers(0, (1 << 64) - 1), min_size=3, max_size=3), st.sampled_from(State))
def test_library_sums_a_note_as_a_worker_without_it(words: list[int], state: State) -> None:
    assert channel.required().summed(*words, state) == summed(*words, state)


def test_note_that_is_done_with_another_node_is_there_in_one_piece() -> None:
    fd = os.memfd_create("inflight")
    once = InFlight(fd, lambda: 50).request()
    once.intend(11, 12)
    once.did(13)
    found = InFlight(fd, lambda: 50)
    note = found.earlier(50 | channel.RESENT)
    assert note is not None
    assert (note.state, note.first, note.second) == (State.DONE, 13, 12)
    assert len(found) == 1
    assert not found.damaged
    os.close(fd)


def test_every_flipped_bit_of_an_entry_of_an_open_file_is_found() -> None:
    """But for those that say that there is none: then nobody is told anything wrong either."""
    for at in (*range(28), *range(32, 56)):
        for bit in range(8):
            fd = os.memfd_create("journal")
            opened = channel.required().Opened(fd, 10)
            opened.add(5, Kind.UPPER, 3, 7, 9)
            assert opened.enter(5, True, 1, 100)
            flipped(fd, 64 + at, bit)
            ids = BackingIds(-1, fd)
            entry = ids.get(5)
            if 24 <= at < 28 and entry is None and not ids.opened.damaged:
                continue
            is_mended = entry is not None and entry[1:7] == (Kind.UPPER, 3, 7, 9, 1, 1)
            assert ids.opened.damaged or is_mended, (at, bit)
            assert entry is None or entry[1:5] == (Kind.UPPER, 3, 7, 9)
            os.close(fd)


def test_table_of_places_without_a_free_place_is_begun_anew() -> None:
    fd = os.memfd_create("places")
    Places(fd).note(1, 2)
    size = os.fstat(fd).st_size
    os.pwrite(fd, b"\1" * (size - 4096), 4096)
    places = Places(fd)
    assert places.damaged
    assert places.get(77) == 0
    places.note(77, 78)
    assert Places(fd).get(77) == 78
    os.close(fd)


def test_every_flipped_bit_of_a_number_in_the_places_is_found_or_leaves_all_of_them() -> None:
    for bit in range(64):
        fd = os.memfd_create("places")
        places = Places(fd)
        for number in range(1, 101):
            places.note(number, 1)
        assert not Places(fd).is_short
        raw = os.pread(fd, os.fstat(fd).st_size, 0)
        at = next(it for it in range(4096, len(raw), 16) if raw[it : it + 16].strip(b"\0"))
        flipped(fd, at + bit // 8, bit % 8)
        found = Places(fd)
        assert found.is_short or all(map(found.get, range(1, 101)))
        assert Places(fd).is_short == found.is_short
        os.close(fd)


def test_every_flipped_bit_of_the_head_of_the_places_is_found_or_means_nothing() -> None:
    """At another size the table would be one of zeros."""
    numbers = range(1, 1201)
    fd = os.memfd_create("places")
    places = Places(fd)
    for number in numbers:
        places.note(number, 1)
    whole = os.pread(fd, os.fstat(fd).st_size, 0)
    for is_short in (False, True):
        for at in range(32):
            for bit in range(8):
                os.ftruncate(fd, 0)
                os.pwrite(fd, whole, 0)
                flipped(fd, at, bit)
                found = Places(fd)
                assert found.is_short or (not is_short and all(map(found.get, numbers)))
                assert Places(fd).is_short == found.is_short
        os.ftruncate(fd, 0)
        os.pwrite(fd, whole, 0)
        Places(fd).lose()
        whole = os.pread(fd, os.fstat(fd).st_size, 0)
    os.close(fd)


@pytest.mark.parametrize("is_short", [False, True])
def test_places_that_an_older_release_left_are_found(is_short: bool) -> None:
    fd = os.memfd_create("places")
    places = Places(fd)
    for number in range(1, 1201):
        places.note(number, 1)
    size_bits = os.pread(fd, 1, 24)[0]
    os.pwrite(fd, struct.pack("8sQQQ", b"snplaces", size_bits, is_short, 0), 0)
    for _ in range(2):
        found = Places(fd)
        assert not found.damaged
        assert found.is_short == is_short
        assert all(map(found.get, range(1, 1201)))
    os.close(fd)


def test_place_that_a_killed_worker_left_twice_is_the_one_noted_since() -> None:
    fd = os.memfd_create("places")
    Places(fd).note(5, 50)
    entry = struct.pack("QQ", 5, 50)
    at = os.pread(fd, os.fstat(fd).st_size, 0).index(entry, 4096)
    os.pwrite(fd, entry, at + len(entry))
    places = Places(fd)
    places.note(5, 60)
    for ino in range(1000, 1300):
        places.note(ino, 1)
    assert places.get(5) == 60
    os.close(fd)


FIRST_SLOTS = 256
"""Of a table of places."""
INHERITED = 1 << 63
"""In a directory's number there: what is called so was noted by an earlier process."""


def dropping(table: list[tuple[int, int]], number: int) -> Iterator[list[tuple[int, int]]]:
    """Yield what a table of places is after each store of a removal that changes a number."""

    def home(it: int) -> int:
        return (it * 0x9E3779B97F4A7C15 & (1 << 64) - 1) >> 56

    hole = table.index((number, number + 1))
    table[hole] = 0, number + 1
    yield table
    behind = (hole + 1) % FIRST_SLOTS
    while table[behind][0]:
        at = home(table[behind][0])
        if (behind - at) % FIRST_SLOTS >= (behind - hole) % FIRST_SLOTS:
            table[hole] = table[behind]
            yield table
            table[behind] = 0, table[behind][1]
            yield table
            hole = behind
        behind = (behind + 1) % FIRST_SLOTS
    table[hole] = 0, 0
    yield table


def test_places_are_whole_wherever_a_removal_is_killed() -> None:
    fd = os.memfd_create("places")
    places = Places(fd)
    numbers = [it * it for it in range(1, 171)]
    for number in numbers:
        places.note(number, number + 1)
    whole = os.pread(fd, os.fstat(fd).st_size, 0)
    table = list(struct.iter_unpack("QQ", whole[4096:]))
    for number in numbers:
        for left in dropping(list(table), number):
            os.pwrite(fd, b"".join(struct.pack("QQ", *it) for it in left), 4096)
            for _ in range(2):
                found = Places(fd)
                assert not found.is_short
                assert len(found) == len(numbers) - 1
                assert all(found.get(it) == (it + 1) * (it != number) for it in numbers)
        os.pwrite(fd, whole, 0)
        Places(fd).drop(number)
        marked = [(ino, parent | INHERITED if ino else parent) for ino, parent in left]
        assert list(struct.iter_unpack("QQ", os.pread(fd, FIRST_SLOTS * 16, 4096))) == marked
        os.pwrite(fd, whole, 0)
    os.close(fd)


def test_numbers_of_an_earlier_process_are_inherited_until_they_are_dropped() -> None:
    fd = os.memfd_create("places")
    first = Places(fd)
    for number in range(2, 600):
        first.note(number, 1)
    assert not any(map(first.is_inherited, range(2, 600)))
    places = Places(fd)
    places.note(1000, 1)
    places.note(3, 7)
    places.drop(4)
    places.note(4, 1)
    for number in range(100, 600):  # the table gets smaller
        places.drop(number)
    assert [places.is_inherited(it) for it in (2, 3, 4, 1000)] == [True, True, False, False]
    assert [places.get(it) for it in (2, 3, 4, 1000)] == [1, 7, 1, 1]
    assert sorted(places.below(0, 40)) == [*range(2, 100), 1000]
    places.lose()
    assert places.is_inherited(1000)
    os.close(fd)


def test_request_counted_last_that_makes_no_sense_is_found_once() -> None:
    fd = os.memfd_create("journal")
    opened = channel.required().Opened(fd, 10)
    opened.add(5, Kind.UPPER, 3, 7, 9)
    opened.enter(5, False, 1, 100)
    os.pwrite(fd, struct.pack("Q", 1 << 40), 16)
    assert channel.required().Opened(fd, 10).damaged == 1
    again = channel.required().Opened(fd, 10)
    assert again.damaged == 0
    assert len(again) == 1
    os.close(fd)


OPENS = 2500
"""More than two steps of a journal's growth have room for."""


def many_opens() -> int:
    fd = os.memfd_create("journal")
    opened = channel.required().Opened(fd, 10)
    for node in range(1, OPENS + 1):
        opened.add(node, Kind.LOWER, 3, 7, 9)
        opened.enter(node, False, 1, 100)
    opened.enter(1, False, 1, 102)  # the last one is in what is left
    return fd


@pytest.mark.parametrize("size_kib", [64, 128])
def test_journal_that_is_cut_where_it_once_ended_is_damaged(size_kib: int) -> None:
    fd = many_opens()
    os.ftruncate(fd, size_kib << 10)
    found = channel.required().Opened(fd, 10)
    assert found.damaged == 1
    assert len(found) == size_kib * 16 - 1
    os.close(fd)


def test_journal_of_a_worker_that_was_killed_as_it_grew_is_whole() -> None:
    fd = many_opens()
    os.ftruncate(fd, os.fstat(fd).st_size + (64 << 10))
    for _ in range(2):
        found = channel.required().Opened(fd, 10)
        assert found.damaged == 0
        assert len(found) == OPENS
    os.ftruncate(fd, os.fstat(fd).st_size - (64 << 10))
    assert channel.required().Opened(fd, 10).damaged == 1
    os.close(fd)


def test_journal_that_an_older_release_left_is_found() -> None:
    fd = many_opens()
    os.pwrite(fd, b"snpsids3", 0)
    for _ in range(2):
        found = channel.required().Opened(fd, 10)
        assert found.damaged == 0
        assert len(found) == OPENS
    os.ftruncate(fd, 64 << 10)
    assert channel.required().Opened(fd, 10).damaged == 1
    os.close(fd)
