"""`snapfs content`, `container` and `sandbox` against a real service."""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from snapfs.metadata import Container, Content, Runtime, Sandbox, Typed
from snapfs.model import Unavailable
from snapfs.service.container_client import ContainerClient, SandboxClient
from snapfs.service.content_client import ContentClient, Push
from tests.support.daemon import SNAPFS, RunningDaemon, eventually

pytestmark = [pytest.mark.root, pytest.mark.fuse]

DATA = b"some bytes\n" * 300_000


def digest_of(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "layer"
    path.write_bytes(DATA)
    return path


@pytest.fixture(autouse=True)
def _without_content(daemon: RunningDaemon) -> Iterator[None]:
    yield
    for ingest in daemon.json("content", "ingests"):
        daemon.run("content", "abort", ingest["ref"])
    for found in daemon.json("content", "list"):
        daemon.run("content", "remove", found["digest"])
    assert list((daemon.root / "content" / "ingest").iterdir()) == []


def test_a_file_is_pushed_read_back_labelled_and_removed(
    daemon: RunningDaemon, file: Path, tmp_path: Path
) -> None:
    digest = digest_of(DATA)
    assert daemon.run("content", "push", file, "--label", "said=here").stdout == f"{digest}\n"
    assert daemon.run("content", "push", file).stdout == f"{digest}\n"  # twice is fine
    daemon.run("gc")
    info = daemon.json("content", "info", digest)
    assert (info["size_bytes"], info["labels"]["said"]) == (len(DATA), "here")
    daemon.run("content", "get", digest, "-o", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == DATA
    refused = daemon.run("content", "get", digest, "-o", tmp_path / "back", check=False)
    assert (refused.exit_code, "exists; remove it" in refused.stderr) == (1, True)
    assert daemon.run("content", "get", digest).stdout_bytes == DATA
    daemon.run("content", "label", digest, "said=", "other=1")
    assert "said" not in daemon.json("content", "info", digest)["labels"]
    daemon.run("content", "label", digest, "containerd.io/gc.root=")
    daemon.run("gc")
    assert daemon.json("content", "list") == []


def test_standard_input_is_pushed_under_a_lease(daemon: RunningDaemon) -> None:
    daemon.run("lease", "create", "pushing")
    done = subprocess.run(
        [SNAPFS, "content", "push", "--lease", "pushing", "-"],
        input=DATA,
        capture_output=True,
        env={**daemon.environ, "SNAPFS_ADDRESS": str(daemon.address)},
        timeout=60,
    )
    assert (done.returncode, done.stdout.decode()) == (0, f"{digest_of(DATA)}\n"), done.stderr
    daemon.run("gc")
    assert [it["digest"] for it in daemon.json("content", "list")] == [digest_of(DATA)]
    daemon.run("lease", "remove", "pushing")
    daemon.run("gc")
    assert daemon.json("content", "list") == []


def test_a_push_that_was_interrupted_goes_on_where_it_stopped(
    daemon: RunningDaemon, file: Path
) -> None:
    ref = f"push-{digest_of(DATA)}"
    pushing = subprocess.Popen(
        [SNAPFS, "content", "push", "--ref", ref, "--digest", digest_of(DATA), "-"],
        stdin=subprocess.PIPE,
        env={**daemon.environ, "SNAPFS_ADDRESS": str(daemon.address)},
    )
    assert pushing.stdin is not None
    pushing.stdin.write(DATA[: 2 << 20])
    pushing.stdin.flush()
    with ContentClient(daemon.address, "default") as client:
        eventually(lambda: any(it.offset_bytes for it in client.ingests()), what="the first bytes")
    pushing.kill()
    pushing.communicate()
    (row,) = daemon.json("content", "ingests")
    assert (row["ref"], row["expected"]) == (ref, digest_of(DATA))

    def push() -> Content | None:
        try:
            with file.open("rb") as whole:
                return client.push(whole, wanted, sent.append)
        except Unavailable:  # the killed one's call has not ended yet
            return None

    sent: list[int] = []
    wanted = Push(ref=ref, labels={}, expected=digest_of(DATA), total_bytes=len(DATA))
    with ContentClient(daemon.address, "default") as client:
        made = eventually(push, what="the second push")
    assert made.digest == digest_of(DATA)
    assert sent[0] > row["offset_bytes"] > 0
    assert daemon.json("content", "ingests") == []


def test_what_is_not_what_it_should_be_is_refused_and_kept_for_another_try(
    daemon: RunningDaemon, file: Path, tmp_path: Path
) -> None:
    other = digest_of(b"other")
    refused = daemon.run("content", "push", file, "--digest", other, "--ref", "r", check=False)
    assert (refused.exit_code, "has digest" in refused.stderr) == (1, True)
    (ingest,) = daemon.json("content", "ingests")
    assert (ingest["ref"], ingest["offset_bytes"]) == ("r", len(DATA))
    (tmp_path / "short").write_bytes(b"short")
    short = daemon.run("content", "push", tmp_path / "short", "--ref", "r", check=False)
    assert (short.exit_code, "of another file" in short.stderr) == (1, True)
    daemon.run("content", "abort", "r")
    assert daemon.run("content", "abort", "r", check=False).exit_code == 1
    for words in (("info", other), ("get", other), ("remove", other), ("label", other, "a=b")):
        absent = daemon.run("content", *words, check=False)
        assert (absent.exit_code, "does not exist" in absent.stderr) == (1, True), absent.stderr
    assert "is not ALGORITHM:HEX" in daemon.run("content", "info", "x", check=False).stderr


def test_containers_and_sandboxes_are_listed_shown_labelled_and_removed(
    daemon: RunningDaemon,
) -> None:
    spec = Typed("types.example.org/spec", b'{"args": ["sh"]}')
    with ContainerClient(daemon.address, "default") as containers:
        containers.create(
            Container(
                id="c1",
                runtime=Runtime("io.containerd.runc.v2"),
                spec=spec,
                image="base",
                snapshotter="snapfs",
                snapshot_key="work",
                extensions={"net": Typed("x", b"\xff")},
            )
        )
    with SandboxClient(daemon.address, "default") as sandboxes:
        sandboxes.create(Sandbox(id="s1", runtime=Runtime("runc"), labels={"pod": "p"}))
    assert "c1" in daemon.run("container", "list").stdout
    daemon.run("container", "label", "c1", "owner=ann")
    shown = daemon.json("container", "info", "c1")
    assert shown["labels"] == {"owner": "ann"}
    assert shown["spec"] == {"type": "types.example.org/spec", "value": {"args": ["sh"]}}
    assert shown["extensions"] == {"net": {"type": "x", "base64": "/w=="}}
    text = daemon.run("container", "info", "c1").stdout
    assert "snapfs/work" in text
    assert "owner=ann" in text
    assert daemon.json("container", "list", "labels.owner==ben") == []
    (sandbox,) = daemon.json("sandbox", "list", "labels.pod==p")
    assert sandbox["id"] == "s1"
    assert "pod=p" in daemon.run("sandbox", "info", "s1").stdout
    daemon.run("sandbox", "label", "s1", "pod=")
    assert daemon.json("sandbox", "info", "s1")["labels"] == {}
    for noun, id_ in (("container", "c1"), ("sandbox", "s1")):
        daemon.run(noun, "remove", id_)
        gone = daemon.run(noun, "info", id_, check=False)
        assert (gone.exit_code, "does not exist" in gone.stderr) == (1, True)
