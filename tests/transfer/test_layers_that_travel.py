"""A layer arrives as it was, costs what changed, and is there whole or not at all."""

from __future__ import annotations

import hashlib
import itertools
import os
import random
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
import pytest

from snapfs.model import AlreadyExists, DataLoss, FailedPrecondition, InvalidArgument, NotFound
from snapfs.transfer import Packed, manifest
from snapfs.transfer.sending import Offer
from tests.transfer.kit import Root, everything, seen, send

MIB = 1 << 20
MakeRoot = Callable[[str], Root]


def _file(name: str, data: bytes) -> Callable[[Path], None]:
    def write(layer: Path) -> None:
        (layer / name).parent.mkdir(parents=True, exist_ok=True)
        (layer / name).write_bytes(data)

    return write


def test_everything_in_a_layer_arrives(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", everything)
    send(here, there, "one")
    assert seen(there.layer("one")) == seen(here.layer("one"))
    sparse = there.layer("one") / "sparse"
    assert sparse.stat().st_blocks * 512 < MIB
    assert there.stock.of("one").digest == here.stock.of("one").digest


def test_a_layer_sent_back_has_the_same_digest(root: MakeRoot) -> None:
    here, there, back = root("here"), root("there"), root("back")
    here.commit("one", "", everything)
    send(here, there, "one")
    shutil.rmtree(there.stock.path)
    there.stock.path.mkdir()
    send(there, back, "one")
    assert back.stock.of("one").digest == here.stock.of("one").digest


def test_pages_changed_in_a_big_file_cost_pages(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    source = random.Random(5)
    data = bytearray(source.randbytes(64 * MIB))
    here.commit("one", "", _file("db/table", bytes(data)))
    for _ in range(80):
        at = source.randrange(len(data) // 8192) * 8192
        data[at : at + 8192] = source.randbytes(8192)
    here.commit("two", "one", _file("db/table", bytes(data)))
    send(here, there, "one")
    sent = send(here, there, "two", "one")
    assert seen(there.layer("two")) == seen(here.layer("two"))
    assert sent < 1.2 * 80 * 8192 + 64 * 1024


def test_data_moved_to_another_file_is_not_sent_again(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    data = random.Random(6).randbytes(4 * MIB)
    here.commit("one", "", _file("old", data))
    here.commit("two", "one", _file("dir/new", b"shifted by some bytes" + data))
    here.commit("apart", "", _file("elsewhere", data))
    send(here, there, "one")
    assert send(here, there, "two", "one") < 400_000
    assert send(here, there, "apart") < 100_000
    assert seen(there.layer("two")) == seen(here.layer("two"))


def test_a_file_that_lost_data_has_holes_where_the_parent_had_data(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    data = random.Random(7).randbytes(4 * MIB)
    here.commit("one", "", _file("file", data))
    here.commit("two", "one", _file("file", data[:MIB] + bytes(2 * MIB) + data[3 * MIB :]))
    here.commit("three", "two", _file("file", data[:100_000]))
    send(here, there, "one")
    for name, parent in (("two", "one"), ("three", "two")):
        send(here, there, name, parent)
        assert seen(there.layer(name)) == seen(here.layer(name))


def test_sending_again_sends_nothing(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", everything)
    send(here, there, "one")
    assert send(here, there, "one") == 0


def test_a_broken_transfer_goes_on_where_it_ended(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", random.Random(8).randbytes(16 * MIB)))
    count = 0

    def stop(_packed: Packed) -> None:
        nonlocal count
        count += 1
        if count == 150:
            raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        send(here, there, "one", taken=stop)
    with pytest.raises(NotFound):
        there.snapshotter.stat("one")
    assert send(here, there, "one") < 9 * MIB
    assert seen(there.layer("one")) == seen(here.layer("one"))


def test_giving_up_leaves_nothing(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", everything)
    with there.sink.receive("one", "", here.source.offer("one")) as landing:
        assert landing is not None
        landing.take_manifest(here.source.manifest("one"))
    assert [it.name for it in there.snapshotter.walk()] != []
    there.sink.give_up("one")
    assert [it.name for it in there.snapshotter.walk()] == []
    assert os.listdir(there.stock.path) == []


def test_a_damaged_chunk_is_refused_and_asked_for_again(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", random.Random(9).randbytes(MIB)))
    with there.sink.receive("one", "", here.source.offer("one")) as landing:
        assert landing is not None
        missing = landing.take_manifest(here.source.manifest("one"))
        first = next(iter(here.source.chunks("one", missing)))
        for data in (first.data[:-9], b"", os.urandom(100), first.data[:20] + bytes(100)):
            with pytest.raises(DataLoss):
                landing.put(Packed(first.digest, 0, data))
        with pytest.raises(FailedPrecondition, match="missing"):
            landing.finish()
    send(here, there, "one")
    assert seen(there.layer("one")) == seen(here.layer("one"))


def test_a_manifest_that_is_not_the_offered_one_is_refused(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", everything)
    offer = here.source.offer("one")
    with there.sink.receive("one", "", Offer(bytes(32), (), offer.manifest_bytes)) as landing:
        assert landing is not None
        with pytest.raises(DataLoss):
            landing.take_manifest(here.source.manifest("one"))
    assert [it.name for it in there.snapshotter.walk()] == []


def test_a_layer_on_another_parent_is_refused(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", b"one"))
    here.commit("two", "one", _file("file", b"two"))
    there.commit("one", "", _file("file", b"another"))
    with pytest.raises(FailedPrecondition, match="parents"):
        send(here, there, "two")
    with pytest.raises(FailedPrecondition, match="parents"):
        send(here, there, "two", "one")
    with pytest.raises(AlreadyExists):
        send(here, there, "one")


def test_a_layer_that_changed_on_disk_is_not_sent(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", b"as it was committed"))
    here.source.offer("one")
    (here.layer("one") / "file").write_bytes(b"as somebody left it")
    with pytest.raises(DataLoss, match="changed on disk"):
        send(here, there, "one")


@pytest.mark.parametrize("chunks", [0, 1, 40])
def test_a_receiver_killed_in_the_middle_goes_on(
    root: MakeRoot, tmp_path: Path, chunks: int
) -> None:
    made = Root(tmp_path / "here")
    made.commit("zero", "", _file("file", random.Random(10).randbytes(4 * MIB)))
    made.commit("one", "zero", everything)
    made.close()
    script = (
        "import os, signal, sys\n"
        "from pathlib import Path\n"
        "from tests.transfer.kit import Root, send\n"
        "here, there = Root(Path(sys.argv[1])), Root(Path(sys.argv[2]))\n"
        "left = int(sys.argv[3])\n"
        "def stop(packed):\n"
        "    global left\n"
        "    if not left: os.kill(os.getpid(), signal.SIGKILL)\n"
        "    left -= 1\n"
        "send(here, there, 'zero', taken=stop)\n"
        "send(here, there, 'one', 'zero', taken=stop)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    ended = subprocess.run(
        [
            sys.executable,
            "-c",
            script,
            str(tmp_path / "here"),
            str(tmp_path / "there"),
            str(chunks),
        ],
        check=False,
        cwd=Path(__file__).parents[2],
        timeout=60,
    )
    assert ended.returncode == -9
    here, there = root("here"), root("there")
    send(here, there, "zero")
    send(here, there, "one", "zero")
    assert seen(there.layer("one")) == seen(here.layer("one"))
    assert [it.name for it in there.snapshotter.walk()] == ["one", "zero"]


@pytest.mark.parametrize("left_bytes", [0, 2 * MIB])
def test_a_file_that_a_crash_left_at_another_length_gets_its_own(
    root: MakeRoot, left_bytes: int
) -> None:
    """Killed when it was made, or begun with a longer one of a layer below; and ends with zeros."""
    here, there = root("here"), root("there")

    def write(layer: Path) -> None:
        (layer / "file").write_bytes(b"begins with words")
        os.truncate(layer / "file", MIB)

    here.commit("one", "", write)
    with there.sink.receive("one", "", here.source.offer("one")) as landing:
        assert landing is not None
        landing.take_manifest(here.source.manifest("one"))
    (left,) = there.snapshotter.walk()
    os.truncate(there.stock.directories.upper(left.id) / "file", left_bytes)
    send(here, there, "one")
    assert seen(there.layer("one")) == seen(here.layer("one"))


@pytest.mark.parametrize("damage", ["zeros", "short", "another version's"])
def test_a_damaged_manifest_of_another_layer_is_in_nobodys_way(root: MakeRoot, damage: str) -> None:
    here, there = root("here"), root("there")
    there.commit("other", "", _file("other", random.Random(1).randbytes(MIB)))
    kept = there.stock.of("other").path
    size = kept.stat().st_size
    with kept.open("r+b") as file:
        if damage == "short":
            file.truncate(size - 7)
        else:
            file.write(bytes(size) if damage == "zeros" else b"\0\0\0\1\xc0")
    here.commit("one", "", _file("file", random.Random(2).randbytes(MIB)))
    send(here, there, "one")
    assert seen(there.layer("one")) == seen(here.layer("one"))
    assert not kept.exists()
    assert there.stock.of("other").path == kept


def test_a_manifest_of_another_versions_rules_is_made_anew(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", b"data"))
    made = here.stock.of("one")
    header = msgspec.msgpack.encode(manifest.Header(format=99))
    raw = len(header).to_bytes(4) + header
    made.path.unlink()
    digest = hashlib.sha256(raw).hexdigest()
    (here.stock.path / f"{made.id}.{digest}").write_bytes(raw)
    send(here, there, "one")
    assert here.stock.of("one") == made


def test_a_manifest_without_end_is_cut_off_at_what_was_offered(root: MakeRoot) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", b"data"))
    offer = here.source.offer("one")
    taken = itertools.count()

    def without_end() -> Iterator[bytes]:
        while next(taken) < 10_000:
            yield b"x"

    with there.sink.receive("one", "", offer) as landing:
        assert landing is not None
        with pytest.raises(DataLoss, match="longer than was said"):
            landing.take_manifest(without_end())
    assert next(taken) == offer.manifest_bytes + 1
    assert os.listdir(there.stock.path) == []


@pytest.mark.parametrize(
    "wrong",
    [{"manifest_bytes": 1 << 50}, {"manifest_bytes": -1}, {"digest": b"x"}, {"below": (b"",)}],
)
def test_offers_of_what_no_layer_can_be_are_refused(
    root: MakeRoot, wrong: dict[str, object]
) -> None:
    here, there = root("here"), root("there")
    here.commit("one", "", _file("file", b"data"))
    offer = msgspec.structs.replace(here.source.offer("one"), **wrong)
    with (
        pytest.raises(InvalidArgument, match="is offered"),
        there.sink.receive("one", "", offer),
    ):
        pass
