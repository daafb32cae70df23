"""The images' and metadata's services of snapfs.v1: translate, call, translate back."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TypeAlias

import grpc

from snapfs.images import (
    Catalog,
    Committer,
    Described,
    Exporter,
    Importer,
    Progress,
    Statement,
    Wanted,
    parse_platform,
)
from snapfs.metadata import Metadata
from snapfs.model import InvalidArgument
from snapfs.service import metadata_v1_pb2 as pb
from snapfs.service import metadata_v1_pb2_grpc
from snapfs.service import metadata_wire as wire
from snapfs.service.convert import batches, time_ns
from snapfs.service.status import answers
from snapfs.snapshots import Snapshotter

IMAGES = pb.DESCRIPTOR.services_by_name["Images"].full_name
METADATA = pb.DESCRIPTOR.services_by_name["Metadata"].full_name
STEPS_WAITING = 64
"""Steps of an import that wait for a slow client; further ones replace nothing and are left out."""

Report: TypeAlias = Callable[[Progress], None]


def register_images(
    server: grpc.Server, metadata: Metadata, snapshotter: Snapshotter, wait_s: float
) -> str:
    """Add the images' service to `server`; return its full name."""
    servicer = ImagesServicer(metadata, snapshotter, wait_s)
    metadata_v1_pb2_grpc.add_ImagesServicer_to_server(servicer, server)
    return IMAGES


def register_metadata(server: grpc.Server, metadata: Metadata, wait_s: float) -> str:
    """Add metadata's service to `server`; return its full name."""
    servicer = MetadataServicer(metadata, wait_s)
    metadata_v1_pb2_grpc.add_MetadataServicer_to_server(servicer, server)
    return METADATA


class ImagesServicer(metadata_v1_pb2_grpc.ImagesServicer):
    """snapfs.v1.Images over one root."""

    def __init__(self, metadata: Metadata, snapshotter: Snapshotter, wait_s: float) -> None:
        self._catalog = Catalog(metadata)
        self._importer = Importer(metadata, snapshotter)
        self._exporter = Exporter(metadata)
        self._committer = Committer(metadata, snapshotter)
        self._wait_s = wait_s

    @answers
    def Import(
        self, request: pb.ImportImageRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ImportImageResponse]:
        path = _host_path(request.path)
        wanted = _wanted(request)
        namespace = request.namespace

        def work(report: Report) -> list[Described]:
            made = self._importer.import_path(namespace, path, wanted, report)
            return [self._catalog.get(namespace, image.name) for image in made]

        yield from _told(work)

    @answers
    def Export(
        self, request: pb.ExportImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ImportImageResponse]:
        path = _host_path(request.path)

        def work(report: Report) -> list[Described]:
            self._exporter.export(request.namespace, list(request.names), path, report)
            return []

        yield from _told(work)

    @answers
    def Commit(
        self, request: pb.CommitImageRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ImportImageResponse]:
        statement = Statement(
            author=request.author,
            comment=request.comment,
            created_by=request.created_by or Statement().created_by,
            epoch_s=request.epoch if request.HasField("epoch") else None,
        )

        def work(report: Report) -> list[Described]:
            made = self._committer.commit(
                request.namespace,
                request.key,
                request.name,
                statement=statement,
                base=request.base,
                report=report,
            )
            return [made]

        yield from _told(work)

    @answers
    def Verify(
        self, request: pb.VerifyImageRequest, context: grpc.ServicerContext
    ) -> pb.VerifyImageResponse:
        return pb.VerifyImageResponse(
            problems=self._catalog.verify(request.namespace, request.name)
        )

    @answers
    def List(
        self, request: pb.ListImagesRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListImagesResponse]:
        found = self._catalog.walk(request.namespace, list(request.filters))
        for batch in batches(found):
            yield pb.ListImagesResponse(images=map(wire.image_to_wire, batch))

    @answers
    def Get(
        self, request: pb.GetImageRequest, context: grpc.ServicerContext
    ) -> pb.GetImageResponse:
        if request.HasField("at"):
            found = self._catalog.get_at(request.namespace, request.name, time_ns(request.at))
        else:
            found = self._catalog.get(request.namespace, request.name)
        return pb.GetImageResponse(image=wire.image_to_wire(found))

    @answers
    def Tag(
        self, request: pb.TagImageRequest, context: grpc.ServicerContext
    ) -> pb.GetImageResponse:
        made = self._catalog.tag(request.namespace, request.name, request.new_name)
        return pb.GetImageResponse(image=wire.image_to_wire(made))

    @answers
    def Remove(
        self, request: pb.RemoveImageRequest, context: grpc.ServicerContext
    ) -> pb.RemoveImageResponse:
        wait_s = self._wait_s if request.wait else None
        self._catalog.remove(request.namespace, request.name, wait_s=wait_s)
        return pb.RemoveImageResponse()


class MetadataServicer(metadata_v1_pb2_grpc.MetadataServicer):
    """snapfs.v1.Metadata over one root."""

    def __init__(self, metadata: Metadata, wait_s: float) -> None:
        self._metadata = metadata
        self._wait_s = wait_s

    @answers
    def ListNamespaces(
        self, request: pb.ListNamespacesRequest, context: grpc.ServicerContext
    ) -> pb.ListNamespacesResponse:
        found = self._metadata.namespaces.all()
        return pb.ListNamespacesResponse(namespaces=map(wire.namespace_to_wire, found))

    @answers
    def CreateNamespace(
        self, request: pb.CreateNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.Namespace:
        made = self._metadata.namespaces.create(request.name, dict(request.labels))
        return wire.namespace_to_wire(made)

    @answers
    def LabelNamespace(
        self, request: pb.LabelNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.Namespace:
        for key, value in request.labels.items():
            self._metadata.namespaces.set_label(request.name, key, value)
        return wire.namespace_to_wire(self._metadata.namespaces.get(request.name))

    @answers
    def RemoveNamespace(
        self, request: pb.RemoveNamespaceRequest, context: grpc.ServicerContext
    ) -> pb.RemoveNamespaceResponse:
        self._metadata.namespaces.delete(request.name)
        return pb.RemoveNamespaceResponse()

    @answers
    def ListLeases(
        self, request: pb.ListLeasesRequest, context: grpc.ServicerContext
    ) -> pb.ListLeasesResponse:
        found = self._metadata.leases.walk(request.namespace, list(request.filters))
        return pb.ListLeasesResponse(
            leases=[self._lease(request.namespace, lease.id) for lease in found]
        )

    @answers
    def CreateLease(
        self, request: pb.CreateLeaseRequest, context: grpc.ServicerContext
    ) -> pb.Lease:
        self._metadata.leases.create(request.namespace, request.id, dict(request.labels))
        return self._lease(request.namespace, request.id)

    @answers
    def RemoveLease(
        self, request: pb.RemoveLeaseRequest, context: grpc.ServicerContext
    ) -> pb.RemoveLeaseResponse:
        self._metadata.leases.delete(request.namespace, request.id)
        return pb.RemoveLeaseResponse()

    @answers
    def ChangeLease(
        self, request: pb.ChangeLeaseRequest, context: grpc.ServicerContext
    ) -> pb.Lease:
        self._metadata.leases.change(
            request.namespace,
            request.id,
            add=wire.resources_from_wire(request.add),
            remove=wire.resources_from_wire(request.remove),
        )
        return self._lease(request.namespace, request.id)

    @answers
    def ListContent(
        self, request: pb.ListContentRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListContentResponse]:
        found = self._metadata.content.walk(request.namespace, list(request.filters))
        for batch in batches(found):
            yield pb.ListContentResponse(content=map(wire.content_to_wire, batch))

    @answers
    def Collect(
        self, request: pb.CollectRequest, context: grpc.ServicerContext
    ) -> pb.CollectResponse:
        done = self._metadata.gc.trigger().result(timeout=self._wait_s)
        return pb.CollectResponse(
            removed=done.removed,
            failed=done.failed,
            failures=done.failures,
            marked=done.marked,
            elapsed_ns=done.elapsed_ns,
        )

    @answers
    def ListCollections(
        self, request: pb.ListCollectionsRequest, context: grpc.ServicerContext
    ) -> pb.ListCollectionsResponse:
        runs = self._metadata.collector.runs()
        return pb.ListCollectionsResponse(collections=map(wire.collection_to_wire, runs))

    @answers
    def ListGarbage(
        self, request: pb.ListGarbageRequest, context: grpc.ServicerContext
    ) -> Iterator[pb.ListGarbageResponse]:
        for batch in batches(self._metadata.garbage()):
            yield pb.ListGarbageResponse(garbage=map(wire.step_to_wire, batch))

    @answers
    def Explain(
        self, request: pb.ExplainRequest, context: grpc.ServicerContext
    ) -> pb.ExplainResponse:
        name = wire.object_from_wire(request.object)
        why = self._metadata.explain(request.namespace, name)
        return pb.ExplainResponse(path=map(wire.step_to_wire, why.path), reason=why.reason)

    def _lease(self, namespace: str, id_: str) -> pb.Lease:
        leases = self._metadata.leases
        return wire.lease_to_wire(leases.get(namespace, id_), leases.resources(namespace, id_))


class _Job:
    """Work on a thread of its own, its steps seen by another.

    A client that goes away does not end the work: an import that is half done helps nobody.
    """

    def __init__(self, work: Callable[[Report], list[Described]]) -> None:
        self._steps: queue.Queue[Progress | None] = queue.Queue(STEPS_WAITING)
        self._result: list[Described] = []
        self._error: Exception | None = None
        self._thread = threading.Thread(target=self._run, args=(work,), daemon=True)
        self._thread.start()

    def steps(self) -> Iterator[Progress]:
        """Yield steps until the work is done."""
        while (step := self._steps.get()) is not None:
            yield step

    def result(self) -> list[Described]:
        """Return what the work did, or raise what it raised."""
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._result

    def _run(self, work: Callable[[Report], list[Described]]) -> None:
        try:
            self._result = work(self._report)
        except Exception as error:  # noqa: BLE001 - raised again where the answer is made
            self._error = error
        finally:
            self._end()

    def _report(self, step: Progress) -> None:
        try:
            self._steps.put_nowait(step)
        except queue.Full:
            return

    def _end(self) -> None:
        while True:
            try:
                self._steps.put_nowait(None)
            except queue.Full:
                try:
                    self._steps.get_nowait()
                except queue.Empty:
                    continue
            else:
                return


def _told(work: Callable[[Report], list[Described]]) -> Iterator[pb.ImportImageResponse]:
    """Do work while telling of its steps, then of what it made."""
    job = _Job(work)
    for step in job.steps():
        yield pb.ImportImageResponse(
            step=step.step,
            what=step.what,
            done_bytes=step.done_bytes,
            total_bytes=step.total_bytes,
        )
    yield pb.ImportImageResponse(images=map(wire.image_to_wire, job.result()))


def _host_path(text: str) -> Path:
    path = Path(text)
    if not path.is_absolute():
        raise InvalidArgument(f"path {text!r} is not absolute; the service needs it so")
    return path


def _wanted(request: pb.ImportImageRequest) -> Wanted:
    return Wanted(
        name=request.name,
        unpack=not request.no_unpack,
        platform=parse_platform(request.platform) if request.platform else None,
    )
