"""One private containerd for all tests here, with a snapfs daemon for each unpack mode."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support import containerd, daemon, images
from tests.support.containerd import Containerd
from tests.support.daemon import RunningDaemon
from tests.support.oci import Image

UNPACK = {"snapfs": "overlay", "snapfs-fuse": "fuse"}
"""Proxy stanza to unpack mode."""

Load = Callable[[Image, str], None]


@dataclass(frozen=True)
class Plant:
    """What serves: containerd, and the daemon behind each of its snapfs snapshotters."""

    engine: Containerd
    daemons: dict[str, RunningDaemon]


@pytest.fixture(scope="session")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    base = tmp_path_factory.mktemp("c")  # short, for the sockets below it
    environ = {
        "SNAPFS_DIFF_CONTAINERD": str(base / "engine" / "containerd.sock"),
        "SNAPFS_DIFF_APPLY": "true",
    }
    with ExitStack() as stack:
        daemons = {}
        for name, unpack in UNPACK.items():
            (base / name).mkdir()
            daemons[name] = stack.enter_context(
                daemon.running(base / name, arguments=["--unpack", unpack], environ=environ)
            )
        addresses = {name: it.address for name, it in daemons.items()}
        engine = stack.enter_context(containerd.running(base / "engine", addresses))
        yield Plant(engine, daemons)
        engine.remove_everything()


@pytest.fixture
def engine(plant: Plant) -> Containerd:
    return plant.engine


@pytest.fixture(params=UNPACK)
def snapshotter(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture(scope="session")
def odd_image() -> Image:
    return images.odd_image()


@pytest.fixture(scope="session")
def debian_image() -> Image:
    return images.debian_image()


@pytest.fixture(scope="session")
def archives(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Image], Path]:
    """Returns the archive of an image, written on first use."""
    place = tmp_path_factory.mktemp("archives")
    written: dict[str, Path] = {}

    def archive(image: Image) -> Path:
        if image.chain_id not in written:
            written[image.chain_id] = image.write(place / f"{len(written)}.tar")
        return written[image.chain_id]

    return archive


@pytest.fixture
def load(engine: Containerd, archives: Callable[[Image], Path]) -> Load:
    """Imports and unpacks an image, unless a snapshotter has it."""

    def load(image: Image, snapshotter: str) -> None:
        has_image = image.name in engine.images()
        if not has_image or image.chain_id not in engine.snapshots(snapshotter):
            engine.load(archives(image), snapshotter=snapshotter)

    return load
