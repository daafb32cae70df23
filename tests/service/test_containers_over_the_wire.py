"""snapfs.v1.Containers and Sandboxes: what goes in comes out, and errors keep their kind."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from snapfs import anchors
from snapfs.metadata import TABLES, Container, Metadata, Runtime, Sandbox, Typed
from snapfs.model import AlreadyExists, Conflict, InvalidArgument, NotFound
from snapfs.service import container_server, grpc_server
from snapfs.service.container_client import ContainerClient, SandboxClient
from snapfs.store import Store

CONTAINER = Container(
    id="c",
    runtime=Runtime("runc", Typed("o", b"options")),
    spec=Typed("s", b"spec"),
    image="base",
    snapshotter="snapfs",
    snapshot_key="work",
    sandbox_id="pod",
    labels={"a": "1"},
    extensions={"one": Typed("x", b"1"), "two": Typed("x", b"2")},
)
SANDBOX = Sandbox(
    id="s",
    runtime=Runtime("runc"),
    spec=Typed("s", b"spec"),
    sandboxer="pod",
    labels={"a": "1"},
    extensions={"one": Typed("x", b"1")},
)


@pytest.fixture
def address(tmp_path: Path) -> Iterator[Path]:
    tables = (*anchors.TABLES, *TABLES)
    with (
        Store.open(tmp_path / "metadata", tables) as store,
        Metadata(store, tmp_path / "content", {}) as metadata,
    ):
        services = [
            partial(container_server.register_containers, metadata=metadata),
            partial(container_server.register_sandboxes, metadata=metadata),
        ]
        built = grpc_server.build(tmp_path / "s.sock", services=services)
        yield built.address
        built.stop(grace_s=0)


@pytest.fixture
def containers(address: Path) -> Iterator[ContainerClient]:
    with ContainerClient(address, "n") as client:
        yield client


@pytest.fixture
def sandboxes(address: Path) -> Iterator[SandboxClient]:
    with SandboxClient(address, "n") as client:
        yield client


def fields(it: Container | Sandbox) -> dict[str, object]:
    """Return what its owner said of an object."""
    kept = {"created_ns", "updated_ns", "revision"}
    return {name: getattr(it, name) for name in it.__dataclass_fields__ if name not in kept}


def test_a_container_comes_back_as_it_was_made(containers: ContainerClient) -> None:
    made = containers.create(CONTAINER)
    assert fields(made) == fields(CONTAINER)
    assert made.created_ns == made.updated_ns > 0
    assert containers.get("c") == made
    assert list(containers.walk(["image==base"])) == [made]
    assert list(containers.walk(["image==other"])) == []
    with pytest.raises(AlreadyExists):
        containers.create(CONTAINER)


def test_a_container_is_updated_by_mask_and_by_revision(containers: ContainerClient) -> None:
    made = containers.create(CONTAINER)
    wanted = Container(
        id="c", runtime=Runtime("runc"), spec=None, extensions={"three": Typed("x", b"3")}
    )
    changed = containers.update(wanted, ["extensions"], expect_revision=made.revision)
    assert changed.extensions == {"three": Typed("x", b"3")}
    assert changed.spec == CONTAINER.spec
    with pytest.raises(Conflict) as caught:
        containers.update(wanted, ["extensions"], expect_revision=made.revision)
    assert (caught.value.expected, caught.value.actual) == (made.revision, changed.revision)
    with pytest.raises(InvalidArgument, match="no field 'runtime'"):
        containers.update(wanted, ["runtime"])
    assert containers.label("c", {"a": "", "b": "2"}).labels == {"b": "2"}
    containers.remove("c")
    with pytest.raises(NotFound):
        containers.remove("c")


def test_a_sandbox_comes_back_and_is_updated(sandboxes: SandboxClient) -> None:
    made = sandboxes.create(SANDBOX)
    assert fields(made) == fields(SANDBOX)
    assert list(sandboxes.walk()) == [sandboxes.get("s")] == [made]
    bad = Sandbox(id="s", runtime=Runtime("other"))
    with pytest.raises(InvalidArgument, match="cannot become"):
        sandboxes.update(bad, ["runtime"])
    assert sandboxes.update(bad, ["extensions"]).extensions == {}
    sandboxes.remove("s")
    with pytest.raises(NotFound):
        sandboxes.get("s")
