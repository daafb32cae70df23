"""snapfs.v1.Remotes: remotes, syncs and conflicts, for the operator of this service."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import partial

import grpc
import structlog

from snapfs.model import InvalidArgument, SnapfsError, Unavailable
from snapfs.service import remote_wire as wire
from snapfs.service import sync_v1_pb2 as pb
from snapfs.service import sync_v1_pb2_grpc
from snapfs.service.status import answers, message_of
from snapfs.store import ReadTx, WriteTx
from snapfs.sync import conflicts, remotes
from snapfs.sync.engine import Engine, Progress, Request
from snapfs.sync.peer import Peer
from snapfs.sync.remotes import Remote
from snapfs.sync.threeway import Policy
from snapfs.volumes import Note, sets
from snapfs.volumes.errors import VolumeSetNotFound
from snapfs.volumes.ids import VolumeSetId, is_id, may_be_short, short
from snapfs.volumes.schema import SCOPE, SETS

log = structlog.get_logger(__name__)

SERVICE = pb.DESCRIPTOR.services_by_name["Remotes"].full_name
LOOK_S = 1.0
"""How often a sync looks whether its client is still there."""


Connect = Callable[[Remote], AbstractContextManager[Peer]]
"""Gives another store as a peer, for a block."""


def register(server: grpc.Server, engine: Engine, connect: Connect, wait_s: float) -> str:
    """Add the service to `server`; return its full name. `wait_s` is for the store's writer."""
    servicer = RemotesServicer(engine, connect, wait_s)
    sync_v1_pb2_grpc.add_RemotesServicer_to_server(servicer, server)
    return SERVICE


class RemotesServicer(sync_v1_pb2_grpc.RemotesServicer):
    """Remotes of one store."""

    def __init__(self, engine: Engine, connect: Connect, wait_s: float) -> None:
        self._engine = engine
        self._store = engine.here.store
        self._connect = connect
        self._wait_s = wait_s

    @answers
    def Add(
        self, request: pb.AddRemoteRequest, context: grpc.ServicerContext
    ) -> pb.AddRemoteResponse:
        add = partial(remotes.add, name=request.name, url=request.url)
        added = self._store.update(add, timeout_s=self._wait_s)
        log.info("remote.added", name=request.name, url=request.url)
        return pb.AddRemoteResponse(remote=wire.remote_to_wire(added))

    @answers
    def List(
        self, request: pb.ListRemotesRequest, context: grpc.ServicerContext
    ) -> pb.ListRemotesResponse:
        with self._store.view() as tx:
            return pb.ListRemotesResponse(remotes=map(wire.remote_to_wire, remotes.walk(tx)))

    @answers
    def Remove(
        self, request: pb.RemoveRemoteRequest, context: grpc.ServicerContext
    ) -> pb.RemoveRemoteResponse:
        self._store.update(partial(remotes.remove, name=request.name), timeout_s=self._wait_s)
        log.info("remote.removed", name=request.name)
        return pb.RemoveRemoteResponse()

    @answers
    def Sync(
        self, request: pb.SyncRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.SyncResponse]:
        direction = wire.direction_from_wire(request.direction)
        policy = wire.policy_from_wire(request.policy)
        with self._store.view() as tx:
            remote = remotes.find(tx, request.remote) if request.remote else remotes.only(tx)
        with self._connect(remote) as peer:
            for set_id, path in self._chosen(request.set, peer):
                wanted = Request(set_id, direction, policy, request.author)
                yield from self._sync(remote, peer, wanted, path, context)

    def _chosen(self, text: str, peer: Peer) -> list[tuple[VolumeSetId, str]]:
        """Return the sets that are meant, here or there, with their paths; without a text all."""
        known = {VolumeSetId(it.id): it.path for it in peer.sets()}
        with self._store.view() as tx:
            here = {VolumeSetId(row.name): row.body.path for row in tx.rows(SETS, SCOPE)}
            if not text:
                return sorted((known | here).items(), key=lambda it: it[1])
            try:
                row = sets.resolve(tx, text)
            except VolumeSetNotFound:
                return [_resolve(text, known)]
        return [(VolumeSetId(row.name), row.body.path)]

    def _sync(
        self, remote: Remote, peer: Peer, wanted: Request, path: str, context: grpc.ServicerContext
    ) -> Iterator[pb.SyncResponse]:
        """Sync in a thread, so that what it says can be told while it goes on."""
        said: queue.SimpleQueue[pb.SyncResponse | None] = queue.SimpleQueue()
        is_wanted = True

        def say(progress: Progress) -> None:
            if not is_wanted:
                raise Unavailable("the caller left; sync again to go on")
            said.put(pb.SyncResponse(progress=wire.progress_to_wire(progress)))

        def run() -> None:
            try:
                done = self._engine.sync(remote.name, peer, wanted, say)
                said.put(pb.SyncResponse(report=wire.report_to_wire(done, path)))
            except Exception as error:
                if not isinstance(error, SnapfsError | OSError):
                    log.exception("sync.failed", set_id=wanted.set_id, remote=remote.name)
                report = pb.SyncReport(
                    set_id=wanted.set_id, path=path, remote=remote.name, error=message_of(error)
                )
                said.put(pb.SyncResponse(report=report))
            finally:
                said.put(None)

        thread = threading.Thread(target=run, name="sync")
        thread.start()
        try:
            yield from _until_none(said, context)
        finally:
            is_wanted = False
            thread.join()

    @answers
    def Conflicts(
        self, request: pb.ListConflictsRequest, context: grpc.ServicerContext
    ) -> pb.ListConflictsResponse:
        with self._store.view() as tx:
            found = list(conflicts.walk(tx, _set_of(tx, request.set)))
        return pb.ListConflictsResponse(conflicts=map(wire.conflict_to_wire, found))

    @answers
    def Resolve(
        self, request: pb.ResolveConflictRequest, context: grpc.ServicerContext
    ) -> pb.ResolveConflictResponse:
        side = wire.policy_from_wire(request.side)
        if side is Policy.FAIL:
            raise InvalidArgument("a conflict is settled for ours or for theirs")
        why = Note(author=request.author, reason=f"conflict settled for {side.value}")

        def settle(tx: WriteTx) -> conflicts.Settled:
            return conflicts.settle(tx, request.number, side, why)

        settled = self._store.update(settle, timeout_s=self._wait_s)
        self._engine.here.discard(settled.unneeded)
        log.info("conflict.settled", number=request.number, side=side.value)
        return pb.ResolveConflictResponse(conflict=wire.conflict_to_wire(settled.conflict))


def _until_none(
    said: queue.SimpleQueue[pb.SyncResponse | None], context: grpc.ServicerContext
) -> Iterator[pb.SyncResponse]:
    while context.is_active():
        try:
            answer = said.get(timeout=LOOK_S)
        except queue.Empty:
            continue
        if answer is None:
            return
        yield answer


def _set_of(tx: ReadTx, text: str) -> VolumeSetId | None:
    return VolumeSetId(sets.resolve(tx, text).name) if text else None


def _resolve(text: str, known: dict[VolumeSetId, str]) -> tuple[VolumeSetId, str]:
    """Return the set of another store that is meant by an id, a path or a short id."""
    if is_id(text):
        return VolumeSetId(text), known.get(VolumeSetId(text), "")
    found = [it for it in known.items() if it[1] == text]
    if not found and may_be_short(text):
        found = [it for it in known.items() if short(it[0]).startswith(text)]
    if len(found) != 1:
        what = "is one of several there; give its id" if found else "exists neither here nor there"
        raise VolumeSetNotFound(f"volume set {text[:64]!r} {what}")
    return found[0]
