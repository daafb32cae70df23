"""Builds everything that `snapfs serve` runs, in one place, with one exit stack.

Order up: state lock, root, snapshots (the store's writer, recovery), lanes (FUSE mounts and
workers), gRPC server. The house stands when the workers and its own socket have answered. Order
down is the reverse: calls in flight end within a deadline, lanes are unmounted, the store closes.
What a container still uses stays mounted for it; see docs/architecture.md, Stopping.
"""

from __future__ import annotations

import os
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from importlib.metadata import entry_points
from itertools import chain
from pathlib import Path
from typing import Protocol

import grpc
import structlog
from grpc_health.v1 import health_pb2, health_pb2_grpc

from snapfs import __version__, anchors, preflight, tables
from snapfs.config import MOST_WORKERS, Config
from snapfs.forgetting import Forgetting
from snapfs.fuse.awake import Awake
from snapfs.fuse.lanes import Lanes
from snapfs.fuse.modes import Mode
from snapfs.fuse.seat import LaneState
from snapfs.fuse.supervisor import Lane
from snapfs.images import SNAPSHOTTER, clear_copies, clear_unpacked
from snapfs.metadata import Backend, Knobs, Metadata
from snapfs.model import MAIN_LANE, LaneName, Quota, SnapfsError, Unavailable
from snapfs.overlay import LayerCopy, diff, has_changed
from snapfs.reporting import lane_record, lane_warnings
from snapfs.service import (
    anchor_server,
    container_server,
    content_server,
    grpc_server,
    metadata_server,
    queued,
    remote_server,
    server,
    volumes_server,
)
from snapfs.service.denied import readers_address
from snapfs.service.exchanging import Exchanging, connect
from snapfs.service.offered import Offered
from snapfs.service.records import DaemonRecord
from snapfs.service.store_server import StoreServicer
from snapfs.service.volume_plugin import VolumePlugin
from snapfs.service.volume_socket import PluginServer
from snapfs.snapshots import Placement, Snapshotter, roots
from snapfs.snapshots.placement import workers_of
from snapfs.store import Store
from snapfs.sync.engine import Engine
from snapfs.sync.replica import Replica
from snapfs.systemd import DescriptorStore, hand_on
from snapfs.volumes import Volumes

log = structlog.get_logger(__name__)

LANES = {
    MAIN_LANE: Mode.PASSTHROUGH,
    LaneName("views"): Mode.READONLY,
    LaneName("no-open"): Mode.NO_OPEN,
}
"""Every lane with its mode; config.Lanes has the same names."""
PROCESSORS_A_WORKER = 4
READERS = 8
"""Calls of who may look only that are answered at once."""
SERVICES_GROUP = "snapfs.services"
SNAPSHOTTERS_GROUP = "snapfs.snapshotters"
KEEP_UNFINISHED_NS = 7 * 24 * 3600 * 1_000_000_000
"""How long a sync that was cut short finds what came of it."""


class Registered(Backend, Protocol):
    """A snapshotter of another service; closing it ends the calls under way."""

    def close(self) -> None: ...


class House:
    """What serves: built by `open`, ended by `close`; both block, each step with a deadline."""

    def __init__(self, config: Config, store: DescriptorStore, kept: str = "") -> None:
        """`kept` is what this process should have given up and could not (confinement.py)."""
        self._config = config
        self._store = store
        self._kept = kept
        self._stack = ExitStack()
        self._started_ns = time.time_ns()
        self._server: grpc_server.GrpcServer | None = None
        self._readers: grpc_server.GrpcServer | None = None
        self._waits_for_a_disk = False
        """A worker does, and new mounts in its lane would."""
        self._queue: socket.socket | None = None
        """Where callers wait when this process is gone."""

    def open(self) -> None:
        """Build and start everything; on an error what was built is ended again."""
        config = self._config
        with ExitStack() as stack:
            stack.enter_context(preflight.hold_state(config.state))
            roots.check_place(config.root)
            roots.attach(config.root)
            stack.callback(_detach_root, config.root)
            roots.check_whole(config.root)
            preflight.check_layers_filesystem(config.root)
            self._lanes = _lanes(config, self._store)
            self._snapshotter = Snapshotter(
                config.root,
                trees=self._lanes,
                unpack=config.unpack,
                durability=config.durability,
                differ=diff.changes,
                copier=LayerCopy,
                default_quota=_default_quota(config),
                seals=config.seals == "background",
                tables=tables.TABLES,
                checks=tables.CHECKS,
                deadline_s=config.timeouts.tree_s,
            )
            stack.callback(self._snapshotter.close)
            registered = _registered(config)
            snapshotters = {SNAPSHOTTER: self._snapshotter, **registered}
            self._metadata = stack.enter_context(
                _metadata(config, self._snapshotter.store, snapshotters)
            )
            for it in registered.values():
                stack.callback(it.close)  # first, since the collector may wait for one
            self._volumes = Volumes(
                self._snapshotter, config.state / "volumes", changed=has_changed
            )
            self._watches = StoreServicer(self._snapshotter.store)
            stack.callback(self._lanes.stop, config.timeouts.stop_s)
            self._lanes.start(self._snapshotter.lanes_in_use())
            clear_unpacked(self._snapshotter)
            clear_copies(self._snapshotter)
            self._metadata.start()
            self._volumes.start()
            self._serve_plugin(stack)
            replica = Replica(self._snapshotter, deadline_s=config.timeouts.tree_s)
            replica.sweep(time.time_ns() - KEEP_UNFINISHED_NS)
            self._engine = Engine(replica)
            stack.enter_context(Exchanging(config, replica))
            self._server = self._build_server()
            if self._store.is_there:
                self._keep_queue(self._server.listener())
            stack.callback(self._stop_server, self._server)
            self._readers = self._build_readers()
            stack.callback(self._stop_readers)
            self.probe()
            self.set_serving(serving=True)
            _check_socket(config)
            names = anchors.Anchors(self._snapshotter.store)
            stack.enter_context(Forgetting(config.history, names, self._volumes))
            self._stack = stack.pop_all()

    def _serve_plugin(self, stack: ExitStack) -> None:
        """Serve the volume plugin; without it the rest is as good as ever."""
        address = self._config.volumes.plugin_socket
        try:
            stack.enter_context(PluginServer(address, VolumePlugin(self._volumes).calls()))
        except (OSError, SnapfsError) as error:
            log.warning("plugin.not_served", address=str(address), error=str(error))

    def close(self) -> None:
        """End everything in the reverse order."""
        self._stack.close()

    def hurry(self) -> None:
        """End calls in flight now; for a second signal, beside a `close` that waits for them."""
        if self._server is not None:
            self._server.stop(grace_s=0)

    def probe(self) -> None:
        """Return when the store's writer and all workers answer; else raise what is wrong.

        A worker that waits for a disk is no fault of ours, and a restart of the service no help.
        A lane that is being started, as when it is first needed, has a deadline of its own.
        """
        timeout_s = self._config.timeouts.probe_s
        self._snapshotter.probe(timeout_s=timeout_s)
        lanes = self._lanes.statuses(timeout_s)
        self._waits_for_a_disk = any(lane.waits_in for lane in lanes)
        for lane in lanes:
            if lane.state is LaneState.STARTING:
                continue
            if not lane.serving and not lane.waits_in:
                raise Unavailable(
                    f"lane {lane.name} is {lane.state.value}: its worker does not answer"
                )

    def mend(self) -> None:
        """Mount again what somebody unmounted behind our back."""
        self._lanes.mend()

    @property
    def is_ready(self) -> bool:
        """Whether new mounts can be made, where what there is may be as good as ever."""
        return self._lanes.in_place and not self._waits_for_a_disk

    def set_serving(self, *, serving: bool) -> None:
        """Tell health checks how the service is."""
        for served in (self._server, self._readers):
            if served is not None:
                served.set_serving(serving=serving)

    def describe(self) -> DaemonRecord:
        """Return what `snapfs status` shows."""
        config, held = self._config, self._snapshotter.status()
        lanes = self._lanes.statuses()
        return DaemonRecord(
            version=__version__,
            pid=os.getpid(),
            started_ns=self._started_ns,
            root=config.root,
            state=config.state,
            unpack=config.unpack,
            revision=held.revision,
            active=held.active,
            views=held.views,
            committed=held.committed,
            pending_removals=len(held.pending),
            warnings=(
                *held.warnings,
                *_rights_kept(self._kept),
                *chain.from_iterable(map(lane_warnings, lanes)),
            ),
            lanes=tuple(map(lane_record, lanes)),
        )

    def _own_services(self) -> list[grpc_server.Register]:
        config = self._config
        return [
            partial(
                server.register,
                snapshotter=self._snapshotter,
                describe=self.describe,
                root=config.root,
                state=config.state,
            ),
            partial(anchor_server.register, anchors=anchors.Anchors(self._snapshotter.store)),
            self._watches.register,
            partial(volumes_server.register, volumes=self._volumes, between=diff.between),
            partial(
                remote_server.register,
                engine=self._engine,
                connect=partial(connect, config),
                wait_s=config.timeouts.call_s,
            ),
            partial(
                metadata_server.register_images,
                metadata=self._metadata,
                snapshotter=self._snapshotter,
                wait_s=config.timeouts.call_s,
            ),
            partial(
                metadata_server.register_metadata,
                metadata=self._metadata,
                wait_s=config.timeouts.call_s,
            ),
            partial(content_server.register, metadata=self._metadata),
            partial(container_server.register_containers, metadata=self._metadata),
            partial(container_server.register_sandboxes, metadata=self._metadata),
        ]

    def _build_server(self) -> grpc_server.GrpcServer:
        config, services = self._config, self._own_services()
        offered = Offered(self._snapshotter, self._metadata, config)
        for entry in entry_points(group=SERVICES_GROUP):
            services.append(partial(entry.load(), offered=offered))
            log.info("service.added", name=entry.name)
        return grpc_server.build(
            config.address,
            services=services,
            max_workers=config.service.max_workers,
            queue=queued.Queue.left(self._store),
        )

    def _keep_queue(self, listener: socket.socket | None) -> None:
        """Have who calls when this process is gone wait for the next one."""
        if listener is not None:
            self._store.keep(queued.NAME, listener.fileno())
            self._queue = listener

    def hand_on(self) -> None:
        """Leave who waits to the program that this process is about to become."""
        if self._queue is not None:
            hand_on(queued.NAME, self._queue.fileno())

    def _build_readers(self) -> grpc_server.GrpcServer | None:
        """Serve who may look only, when a group is configured."""
        config = self._config
        if not config.service.group:
            return None
        return grpc_server.build(
            readers_address(config.address),
            services=self._own_services(),
            max_workers=READERS,
            readers_gid=preflight.group_number(config.service.group),
        )

    def _stop_readers(self) -> None:
        if self._readers is not None:
            self._readers.stop(grace_s=0)

    def _stop_server(self, served: grpc_server.GrpcServer) -> None:
        served.set_serving(serving=False)
        if self._store.is_there:
            self._keep_queue(served.leave_queue())
        self._watches.close()
        served.stop(grace_s=self._config.timeouts.drain_s)


def _registered(config: Config) -> dict[str, Registered]:
    """Return the snapshotters of others that the configuration names; none is called yet."""
    found: dict[str, Registered] = {}
    for entry in entry_points(group=SNAPSHOTTERS_GROUP):
        connect_to = entry.load()
        for name, it in config.snapshotters.items():
            found[name] = connect_to(name, it, config.timeouts.call_s)
    return found


def _metadata(config: Config, store: Store, snapshotters: Mapping[str, Backend]) -> Metadata:
    knobs = Knobs(
        pause_threshold=config.gc.pause_threshold,
        deletion_threshold=config.gc.deletion_threshold,
        mutation_threshold=config.gc.mutation_threshold,
        schedule_delay_s=config.gc.schedule_delay_s,
        startup_delay_s=config.gc.startup_delay_s,
    )
    return Metadata(
        store,
        config.root / "content",
        snapshotters,
        policy=config.content.policy,
        knobs=knobs,
    )


def _detach_root(root: Path) -> None:
    if not roots.detach(root):
        log.warning("root.left_mounted", root=str(root), reason="still in use")


def _rights_kept(kept: str) -> Iterator[str]:
    if kept:
        yield f"the service has rights that it does not need: {kept}; docs/security.md"


def _lanes(config: Config, store: DescriptorStore) -> Lanes:
    chosen = config.lanes
    placement = Placement(
        {name: mode.is_writable for name, mode in LANES.items()},
        active=LaneName(chosen.active),
        view=LaneName(chosen.view),
    )
    return Lanes(
        [
            _lane(config, name, mode, store)
            for lane, mode in LANES.items()
            for name in workers_of(lane, MOST_WORKERS)
        ],
        placement,
        start_timeout_s=config.timeouts.start_s,
        stop_timeout_s=config.timeouts.stop_s,
        workers=chosen.workers or _enough_workers(),
    )


def _enough_workers() -> int:
    """One thread answers in each: what four processors ask for keeps it busy."""
    return min(max(1, len(os.sched_getaffinity(0)) // PROCESSORS_A_WORKER), MOST_WORKERS)


def _lane(config: Config, name: LaneName, mode: Mode, store: DescriptorStore) -> Lane:
    return Lane(
        name,
        config.state / "mnt" / name,
        config.root,
        door=config.state / "lanes" / f"{name}.sock",
        mode=mode,
        log_level=config.log_level,
        log_format=config.log_format,
        quota=_default_quota(config),
        metacopy=config.overlay.metacopy,
        awake=Awake(config.lanes.awake),
        watchdog_s=config.timeouts.watchdog_s,
        store=store,
    )


def _default_quota(config: Config) -> Quota:
    return Quota(config.quota.bytes or None, config.quota.inodes or None)


def _check_socket(config: Config) -> None:
    """Ask our own socket for its health, as a client would."""
    with grpc.insecure_channel(f"unix:{config.address}") as channel:
        stub = health_pb2_grpc.HealthStub(channel)
        request = health_pb2.HealthCheckRequest()
        answer = stub.Check(request, timeout=config.timeouts.probe_s, wait_for_ready=True)
    if answer.status != health_pb2.HealthCheckResponse.SERVING:
        raise Unavailable(f"socket {config.address}: answers, but not as serving")
