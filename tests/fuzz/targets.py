"""What reads bytes of strangers, each as a function of bytes: it answers, or refuses as promised.

hypothesis drives them in every run, atheris in `make fuzz`. A target returns for what is refused
with an error that callers expect; any other error is a fault.
"""

from __future__ import annotations

import io
import os
import struct
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from snapfs import config, filters
from snapfs.backup import layout
from snapfs.backup.contents import TABLES
from snapfs.fuse import _channel, channel, control
from snapfs.fuse.inflight import InFlight
from snapfs.images import Limits, untar
from snapfs.model import (
    Kind,
    SnapfsError,
    check_labels,
    check_name,
)
from snapfs.overlay import Places
from snapfs.seals import entries
from snapfs.service import mounted, snapfs_v1_pb2, wire
from snapfs.snapshots import records, roots, schema
from snapfs.store import saved

TINY = Limits(max_bytes=1 << 20, max_entries=100)


def fuzz_filters(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    try:
        selected = filters.parse([text])
    except SnapfsError:
        return
    selected.matches(lambda path: path[0] if path else None)


def fuzz_names(data: bytes) -> None:
    text = data.decode("utf-8", "surrogateescape")
    for check in (
        lambda: records.checked_name(text, "key"),
        lambda: records.checked_labels({text: text[:10], "k": text}),
        lambda: check_name(text, "name"),
        lambda: check_labels({"k": text[:20]}),
    ):
        try:
            check()
        except (SnapfsError, UnicodeEncodeError):
            continue


def fuzz_protobufs(data: bytes) -> None:
    """Messages of the service: what parses becomes a record, or is refused."""
    for message in (snapfs_v1_pb2.Snapshot(), snapfs_v1_pb2.StatusResponse()):
        try:
            message.ParseFromString(data)
        except Exception:  # noqa: BLE001 - protobuf's error type depends on its engine
            return
        try:
            if isinstance(message, snapfs_v1_pb2.Snapshot):
                wire.record_from_wire(message)
            else:
                wire.status_from_wire(message)
        except SnapfsError:
            continue


@contextmanager
def left(data: bytes) -> Iterator[int]:
    """Memory that a dead worker left."""
    fd = os.memfd_create("left", os.MFD_CLOEXEC)
    try:
        os.write(fd, data)
        yield fd
    finally:
        os.close(fd)


NUMBERS = range(2, 40, 2)


def fuzz_requests_in_flight(data: bytes) -> None:
    """What was noted of requests: gone on with, or found to be damaged; new ones are noted."""
    number = 0
    with left(data) as fd:
        journal = InFlight(fd, lambda: number)
        for it in NUMBERS:
            number = it | channel.RESENT
            with journal.request() as once:
                once.intend(7, 8)
                once.did(9)
        number = 1002
        journal.request().intend(5, 6)
        again = InFlight(fd, lambda: number)
        assert not again.damaged, "a damage is found once"
        found = again.earlier(number | channel.RESENT)
        assert found is not None
        assert (found.first, found.second) == (5, 6)


def fuzz_counts_of_opens(data: bytes) -> None:
    """What is open past us: each entry that is gone on with makes sense."""
    with left(data) as fd:
        opened = _channel.Opened(fd, 10)
        for nodeid, kind, backing_id, _, _, opens, writers, inherited in opened.all(0, 0, False):
            assert 1 <= kind <= 3
            assert (backing_id > 0) == (kind != 3)
            assert writers <= opens
            assert inherited
            assert opened.find(nodeid) is not None
        if opened.find(7) is None:
            opened.add(7, 2, 5, 1, 2)
        opened.enter(7, True, 1, 100)
        opened.leave(7, True, 102)
        for entry in opened.all(0, 0, False):
            opened.remove(entry[0])
        again = _channel.Opened(fd, 10)
        assert not again.damaged, "a damage is found once"
        assert len(again) == 0


def fuzz_places(data: bytes) -> None:
    """Where nodes are: hints, of which a search must always end."""
    with left(data) as fd:
        places = Places(fd)
        for (ino,) in struct.iter_unpack("Q", data[: len(data) // 8 * 8]):
            places.get(ino)
        for ino in NUMBERS:
            places.note(ino, ino + 1)
        assert [places.get(ino) for ino in NUMBERS] == [ino + 1 for ino in NUMBERS]
        for ino in NUMBERS:
            places.drop(ino)
        assert not Places(fd).damaged


def fuzz_words_of_workers(data: bytes) -> None:
    """What a worker, a control process or the record of a mount in the manager's store says."""
    try:
        message = control.decode(data)
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return
    said = control.encode(message)
    assert control.encode(control.decode(said)) == said


def fuzz_layers(data: bytes) -> None:
    """Archives of layers: unpacked below a directory, or refused; nothing lands beside it."""
    with tempfile.TemporaryDirectory() as base:
        target = Path(base, "target")
        target.mkdir()
        fd = os.open(target, os.O_RDONLY | os.O_DIRECTORY)
        try:
            packed = untar.Counter(io.BytesIO(data))
            untar.unpack(packed, packed, fd, merged=False, limits=TINY, what="layer")  # type: ignore[arg-type]
        except (SnapfsError, untar.NeedsParent, OSError):
            pass
        finally:
            os.close(fd)
        assert os.listdir(base) == ["target"]


def fuzz_intents(data: bytes) -> None:
    try:
        schema.decode_intent(data)
    except SnapfsError:
        return


def fuzz_saved_stores(data: bytes) -> None:
    try:
        stream = saved(io.BytesIO(data), TABLES)
        for _ in stream.rows():
            pass
    except SnapfsError:
        return


def fuzz_seals(data: bytes) -> None:
    digest = entries.Digest()
    try:
        for entry in entries.unpack(io.BytesIO(entries.LINE + data).read):
            digest.add(entry)
        digest.result()
    except SnapfsError:
        return


def fuzz_records(data: bytes) -> None:
    """The records of roots and backups."""
    with tempfile.TemporaryDirectory() as base:
        for name in (roots.RECORD, layout.RECORD):
            Path(base, name).write_bytes(data)
        for read in (
            lambda: roots.read_record(Path(base)),
            lambda: layout.Target(Path(base)).record(),
        ):
            try:
                read()
            except SnapfsError:
                continue


def fuzz_configuration(data: bytes) -> None:
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        try:
            config.resolve(path=Path(file.name), environ={})
        except SnapfsError:
            return


def fuzz_mount_tables(data: bytes) -> None:
    """Of the kernel's own making; what a line has in it is chosen by whoever mounts."""
    escaped = data.replace(b"\n", b"\\012").replace(b" ", b"\\040")
    line = b"36 35 98:0 /" + escaped + b" /mnt/" + escaped + b" rw - fuse.snapfs snapfs:/x/y rw"
    found = list(mounted.parse(line))
    mounted.by_snapshot(found, lanes=Path("/x"), layers=Path("/y"))


def fuzz_bodies(data: bytes) -> None:
    """Rows of snapshots, as a store whose checksums hold may have them."""
    try:
        body = msgspec.msgpack.decode(data, type=schema.SnapshotBody)
        Kind(body.kind)
    except (msgspec.MsgspecError, ValueError):
        return
    records.lane(body)


TARGETS: dict[str, Callable[[bytes], None]] = {
    name.removeprefix("fuzz_"): target
    for name, target in list(globals().items())
    if name.startswith("fuzz_")
}
