"""The client of images and metadata: typed calls that raise the SnapfsError that was raised."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

from google.protobuf.message import Message

from snapfs.images import Progress
from snapfs.metadata import Collected, Content, Explanation, Namespace, Resource, Step
from snapfs.metadata.schema import CollectionBody
from snapfs.model import Internal, Labels
from snapfs.service import metadata_v1_pb2 as pb
from snapfs.service import metadata_v1_pb2_grpc
from snapfs.service import metadata_wire as wire
from snapfs.service.connection import Connection
from snapfs.service.convert import timestamp
from snapfs.service.metadata_wire import ImageRecord, LeaseRecord

IMPORT_TIMEOUT_S = 24 * 3600.0


class ImageClient(Connection):
    """snapfs.v1.Images of one namespace over one connection."""

    def __init__(self, address: Path, namespace: str, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self.namespace = namespace
        self._stub = metadata_v1_pb2_grpc.ImagesStub(self._channel)

    def import_path(
        self,
        path: Path,
        *,
        name: str = "",
        platform: str = "",
        unpack: bool = True,
        report: Callable[[Progress], None] = lambda _step: None,
    ) -> list[ImageRecord]:
        """Import what is at an absolute path of the service's host; takes as long as it takes."""
        request = pb.ImportImageRequest(
            namespace=self.namespace,
            path=str(path),
            name=name,
            platform=platform,
            no_unpack=not unpack,
        )
        return self._told(self._stub.Import, request, report)

    def export(
        self,
        names: Sequence[str],
        path: Path,
        *,
        report: Callable[[Progress], None] = lambda _step: None,
    ) -> None:
        """Write images to a new file at an absolute path of the service's host."""
        request = pb.ExportImagesRequest(namespace=self.namespace, names=names, path=str(path))
        self._told(self._stub.Export, request, report)

    def commit(
        self,
        key: str,
        name: str,
        *,
        base: str = "",
        author: str = "",
        comment: str = "",
        created_by: str = "",
        epoch_s: int | None = None,
        report: Callable[[Progress], None] = lambda _step: None,
    ) -> ImageRecord:
        """Make an image of an active snapshot, which is a committed one then."""
        request = pb.CommitImageRequest(
            namespace=self.namespace,
            key=key,
            name=name,
            base=base,
            author=author,
            comment=comment,
            created_by=created_by,
            epoch=epoch_s,
        )
        (made,) = self._told(self._stub.Commit, request, report)
        return made

    def verify(self, name: str) -> list[str]:
        """Have all content of an image read again; return what is wrong."""
        request = pb.VerifyImageRequest(namespace=self.namespace, name=name)
        with self._errors():
            answer = self._stub.Verify(request, timeout=IMPORT_TIMEOUT_S)
        return list(answer.problems)

    def _told(
        self,
        method: Callable[..., Iterable[pb.ImportImageResponse]],
        request: Message,
        report: Callable[[Progress], None],
    ) -> list[ImageRecord]:
        """Make a call that tells of its steps; it takes as long as it takes."""
        images: list[ImageRecord] = []
        with self._errors():
            for answer in method(request, timeout=IMPORT_TIMEOUT_S):
                if answer.step:
                    report(
                        Progress(answer.step, answer.what, answer.done_bytes, answer.total_bytes)  # type: ignore[arg-type]
                    )
                images += map(wire.image_from_wire, answer.images)
        return images

    def walk(self, filters: Sequence[str] = ()) -> Iterator[ImageRecord]:
        """Yield images in order of name."""
        request = pb.ListImagesRequest(namespace=self.namespace, filters=filters)
        for answer in self._stream(self._stub.List, request):
            yield from map(wire.image_from_wire, answer.images)

    def get(self, name: str, *, at_ns: int | None = None) -> ImageRecord:
        """Return an image, or what its name stood for at a time; or raise NotFound."""
        at = None if at_ns is None else timestamp(at_ns)
        request = pb.GetImageRequest(namespace=self.namespace, name=name, at=at)
        return wire.image_from_wire(self._call(self._stub.Get, request).image)

    def tag(self, name: str, new_name: str) -> ImageRecord:
        """Give an image another name."""
        request = pb.TagImageRequest(namespace=self.namespace, name=name, new_name=new_name)
        return wire.image_from_wire(self._call(self._stub.Tag, request).image)

    def remove(self, name: str, *, wait: bool = False) -> None:
        """Remove a name; with `wait` what only it kept is gone when this returns."""
        request = pb.RemoveImageRequest(namespace=self.namespace, name=name, wait=wait)
        self._call(self._stub.Remove, request)


class MetadataClient(Connection):
    """snapfs.v1.Metadata over one connection."""

    def __init__(self, address: Path, *, timeout_s: float = 60) -> None:
        super().__init__(address, timeout_s=timeout_s)
        self._stub = metadata_v1_pb2_grpc.MetadataStub(self._channel)

    def namespaces(self) -> list[Namespace]:
        answer = self._call(self._stub.ListNamespaces, pb.ListNamespacesRequest())
        return [wire.namespace_from_wire(it) for it in answer.namespaces]

    def create_namespace(self, name: str, labels: Labels) -> Namespace:
        request = pb.CreateNamespaceRequest(name=name, labels=labels)
        return wire.namespace_from_wire(self._call(self._stub.CreateNamespace, request))

    def label_namespace(self, name: str, labels: Labels) -> Namespace:
        """Set labels; an empty value deletes one."""
        request = pb.LabelNamespaceRequest(name=name, labels=labels)
        return wire.namespace_from_wire(self._call(self._stub.LabelNamespace, request))

    def remove_namespace(self, name: str) -> None:
        self._call(self._stub.RemoveNamespace, pb.RemoveNamespaceRequest(name=name))

    def leases(self, namespace: str, filters: Sequence[str] = ()) -> list[LeaseRecord]:
        request = pb.ListLeasesRequest(namespace=namespace, filters=filters)
        answer = self._call(self._stub.ListLeases, request)
        return [wire.lease_from_wire(it) for it in answer.leases]

    def create_lease(self, namespace: str, id_: str, labels: Labels) -> LeaseRecord:
        request = pb.CreateLeaseRequest(namespace=namespace, id=id_, labels=labels)
        return wire.lease_from_wire(self._call(self._stub.CreateLease, request))

    def change_lease(
        self,
        namespace: str,
        id_: str,
        *,
        add: Sequence[Resource] = (),
        remove: Sequence[Resource] = (),
    ) -> LeaseRecord:
        request = pb.ChangeLeaseRequest(
            namespace=namespace,
            id=id_,
            add=map(wire.resource_to_wire, add),
            remove=map(wire.resource_to_wire, remove),
        )
        return wire.lease_from_wire(self._call(self._stub.ChangeLease, request))

    def remove_lease(self, namespace: str, id_: str) -> None:
        self._call(self._stub.RemoveLease, pb.RemoveLeaseRequest(namespace=namespace, id=id_))

    def content(self, namespace: str, filters: Sequence[str] = ()) -> Iterator[Content]:
        request = pb.ListContentRequest(namespace=namespace, filters=filters)
        for answer in self._stream(self._stub.ListContent, request):
            yield from map(wire.content_from_wire, answer.content)

    def collect(self) -> Collected:
        """Run a collection and return what it did."""
        answer = self._call(self._stub.Collect, pb.CollectRequest())
        return Collected(
            began_ns=0,
            marked=answer.marked,
            removed=dict(answer.removed),
            failed=list(answer.failed),
            failures=answer.failures,
            elapsed_ns=answer.elapsed_ns,
        )

    def collections(self) -> list[CollectionBody]:
        """Return the figures of the last collections, the newest first."""
        answer = self._call(self._stub.ListCollections, pb.ListCollectionsRequest())
        return [wire.collection_from_wire(it) for it in answer.collections]

    def garbage(self) -> Iterator[Step]:
        """Yield what a collection would remove now."""
        for answer in self._stream(self._stub.ListGarbage, pb.ListGarbageRequest()):
            yield from map(wire.step_from_wire, answer.garbage)

    def explain(self, namespace: str, object_: Resource) -> Explanation:
        """Return why an object is kept, or that it is not. Raises NotFound."""
        request = pb.ExplainRequest(namespace=namespace, object=wire.resource_to_wire(object_))
        answer = self._call(self._stub.Explain, request)
        if not answer.reason:
            raise Internal("the service explained nothing; see its log")
        return Explanation(tuple(map(wire.step_from_wire, answer.path)), answer.reason)
