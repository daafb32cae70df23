"""podman and buildah with snapfs-overlay as the mount program, in fuse-overlayfs's place."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from snapfs.fuse import mounts
from tests.support import images, podman
from tests.support.daemon import eventually, mounts_below, processes_below
from tests.support.podman import Podman

pytestmark = [pytest.mark.fuse, pytest.mark.root, pytest.mark.slow, pytest.mark.timeout(400)]

COMMAND = Path(sys.executable).with_name("snapfs-overlay")
IMAGE = "localhost/snapfs/made:1"
CHANGED = "localhost/snapfs/changed:1"
CONTAINERFILE = """\
FROM scratch
COPY busybox /bin/busybox
RUN ["/bin/busybox", "--install", "-s", "/bin"]
RUN mkdir -p /etc/many /var/odd && echo made >/etc/made && ln /etc/made /etc/again
RUN for n in 1 2 3 4 5 6; do echo $n >/etc/many/$n; done; chown 12:34 /var/odd; chmod 2751 /var/odd
RUN rm -r /etc/many && mkdir /etc/many && echo new >/etc/many/7 && rm /etc/again
CMD ["/bin/sh"]
"""
CHANGES = """
    cat /etc/made; cat /etc/many/*; stat -c %u:%g:%a /var/odd
    echo more >>/etc/made; rm -r /etc/many; mkdir /etc/many; echo 8 >/etc/many/8
    mv /var/odd /var/moved 2>/dev/null || { cp -a /var/odd /var/moved && rmdir /var/odd; }
    ln -s made /etc/link; mknod /var/null c 1 3; mkfifo /var/pipe; rm /bin/vi
"""


@pytest.fixture
def engine() -> Iterator[Podman]:
    with podman.running(COMMAND) as started:
        yield started


def built(engine: Podman) -> Podman:
    """Build IMAGE from nothing."""
    context = engine.base / "context"
    context.mkdir()
    shutil.copy(images.BUSYBOX, context / "busybox")
    (context / "Containerfile").write_text(CONTAINERFILE)
    engine.buildah("build", "--isolation=chroot", "--layers", "--tag", IMAGE, context)
    return engine


def served(engine: Podman) -> list[str]:
    """Return the types of what is mounted below the storage, by snapfs or its like; a mount may go
    meanwhile."""
    found = map(mounts.mounted_at, map(Path, mounts_below(engine.base)))
    return [it[-1].type for it in found if it and it[-1].type.startswith("fuse")]


def test_an_image_is_built_run_committed_and_removed(engine: Podman) -> None:
    built(engine)
    said = engine.run("--name=one", IMAGE, "sh", "-c", CHANGES + "grep ' / ' /proc/mounts")
    assert said.split()[:4] == ["made", "new", "12:34:2751", "snapfs-overlay"]
    engine.podman("commit", "one", CHANGED)
    assert engine.run("--rm", CHANGED, "cat", "/etc/made", "/etc/many/8") == "made\nmore\n8\n"
    assert engine.run("--rm", CHANGED, "ls", "/etc/many", "/var") == (
        "/etc/many:\n8\n\n/var:\nmoved\nnull\npipe\n"
    )
    engine.podman("rm", "one")
    engine.podman("rmi", CHANGED, IMAGE)
    assert engine.podman("images", "--all", "--quiet") == ""
    assert served(engine) == []
    eventually(lambda: not processes_below(engine.base), what="the end of all processes")
    assert os.listdir(engine.base / "graph" / "overlay" / "l") == []


def test_a_running_container_is_entered_compared_and_ended(engine: Podman) -> None:
    built(engine)
    engine.run("--detach", "--name=stays", IMAGE, "sleep", "600")
    engine.podman("exec", "stays", "sh", "-c", "echo x >/etc/new; rm /etc/made")
    assert served(engine) == ["fuse.snapfs-overlay"]
    assert sorted(engine.podman("diff", "stays").split("\n")) == [
        *("", "A /etc/new", "C /etc", "D /etc/made")
    ]
    engine.podman("rm", "--force", "--time", 0, "stays")
    assert served(engine) == []
    eventually(lambda: not processes_below(engine.base), what="the end of all processes")


def test_buildah_works_in_the_mounted_container(engine: Podman) -> None:
    container = engine.buildah("from", "scratch").strip()
    mounted = Path(engine.buildah("mount", container).strip())
    assert mounts.mounted_at(mounted)[-1].type == "fuse.snapfs-overlay"
    (mounted / "bin").mkdir()
    shutil.copy(images.BUSYBOX, mounted / "bin" / "sh")
    engine.buildah("copy", container, engine.base / "containers.conf", "/copied")
    engine.buildah("run", "--isolation=chroot", container, "sh", "-c", "echo ran >/ran")
    engine.buildah("umount", container)
    engine.buildah("commit", "--rm", container, IMAGE)
    assert engine.run("--rm", IMAGE, "sh", "-c", "cat /ran; grep -c runc /copied") == "ran\n1\n"


def test_options_of_a_storage_configuration_are_taken() -> None:
    options = "nodev,volatile,xino=off,index=off,redirect_dir=off,fsync=0"
    with podman.running(COMMAND, options) as engine:
        built(engine)
        assert engine.run("--rm", IMAGE, "sh", "-c", "echo 1 >/etc/made; cat /etc/made") == "1\n"


def test_a_refusal_of_the_mount_program_reaches_the_person() -> None:
    refused = pytest.raises(AssertionError, match=r"xattr_permissions.* not supported; run as root")
    with podman.running(COMMAND, "xattr_permissions=2") as engine, refused:
        built(engine)


def test_layers_are_those_that_fuse_overlayfs_makes() -> None:
    ours, theirs = _made_with(COMMAND), _made_with(Path("/usr/bin/fuse-overlayfs"))
    assert len(ours) == len(theirs) == 6
    assert any(it.startswith("bin/.wh.vi ") for it in ours[0])
    more = set[str]()
    for mine, other in zip(ours, theirs, strict=True):
        assert mine >= other
        more |= mine - other
    # What a directory lost that was removed and made again: fuse-overlayfs 1.10 loses sight of it.
    assert {it.split()[0] for it in more} == {f"etc/many/.wh.{number}" for number in range(1, 8)}


def _made_with(program: Path) -> list[set[str]]:
    """Return what is in each layer of a changed container's image, the topmost first."""
    with podman.running(program) as engine:
        built(engine)
        engine.run("--name=one", IMAGE, "sh", "-c", CHANGES)
        engine.podman("commit", "one", CHANGED)
        saved = engine.base / "image.tar"
        engine.podman("save", "--output", saved, CHANGED)
        with tarfile.open(saved) as image:
            (manifest,) = json.load(_member(image, "manifest.json"))
            return [_entries(_member(image, name)) for name in reversed(manifest["Layers"])]


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    found = archive.extractfile(name)
    assert found is not None
    return found


def _entries(layer: IO[bytes]) -> set[str]:
    with tarfile.open(fileobj=layer) as archive:
        return {
            f"{it.name} {it.type!r} {it.mode:o} {it.uid}:{it.gid} {it.size} {it.linkname}"
            for it in archive
        }
