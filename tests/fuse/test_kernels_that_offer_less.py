"""What a lane does on a kernel that lacks something, and how it says so.

Only what the kernel offers in INIT is changed, where it is read; what is not granted to this
kernel's FUSE is off there too.
"""

from __future__ import annotations

import errno
import mmap
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from bench import requests
from bench.requests import Tracer
from snapfs.cli.admin import feature_lines
from snapfs.fuse import handover
from snapfs.fuse.handover import WANTED, Init, InitRequest
from snapfs.fuse.modes import Mode
from snapfs.reporting import lane_record
from tests.support import lanes
from tests.support.lanes import House, Tree

pytestmark = [pytest.mark.fuse, pytest.mark.root]

Lacking = Callable[[Init], None]
DEADLINE_S = 20.0


@pytest.fixture
def lacking(monkeypatch: pytest.MonkeyPatch) -> Lacking:
    """Have the kernel offer some flags less from now on."""

    def lack(flags: Init) -> None:
        def parse(raw: bytes) -> InitRequest:
            offer = known(raw)
            rest = offer.offered & ~flags
            return InitRequest(offer.unique, offer.minor, offer.max_readahead_bytes, rest)

        known = InitRequest.parse
        monkeypatch.setattr(handover.InitRequest, "parse", parse)

    return lack


@pytest.fixture(scope="module")
def tracer(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Tracer]:
    with requests.tracer(tmp_path_factory.mktemp("tracer")) as made:
        assert made is not None, "this kernel has no tracepoint for requests; Linux 6.12 has"
        yield made


def said(house: House) -> list[tuple[str, str]]:
    """The lines of `snapfs status` about what a lane can do."""
    house.worker()
    return list(feature_lines(lane_record(house.lane.status())))


def fill(layer: Path) -> None:
    (layer / "lower").write_bytes(b"lower" * 2000)


def use(tree: Tree) -> None:
    """Do what programs do with files."""
    (tree / "dir").mkdir()
    (tree / "dir" / "new").write_bytes(b"new" * 2000)
    with (tree / "lower").open("r+b") as file:
        file.write(b"LOWER")
        file.flush()
        with mmap.mmap(file.fileno(), 0) as mapped:
            assert mapped[:10] == b"LOWERlower"
            mapped[5:10] = b"MAPPD"
            mapped.flush()
    assert (tree / "lower").read_bytes() == b"LOWERMAPPD" + b"lower" * 1998
    assert (tree.upper / "lower").read_bytes() == (tree / "lower").read_bytes()
    (tree / "dir" / "new").rename(tree / "moved")
    with (tree / "moved").open("rb") as held:
        (tree / "moved").unlink()
        assert held.read() == b"new" * 2000
    assert sorted(os.listdir(tree.path)) == ["dir", "lower"]


def test_files_go_through_the_worker_before_linux_6_9(
    tmp_path: Path, lacking: Lacking, tracer: Tracer
) -> None:
    lacking(Init.PASSTHROUGH)
    with lanes.house(tmp_path / "house") as house:
        lines = said(house)
        tree = house.active(fill)
        with tracer.counting(tree.path) as asked:
            use(tree)
    reason = "passthrough: the kernel does not offer it; Linux 6.9 does"
    assert ("  cannot", reason) in lines
    assert asked["read"]
    assert asked["write"]


@pytest.mark.parametrize("mode", [Mode.PASSTHROUGH, Mode.NO_OPEN])
def test_what_this_kernel_offers_is_told_as_what_a_lane_can_do(tmp_path: Path, mode: Mode) -> None:
    with lanes.house(tmp_path / "house", mode) as house:
        lines = dict(said(house))
    can = lines["  can"].split(", ")
    everywhere = {"POSIX ACLs", "killpriv", "resend", "no opens by handle", "idmapped mounts"}
    assert everywhere | {"channel", "fast lane", "confinement", "no-opendir"} <= set(can)
    of_mode = {"passthrough", "shared mappings of direct files"}
    assert (of_mode <= set(can)) == (mode is Mode.PASSTHROUGH)
    assert ("no-open" in can) == (mode is Mode.NO_OPEN)
    assert "  cannot" not in lines


def test_root_inside_another_snapshot_is_told_why_files_go_through_the_worker(
    tmp_path: Path,
) -> None:
    with lanes.house(tmp_path / "outer") as outer:
        inside = outer.active(fill).path / "root"
        with lanes.house(tmp_path / "inner", root=inside) as house:
            before = said(house)
            use(house.active(fill))
            after = said(house)
    for lines in before, after:
        [why] = [words for what, words in lines if what == "  cannot"]
        assert why.startswith("passthrough: the root's file system is stacked itself (ELOOP)")
        assert "passthrough" not in dict(lines)["  can"].split(", ")


def test_all_that_can_be_missing_may_be_missing(tmp_path: Path, lacking: Lacking) -> None:
    lacking(~handover.NEEDED)
    for mode in (Mode.PASSTHROUGH, Mode.NO_OPEN):
        with lanes.house(tmp_path / mode.value, mode) as house:
            lines = {words.split(":")[0]: words for _, words in said(house)}
            use(house.active(fill))
        expected = {
            "passthrough": "Linux 6.9",
            "shared mappings of direct files": "Linux 6.6",
        }
        if mode is Mode.NO_OPEN:
            expected = {"no-open": "Linux 3.16"}
        expected |= {
            "no-opendir": "Linux 5.1",
            "POSIX ACLs": "Linux 4.9",
            "killpriv": "Linux 5.11",
            "resend": "Linux 6.9",
            "no opens by handle": "Linux 6.9",
            "idmapped mounts": "Linux 6.12",
        }
        for name, since in expected.items():
            assert lines[name] == f"{name}: the kernel does not offer it; {since} does"


def test_mount_is_refused_where_the_handlers_could_not_answer(
    tmp_path: Path, lacking: Lacking
) -> None:
    lacking(Init.DO_READDIRPLUS)
    mountpoint = tmp_path / "mnt"
    mountpoint.mkdir()
    with pytest.raises(OSError, match=r"lacks .*DO_READDIRPLUS.*Linux 5\.10") as refused:
        handover.connect(mountpoint, source="old", wanted=WANTED, timeout_s=DEADLINE_S)
    assert refused.value.errno == errno.EPROTO
    assert not mountpoint.is_mount()
