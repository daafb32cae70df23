"""Snapshotters of other services, reached over their sockets and offered by ours, by namespace."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import grpc
import pytest
from snapfs_containerd import foreign, server, snapshots_pb2_grpc
from snapfs_containerd import snapshots_pb2 as pb

from snapfs import tables
from snapfs.config import Config, Registered
from snapfs.metadata import Context, Metadata, Resource
from snapfs.model import AlreadyExists, DeadlineExceeded, NotFound, Unavailable
from snapfs.service import grpc_server
from snapfs.service.offered import Offered
from snapfs.snapshots import NoTrees, Snapshotter
from tests.support.daemon import eventually

TIMEOUT_S = 30.0
PATIENCE_S = 1.0
ROOT = {"containerd.io/gc.root": "1"}
ONE = Context("one")


@contextmanager
def serving(address: Path, snapshotter: Snapshotter) -> Iterator[None]:
    """A snapshots service on a socket, as another snapfs has it."""
    register = partial(server.register_snapshots, snapshotter=snapshotter)
    built = grpc_server.build(address, services=[register])
    try:
        yield
    finally:
        built.stop(grace_s=0)


class Deaf(snapshots_pb2_grpc.SnapshotsServicer):
    """Hears everything and answers nothing until the test ends."""

    def __init__(self) -> None:
        self.heard: list[str] = []
        self.ended = threading.Event()

    def _ignore(self, request: Any, context: grpc.ServicerContext) -> Any:
        self.heard.append(type(request).__name__)
        self.ended.wait(TIMEOUT_S)
        context.abort(grpc.StatusCode.UNAVAILABLE, "the test is over")

    Prepare = Remove = Stat = _ignore


@pytest.fixture
def there(tmp_path: Path) -> Iterator[Snapshotter]:
    """What the other service has."""
    with Snapshotter(tmp_path / "there", trees=NoTrees(tmp_path / "mnt")) as opened:
        yield opened


@pytest.fixture
def deaf(tmp_path: Path) -> Iterator[Deaf]:
    servicer = Deaf()
    built = grpc.server(ThreadPoolExecutor(4))
    snapshots_pb2_grpc.add_SnapshotsServicer_to_server(servicer, built)
    built.add_insecure_port(f"unix:{tmp_path / 'deaf.sock'}")
    built.start()
    yield servicer
    servicer.ended.set()
    built.stop(None).wait(TIMEOUT_S)


@pytest.fixture
def config(tmp_path: Path) -> Config:
    return Config(
        snapshotters={
            "other": Registered(socket=tmp_path / "other.sock", snapshotter="snapfs"),
            "deaf": Registered(socket=tmp_path / "deaf.sock"),
        }
    )


@pytest.fixture
def own(tmp_path: Path) -> Iterator[Snapshotter]:
    root, mounts = tmp_path / "here", NoTrees(tmp_path / "mnt")
    with Snapshotter(root, trees=mounts, tables=tables.TABLES, checks=tables.CHECKS) as opened:
        yield opened
        assert opened.store.check() == []


@pytest.fixture
def metadata(own: Snapshotter, config: Config, tmp_path: Path) -> Iterator[Metadata]:
    with ExitStack() as stack:
        registered = {
            name: stack.enter_context(foreign.connect(name, it, PATIENCE_S))
            for name, it in config.snapshotters.items()
        }
        known = {"snapfs": own, **registered}
        yield stack.enter_context(Metadata(own.store, tmp_path / "content", known))


@pytest.fixture
def service(
    own: Snapshotter, metadata: Metadata, config: Config, tmp_path: Path
) -> Iterator[snapshots_pb2_grpc.SnapshotsStub]:
    register = partial(server.register, offered=Offered(own, metadata, config))
    built = grpc_server.build(tmp_path / "here.sock", services=[register])
    with grpc.insecure_channel(f"unix:{built.address}") as channel:
        yield snapshots_pb2_grpc.SnapshotsStub(channel)
    built.stop(grace_s=0)


def call(method: Any, request: Any, *, namespace: str = "one", lease: str = "") -> Any:
    request.snapshotter = request.snapshotter or "other"
    headers = [("containerd-namespace", namespace)] if namespace else []
    headers += [("containerd-lease", lease)] if lease else []
    return method(request, timeout=TIMEOUT_S, metadata=headers)


def names(metadata: Metadata, namespace: str = "one") -> list[str]:
    return [it.name for it in metadata.snapshots("other").walk(namespace)]


def test_the_service_offers_what_is_registered_as_containerd_would(
    service: snapshots_pb2_grpc.SnapshotsStub,
    metadata: Metadata,
    there: Snapshotter,
    tmp_path: Path,
) -> None:
    with serving(tmp_path / "other.sock", there):
        metadata.leases.create("one", "l")
        made = call(service.Prepare, pb.PrepareSnapshotRequest(key="k"), lease="l")
        assert call(service.Mounts, pb.MountsRequest(key="k")).mounts == made.mounts
        commit = pb.CommitSnapshotRequest(key="k", name="base", labels={"said": "1"})
        call(service.Commit, commit, lease="l")
        call(service.View, pb.ViewSnapshotRequest(key="v", parent="base", labels=ROOT))
        found = [it for part in call(service.List, pb.ListSnapshotsRequest()) for it in part.info]
        assert {(it.name, it.kind, it.parent) for it in found} == {
            ("base", pb.COMMITTED, ""),
            ("v", pb.VIEW, "base"),
        }
        info = call(service.Stat, pb.StatSnapshotRequest(key="base")).info
        assert dict(info.labels) == {"said": "1"}
        changed = pb.UpdateSnapshotRequest(info=pb.Info(name="base", labels={"said": "2"}))
        assert dict(call(service.Update, changed).info.labels) == {"said": "2"}
        usage = call(service.Usage, pb.UsageRequest(key="base"))
        (theirs,) = there.walk(["kind==committed"])
        assert (usage.size, usage.inodes) == (
            there.usage(theirs.name).size_bytes,
            there.usage(theirs.name).inodes,
        )
        call(service.Cleanup, pb.CleanupRequest())
        assert metadata.leases.resources("one", "l") == [Resource("snapshots/other", "base")]
        assert names(metadata, "two") == []
        call(service.Remove, pb.RemoveSnapshotRequest(key="v"))
        metadata.leases.delete("one", "l")
        assert metadata.collector.collect().removed["snapshot link"] == 1
        assert list(there.walk()) == []


def test_a_call_without_a_namespace_and_a_name_nobody_registered_are_refused(
    service: snapshots_pb2_grpc.SnapshotsStub,
) -> None:
    for request, namespace, code in (
        (pb.StatSnapshotRequest(key="k"), "", grpc.StatusCode.FAILED_PRECONDITION),
        (
            pb.StatSnapshotRequest(key="k", snapshotter="unheard-of"),
            "one",
            grpc.StatusCode.INVALID_ARGUMENT,
        ),
        (pb.StatSnapshotRequest(key="k"), "one", grpc.StatusCode.NOT_FOUND),
    ):
        with pytest.raises(grpc.RpcError) as caught:
            call(service.Stat, request, namespace=namespace)
        assert caught.value.code() is code


@pytest.mark.logs("gc.snapshot_kept")
def test_a_service_that_is_gone_is_named_and_asked_again_when_it_is_back(
    metadata: Metadata, there: Snapshotter, tmp_path: Path
) -> None:
    snapshots, address = metadata.snapshots("other"), tmp_path / "other.sock"
    with pytest.raises(Unavailable, match=r"'other' does not answer on socket .*other\.sock \("):
        snapshots.prepare(ONE, "k", labels=ROOT)
    with serving(address, there):
        assert eventually_prepared(metadata, "k")
        snapshots.prepare(ONE, "doomed", labels=ROOT)
    snapshots.remove("one", "doomed")
    done = metadata.collector.collect()
    assert any("doomed" in it for it in done.failed)
    assert len(list(there.walk())) == 2
    with serving(address, there):
        for _ in range(50):
            if not metadata.collector.collect().failed:
                break
            threading.Event().wait(0.1)
        assert names(metadata) == ["k"]
        assert len(list(there.walk())) == 1


def eventually_prepared(metadata: Metadata, key: str) -> bool:
    """Prepare when the channel has found out that the service is back: a second at most."""
    for _ in range(50):
        try:
            metadata.snapshots("other").prepare(ONE, key, labels=ROOT)
        except Unavailable:
            threading.Event().wait(0.1)
        else:
            return True
    return False


@pytest.mark.logs("gc.snapshot_kept")
def test_a_service_that_does_not_answer_is_waited_for_once_a_run_and_stops_nobody_else(
    metadata: Metadata, there: Snapshotter, deaf: Deaf, tmp_path: Path
) -> None:
    for key in ("a", "b", "c"):
        with pytest.raises(DeadlineExceeded, match=r"'deaf' does not answer .* in time"):
            metadata.snapshots("deaf").prepare(ONE, key)
    with serving(tmp_path / "other.sock", there):
        metadata.snapshots("other").prepare(ONE, "k")
        deaf.heard.clear()
        done = metadata.collector.collect()
        assert deaf.heard == ["RemoveSnapshotRequest"]
        assert len([it for it in done.failed if "deaf" in it]) == 3
        assert list(there.walk()) == []
        assert done.waited_ns >= PATIENCE_S * 1e9  # no reason to collect less often


@pytest.mark.logs("gc.snapshot_kept")
def test_a_collection_that_waits_for_a_service_ends_with_ours(
    metadata: Metadata,
    deaf: Deaf,
    config: Config,
    own: Snapshotter,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    with pytest.raises(DeadlineExceeded):
        metadata.snapshots("deaf").prepare(ONE, "k")
    deaf.heard.clear()
    monkeypatch.setattr(foreign, "SHORT_S", 600)  # longer than a test may take
    other = foreign.connect("deaf", config.snapshotters["deaf"], 600)
    with Metadata(own.store, tmp_path / "content", {"deaf": other}) as next_one:
        next_one.start()
        eventually(lambda: deaf.heard == ["RemoveSnapshotRequest"], what="the collector")
        other.close()
    with pytest.raises(Unavailable, match="is stopping"):
        other.stat("k")


def test_a_service_that_hangs_takes_no_more_than_its_turns(
    deaf: Deaf, config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(foreign, "TURNS", 2)
    with (
        foreign.connect("deaf", config.snapshotters["deaf"], TIMEOUT_S) as other,
        ThreadPoolExecutor(2) as pool,
    ):
        waiting = [pool.submit(other.stat, "k") for _ in range(2)]
        eventually(lambda: len(deaf.heard) == 2, what="two calls")
        with pytest.raises(Unavailable, match="is still busy with 2 calls"):
            other.stat("k")
        deaf.ended.set()
        for it in waiting:
            with pytest.raises(Unavailable):
                it.result(TIMEOUT_S)
        with pytest.raises(Unavailable, match="the test is over"):
            other.stat("k")


@pytest.mark.logs("snapshot.not_settled", "call.failed", "gc.snapshot_kept")
def test_what_died_half_way_waits_for_the_service_and_no_start_waits_for_it(
    own: Snapshotter, metadata: Metadata, there: Snapshotter, config: Config, tmp_path: Path
) -> None:
    address = tmp_path / "other.sock"
    with serving(address, there):
        metadata.snapshots("other").prepare(ONE, "k", labels=ROOT)
        stat = there.stat
        there.stat = die  # type: ignore[assignment, method-assign]
        commit = there.commit
        there.commit = partial(do_and_die, commit)  # type: ignore[method-assign]
        with pytest.raises(Exception, match="unexpected"):
            metadata.snapshots("other").commit(ONE, "k", "name", ROOT)
        there.stat, there.commit = stat, commit  # type: ignore[method-assign]
    with (
        foreign.connect("other", config.snapshotters["other"], PATIENCE_S) as other,
        Metadata(own.store, tmp_path / "content", {"other": other}) as next_one,
    ):
        next_one.start()
        with pytest.raises(Unavailable, match="does not answer"):
            next_one.snapshots("other").stat("one", "k")
        with serving(address, there):
            assert eventually_prepared(next_one, "another")
            next_one.gc.trigger().result(TIMEOUT_S)
            assert names(next_one) == ["another", "name"]
            with pytest.raises(NotFound):
                next_one.snapshots("other").stat("one", "k")
            with pytest.raises(AlreadyExists):  # so who did not hear of the first asks again
                next_one.snapshots("other").commit(ONE, "k", "name", ROOT)


def die(*_: Any, **__: Any) -> Any:
    raise RuntimeError


def do_and_die(function: Any, *arguments: Any, **more: Any) -> Any:
    function(*arguments, **more)
    raise RuntimeError
