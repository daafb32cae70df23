"""Images out of layouts and archives become content, snapshots and names."""

from __future__ import annotations

import io
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from snapfs.images import (
    Catalog,
    Importer,
    Limits,
    Platform,
    Progress,
    Wanted,
    importing,
    manifests,
)
from snapfs.images.manifests import INDEXES
from snapfs.images.untar import Counter, unpack
from snapfs.metadata import Context, Descriptor, Image, Metadata
from snapfs.model import Committed, FailedPrecondition, InvalidArgument, NotFound, TooLarge
from snapfs.overlay.devices import STAND_IN
from snapfs.snapshots import Snapshotter
from tests.images import kit
from tests.images.kit import (
    Layout,
    directory,
    file,
    hardlink,
    opaque,
    symlink,
    tree,
    whiteout,
)

pytestmark = pytest.mark.root

AMD64 = Platform("amd64", "linux")
WANTED = Wanted(platform=AMD64)
Show = Callable[[str], Path]

BASE = [
    directory("./", 0o755),
    directory("etc", 0o755),
    file("etc/hosts", b"127.0.0.1", mode=0o640, uid=5, gid=6),
    directory("bin"),
    file("bin/tool", b"#!", mode=0o4755),
    symlink("bin/sh", "tool"),
    hardlink("bin/tool2", "bin/tool"),
    directory("var", 0o1777),
    directory("var/old"),
    file("var/old/a", b"a"),
    file("var/old/b", b"b"),
]
TOP = [
    directory("etc", 0o755),
    whiteout("etc/hosts"),
    file("etc/new", b"new"),
    directory("var", 0o1777),
    directory("var/old"),
    opaque("var/old"),
    file("var/old/c", b"c"),
]


def chain(layout: Layout, *layers: list[kit.Entry]) -> str:
    name = ""
    for layer in layers:
        name = manifests.chain_id(name, kit.digest(kit.tar(layer)))
    return name


def run(importer: Importer, path: Path, wanted: Wanted = WANTED) -> list[str]:
    return [image.name for image in importer.import_path("default", path, wanted)]


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
def test_an_image_of_two_layers_looks_as_it_should(
    importer: Importer, layout: Layout, shown: Show, compress: str
) -> None:
    layout.image([BASE, TOP], compress=compress)
    assert run(importer, layout.root) == ["example.org/made:1"]
    root = shown(chain(layout, BASE, TOP))
    assert sorted(tree(root)) == [
        "bin", "bin/sh", "bin/tool", "bin/tool2", "etc", "etc/new", "var", "var/old", "var/old/c",
    ]  # fmt: skip
    tool = (root / "bin/tool").stat()
    assert (stat.S_IMODE(tool.st_mode), tool.st_nlink) == (0o4755, 2)
    assert tool.st_mtime == kit.MTIME
    assert stat.S_IMODE((root / "var").stat().st_mode) == 0o1777
    below = shown(chain(layout, BASE))
    hosts = (below / "etc/hosts").stat()
    assert (hosts.st_uid, hosts.st_gid, stat.S_IMODE(hosts.st_mode)) == (5, 6, 0o640)


@pytest.mark.parametrize("mode", ["w", "w:gz"])
def test_an_archive_of_a_layout_is_the_same_image(
    importer: Importer, layout: Layout, tmp_path: Path, mode: str
) -> None:
    layout.image([BASE, TOP])
    path = kit.archive(layout.root, tmp_path / "image.tar", mode)
    assert run(importer, path) == ["example.org/made:1"]


def test_a_docker_archive_becomes_an_image_with_its_tags(
    importer: Importer, metadata: Metadata, layout: Layout, shown: Show, tmp_path: Path
) -> None:
    path = tmp_path / "saved.tar"
    kit.docker_archive(path, [BASE, TOP], ["docker.io/library/a:1", "docker.io/library/a:2"])
    assert run(importer, path) == ["docker.io/library/a:1", "docker.io/library/a:2"]
    one = metadata.images.get("default", "docker.io/library/a:1")
    assert one.target == metadata.images.get("default", "docker.io/library/a:2").target
    assert (shown(chain(layout, BASE, TOP)) / "etc/new").read_bytes() == b"new"


def test_xattrs_capabilities_devices_and_long_names_arrive(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00" + bytes(12)
    long = "n" * 255
    layer = [
        file(
            "ping",
            mode=0o755,
            pax={"SCHILY.xattr.security.capability": capability.decode("utf-8", "surrogateescape")},
        ),
        file("marked", pax={"SCHILY.xattr.user.k": "v", "mtime": "1600000000.123456789"}),
        kit.Entry("null", type=tarfile.CHRTYPE, device=(1, 3), mode=0o666),
        kit.Entry("loop", type=tarfile.BLKTYPE, device=(7, 0), mode=0o660),
        kit.Entry("pipe", type=tarfile.FIFOTYPE, mode=0o600),
        kit.Entry("zero", type=tarfile.CHRTYPE, device=(0, 0), mode=0o640),
        file(long, b"long"),
        file("ümläut", b"u"),
    ]
    layout.image([layer])
    run(importer, layout.root)
    root = shown(chain(layout, layer))
    assert os.getxattr(root / "ping", "security.capability") == capability
    assert os.getxattr(root / "marked", "user.k") == b"v"
    assert (root / "marked").stat().st_mtime_ns == 1_600_000_000_123_456_789
    assert (root / "null").stat().st_rdev == os.makedev(1, 3)
    assert (root / "zero").stat().st_rdev == STAND_IN  # it is no whiteout; trees show 0:0
    assert stat.S_ISBLK((root / "loop").stat().st_mode)
    assert stat.S_ISFIFO((root / "pipe").stat().st_mode)
    assert (root / long).read_bytes() == b"long"
    assert (root / "ümläut").exists()


def test_attributes_that_are_the_hosts_do_not_come_out_of_an_archive(
    importer: Importer, layout: Layout, shown: Show, snapshotter: Snapshotter
) -> None:
    layer = [
        directory("d", pax={"SCHILY.xattr.trusted.overlay.opaque": "y"}),
        file(
            "f", pax={"SCHILY.xattr.trusted.overlay.redirect": "/x", "SCHILY.xattr.trusted.x": "1"}
        ),
    ]
    layout.image([layer])
    run(importer, layout.root)
    upper, _ = snapshotter.layers(chain(layout, layer))
    assert os.listxattr(upper / "d") == os.listxattr(upper / "f") == []
    assert (shown(chain(layout, layer)) / "f").exists()


def test_a_layer_that_leaves_out_directories_keeps_those_below(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    base = [directory("etc", 0o700, uid=7), directory("usr"), directory("usr/bin"),
            symlink("bin", "usr/bin")]  # fmt: skip
    top = [file("etc/deep", b"1"), hardlink("etc/again", "etc/deep")]
    layout.image([base, top])
    run(importer, layout.root)
    root = shown(chain(layout, base, top))
    etc = (root / "etc").stat()
    assert (stat.S_IMODE(etc.st_mode), etc.st_uid) == (0o700, 7)
    assert (root / "etc/again").read_bytes() == b"1"


def test_a_hard_link_to_a_file_of_a_layer_below_is_one_file(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    base = [directory("d"), file("d/one", b"shared", uid=3)]
    top = [directory("d"), hardlink("d/two", "d/one")]
    layout.image([base, top])
    run(importer, layout.root)
    root = shown(chain(layout, base, top))
    assert (root / "d/one").stat().st_ino == (root / "d/two").stat().st_ino
    assert (root / "d/two").stat().st_uid == 3


def test_a_hard_link_to_a_name_that_is_hidden_and_made_anew_is_to_the_new_file(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    base, top = [file("x", b"old")], [whiteout("x"), file("x", b"new"), hardlink("y", "x")]
    layout.image([base, top])
    run(importer, layout.root)
    assert (shown(chain(layout, base, top)) / "y").read_bytes() == b"new"


def test_a_file_that_becomes_a_directory_and_back(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    one = [file("x", b"file"), directory("y"), file("y/in")]
    two = [directory("x"), file("x/in", b"in"), file("y", b"file")]
    three = [whiteout("x"), directory("x"), file("x/other")]
    layout.image([one, two, three])
    run(importer, layout.root)
    root = shown(chain(layout, one, two, three))
    assert sorted(tree(root)) == ["x", "x/other", "y"]


def test_many_layers_are_unpacked_and_shared_ones_once(
    importer: Importer, layout: Layout, snapshotter: Snapshotter
) -> None:
    layers = [[file(f"f{number}", b"%d" % number)] for number in range(130)]
    layout.image(layers[:20], name="a")
    run(importer, layout.root)
    before = {found.name: found.id for found in snapshotter.walk()}
    assert len(before) == 20
    layout.image(layers, name="b")
    run(importer, layout.root)
    after = {found.name: found.id for found in snapshotter.walk()}
    assert len(after) == 130
    assert before.items() <= after.items()
    assert all(isinstance(found, Committed) for found in snapshotter.walk())


def test_importing_again_reads_and_unpacks_nothing(importer: Importer, layout: Layout) -> None:
    layout.image([BASE, TOP])
    run(importer, layout.root)
    steps: list[Progress] = []
    importer.import_path("default", layout.root, WANTED, steps.append)
    assert [step.step for step in steps] == ["done"]


def test_progress_ends_at_the_whole(importer: Importer, layout: Layout) -> None:
    layout.image([BASE], compress="gzip")
    steps: list[Progress] = []
    importer.import_path("default", layout.root, WANTED, steps.append)
    for kind in ("read", "unpack"):
        last = [step for step in steps if step.step == kind][-1]
        assert last.done_bytes == last.total_bytes > 0


def test_an_index_gives_the_image_of_the_platform(
    importer: Importer, layout: Layout, metadata: Metadata
) -> None:
    arm, amd = [file("arm")], [file("amd")]
    entries = []
    for layer, architecture in ((arm, "arm64"), (amd, "amd64")):
        each = layout.image([layer], name="", architecture=architecture)
        layout.index.pop()
        entries.append({**each, "platform": {"architecture": architecture, "os": "linux"}})
    media_type = "application/vnd.oci.image.index.v1+json"
    index = layout.document({"schemaVersion": 2, "manifests": entries}, media_type)
    layout.index = [{**index, "annotations": {"io.containerd.image.name": "multi"}}]
    layout.write()
    assert run(importer, layout.root) == ["multi"]
    config = metadata.images.get("default", "multi")
    assert config.target.digest == index["digest"]
    with pytest.raises(FailedPrecondition, match="linux/arm64"):
        run(importer, layout.root, Wanted(platform=Platform("s390x", "linux")))


def test_an_image_for_one_platform_is_taken_unless_another_is_asked_for(
    importer: Importer, layout: Layout, metadata: Metadata
) -> None:
    layout.image([BASE], architecture="s390x")
    with pytest.raises(FailedPrecondition, match="is for linux/s390x, and not for linux/amd64"):
        run(importer, layout.root, Wanted(platform=AMD64))
    assert list(metadata.images.walk("default")) == []
    for wanted in (Wanted(), Wanted(platform=Platform("s390x", "linux"))):
        assert run(importer, layout.root, wanted) == ["example.org/made:1"]


def test_the_collector_keeps_an_image_whole_and_takes_it_whole(
    importer: Importer, metadata: Metadata, layout: Layout, snapshotter: Snapshotter
) -> None:
    layout.image([BASE, TOP])
    run(importer, layout.root)
    metadata.collector.collect()
    assert len(list(snapshotter.walk())) == 2
    assert len(list(metadata.content.walk("default"))) == 4
    metadata.images.delete("default", "example.org/made:1")
    assert metadata.collector.collect().failed == []
    assert list(snapshotter.walk()) == []
    assert list(metadata.content.walk("default")) == []
    assert list(metadata.leases.walk("default")) == []


# What is refused


def left(metadata: Metadata, snapshotter: Snapshotter) -> tuple[list[str], list[str]]:
    """Return snapshots and files of content that are left after a collection."""
    metadata.collector.collect()
    snapshotter.cleanup()
    files = [str(path) for path in (snapshotter.root / "content").rglob("*") if path.is_file()]
    return [found.name for found in snapshotter.walk()], files


@pytest.mark.parametrize(
    "hostile",
    [
        [file("../out")],
        [directory("d"), file("d/../../out")],
        [file("/etc/absolute")],
        [symlink("d", "/tmp"), file("d/out")],
        [symlink("d", ".."), directory("d/e"), file("d/e/out")],
        [file("f"), hardlink("g", "../../../etc/passwd")],
        [symlink("l", "/etc"), hardlink("g", "l/passwd")],
        [hardlink("g", "/etc/passwd")],
        [kit.Entry(".wh..", b"")],
        [kit.Entry(".wh.", b"")],
        [directory("d"), hardlink("g", "d")],
        [hardlink("g", "nowhere")],
        [directory("etc"), whiteout("etc/hosts"), hardlink("etc/g", "etc/hosts")],
        [whiteout("etc/hosts"), hardlink("g", "etc/hosts")],
        [file("f", pax={"mtime": "inf"})],
        [file("f", pax={"mtime": "1e300"})],
        [directory("d", pax={"uid": str(10**30)})],
        [directory("d", pax={"mtime": str(10**30)})],
    ],
)
def test_a_hostile_layer_is_refused_and_leaves_nothing(
    importer: Importer,
    layout: Layout,
    metadata: Metadata,
    snapshotter: Snapshotter,
    hostile: list[kit.Entry],
) -> None:
    layout.image([BASE, hostile])
    before = os.stat("/etc/passwd").st_nlink
    with pytest.raises(InvalidArgument):
        run(importer, layout.root)
    assert left(metadata, snapshotter) == ([], [])
    assert os.stat("/etc/passwd").st_nlink == before
    assert not (snapshotter.root / "out").exists()


def test_hiding_a_deep_tree_ends_somewhere(tmp_path: Path) -> None:
    fd = os.open(tmp_path, os.O_RDONLY)

    def put(entry: kit.Entry) -> None:
        stream = io.BytesIO(kit.tar([entry]))
        unpack(stream, Counter(stream), fd, merged=True, limits=Limits(), what="layer")

    try:
        put(directory("/".join("d" * 1100)))
        with pytest.raises((InvalidArgument, OSError)):  # as many files may be open, or not
            put(opaque("d"))
    finally:
        os.close(fd)
        subprocess.run(["rm", "-rf", str(tmp_path / "d")], check=True)  # deeper than Python's


@pytest.mark.parametrize("compress", ["", "gzip", "zstd"])
@pytest.mark.parametrize("damage", ["cut", "flip"])
def test_damaged_blobs_are_refused(
    importer: Importer,
    layout: Layout,
    metadata: Metadata,
    snapshotter: Snapshotter,
    compress: str,
    damage: str,
) -> None:
    layout.image([BASE], compress=compress)
    blob = (
        layout.root
        / "blobs/sha256"
        / kit.digest(kit.packed(kit.tar(BASE), compress)).partition(":")[2]
    )
    data = bytearray(blob.read_bytes())
    if damage == "cut":
        del data[len(data) // 2 :]
    else:
        data[len(data) // 2] ^= 1
    blob.write_bytes(data)
    with pytest.raises(InvalidArgument, match="damaged"):
        run(importer, layout.root)
    assert left(metadata, snapshotter) == ([], [])


def test_a_wrong_layer_digest_in_the_configuration_is_refused(
    importer: Importer, layout: Layout, metadata: Metadata, snapshotter: Snapshotter
) -> None:
    layout.image([BASE], diff_ids=["sha256:" + "0" * 64])
    with pytest.raises(InvalidArgument, match="the image says"):
        run(importer, layout.root)
    assert left(metadata, snapshotter) == ([], [])


def test_a_stream_that_is_no_tar_is_refused(importer: Importer, layout: Layout) -> None:
    layout.image([b"no tar at all" * 100])
    with pytest.raises(InvalidArgument, match="damaged"):
        run(importer, layout.root)


def test_a_bomb_is_refused_before_it_fills_the_disk(
    importer: Importer, layout: Layout, metadata: Metadata, snapshotter: Snapshotter
) -> None:
    layout.image([[file("zeros", bytes(30 << 20))]], compress="gzip")
    limits = Limits(max_ratio=100, free_bytes=1 << 20)
    with pytest.raises(TooLarge):
        run(importer, layout.root, Wanted(platform=AMD64, limits=limits))
    assert left(metadata, snapshotter) == ([], [])


def member(name: str, kind: bytes, data: bytes = b"") -> bytes:
    """Return an entry as it stands in an archive."""
    made = tarfile.TarInfo(name)
    made.type, made.size = kind, len(data)
    return made.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


MANY = 2 << 20
LONG_HEADERS = {
    "pax": member("././@PaxHeader", tarfile.XHDTYPE, b"%d comment=%s\n" % (MANY, b"x" * MANY)),
    "name": member("././@LongLink", tarfile.GNUTYPE_LONGNAME, b"n" * MANY),
    "link": member("././@LongLink", tarfile.GNUTYPE_LONGLINK, b"n" * MANY),
    "global": b"".join(
        member("global", tarfile.XGLTYPE, b"%d k%04d=%s\n" % (60_000, number, b"x" * 59_987))
        + member(f"file{number}", tarfile.REGTYPE)
        for number in range(40)
    ),
    "many": member("././@LongLink", tarfile.GNUTYPE_LONGNAME, b"n" * 500_000) * 5,
}


@pytest.mark.parametrize("header", LONG_HEADERS)
def test_headers_that_would_fill_the_memory_are_refused(tmp_path: Path, header: str) -> None:
    raw = LONG_HEADERS[header] + member("file", tarfile.REGTYPE) + bytes(1024)
    stream = Counter(io.BytesIO(raw))
    target = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(TooLarge, match="has headers of over 1048576 bytes"):
            unpack(stream, stream, target, merged=False, limits=Limits(), what="layer x")
    finally:
        os.close(target)


@pytest.mark.parametrize("header", LONG_HEADERS)
def test_headers_of_an_archive_of_images_are_bounded_as_well(
    importer: Importer, tmp_path: Path, header: str
) -> None:
    path = tmp_path / "image.tar"
    path.write_bytes(LONG_HEADERS[header] + member("file", tarfile.REGTYPE) + bytes(1024))
    with pytest.raises(TooLarge, match="has headers of over 1048576 bytes"):
        run(importer, path)


def test_headers_in_an_endless_chain_are_damage(tmp_path: Path) -> None:
    raw = member("././@LongLink", tarfile.GNUTYPE_LONGNAME, b"n") * 1000
    stream = Counter(io.BytesIO(raw))
    target = os.open(tmp_path, os.O_RDONLY)
    try:
        with pytest.raises(InvalidArgument, match="layer x is damaged"):
            unpack(stream, stream, target, merged=False, limits=Limits(), what="layer x")
    finally:
        os.close(target)


def test_a_bomb_behind_the_end_of_an_archive_is_refused(importer: Importer, layout: Layout) -> None:
    layout.image([kit.tar([file("a")]) + bytes(64 << 20)], compress="gzip")
    limits = Limits(max_ratio=100, free_bytes=1 << 20)
    with pytest.raises(TooLarge):
        run(importer, layout.root, Wanted(platform=AMD64, limits=limits))


def test_sources_that_are_no_images_are_refused(
    importer: Importer, layout: Layout, tmp_path: Path
) -> None:
    with pytest.raises(NotFound):
        run(importer, tmp_path / "nowhere")
    (tmp_path / "text").write_text("no archive")
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "text", tmp_path / "empty"):
        with pytest.raises(InvalidArgument):
            run(importer, path)
    layout.write()
    with pytest.raises(InvalidArgument, match="holds no image"):
        run(importer, layout.root)
    (layout.root / "index.json").write_text("{")
    with pytest.raises(InvalidArgument, match=r"index\.json"):
        run(importer, layout.root)


@pytest.mark.parametrize("twice", ["index.json", "oci-layout"])
def test_an_archive_with_a_document_twice_is_refused(
    importer: Importer,
    layout: Layout,
    metadata: Metadata,
    snapshotter: Snapshotter,
    tmp_path: Path,
    twice: str,
) -> None:
    layout.image([BASE])
    path = kit.archive(layout.root, tmp_path / "twice.tar")
    with tarfile.open(path, "a") as more:
        more.add(layout.root / twice, f"./{twice}")
    with pytest.raises(InvalidArgument, match=f"has '{twice}' twice"):
        run(importer, path)
    assert left(metadata, snapshotter) == ([], [])


def test_of_a_name_that_a_layer_has_twice_the_last_counts(
    importer: Importer, layout: Layout, shown: Show
) -> None:
    """As with containerd and tar."""
    layer = [
        *(directory("d"), file("d/in"), file("d", b"file")),
        *(file("x", b"1"), hardlink("y", "x"), file("x", b"2")),
        *(symlink("l", "/etc"), directory("l"), file("l/in", b"in")),
    ]
    layout.image([layer])
    run(importer, layout.root)
    root = shown(chain(layout, layer))
    assert [(root / name).read_bytes() for name in "dxy"] == [b"file", b"2", b"1"]
    assert (root / "l/in").read_bytes() == b"in"


def test_indexes_in_indexes_end_somewhere(
    importer: Importer, layout: Layout, metadata: Metadata, snapshotter: Snapshotter
) -> None:
    described = layout.image([BASE], name="")
    for _ in range(1000):
        document = {"schemaVersion": 2, "manifests": [described]}
        described = layout.document(document, INDEXES[0])
    layout.index = [described]
    layout.write()
    with pytest.raises(InvalidArgument, match="is in 8 others"):
        run(importer, layout.root)
    assert left(metadata, snapshotter) == ([], [])


def test_indexes_in_indexes_do_not_end_a_list_of_images(
    metadata: Metadata, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = kit.digest(b"any")
    nested = manifests.Index([manifests.Descriptor(INDEXES[0], digest, 3)])
    monkeypatch.setattr(Catalog, "_read", lambda *_: nested)
    target = Descriptor(INDEXES[0], digest, 3)
    metadata.images.create(Context("default"), Image(name="deep", target=target))
    assert [it.layers for it in Catalog(metadata).walk("default")] == [()]


def test_a_missing_blob_is_named(importer: Importer, layout: Layout) -> None:
    layout.image([BASE])
    gone = kit.digest(kit.tar(BASE)).partition(":")[2]
    (layout.root / "blobs/sha256" / gone).unlink()
    with pytest.raises(NotFound, match=gone):
        run(importer, layout.root)


def test_a_link_out_of_a_layout_directory_is_not_followed(
    importer: Importer, layout: Layout, tmp_path: Path
) -> None:
    layout.image([BASE])
    blob = layout.root / "blobs/sha256" / kit.digest(kit.tar(BASE)).partition(":")[2]
    blob.rename(tmp_path / "outside")
    blob.symlink_to(tmp_path / "outside")
    with pytest.raises(InvalidArgument):
        run(importer, layout.root)


def test_an_interrupted_import_is_finished_by_the_next(
    importer: Importer, layout: Layout, metadata: Metadata, snapshotter: Snapshotter
) -> None:
    layout.image([BASE, TOP])

    class StopError(Exception):
        pass

    def stop(step: Progress) -> None:
        if step.step == "unpack":
            raise StopError

    with pytest.raises(StopError):
        importer.import_path("default", layout.root, WANTED, stop)
    assert [each for each in snapshotter.walk() if not isinstance(each, Committed)] == []
    assert run(importer, layout.root) == ["example.org/made:1"]
    assert importing.SNAPSHOTTER == "snapfs"


def test_a_tree_is_what_tar_makes_of_it(
    importer: Importer, layout: Layout, shown: Show, tmp_path: Path
) -> None:
    """The real tool as the reference, on a tree of this machine."""
    packed = tmp_path / "doc.tar"
    subprocess.run(
        ["tar", "--format=pax", "--xattrs", "-C", "/usr/share", "-cf", str(packed), "doc/tar",
         "doc/bash", "zoneinfo/Europe"],
        check=True,
        timeout=60,
    )  # fmt: skip
    entries = [directory("doc"), directory("zoneinfo")]
    reference = tmp_path / "reference"
    reference.mkdir()
    subprocess.run(["tar", "-C", str(reference), "-xpf", str(packed)], check=True, timeout=60)
    layout.image([entries, packed.read_bytes()])
    run(importer, layout.root)
    name = manifests.chain_id(kit.digest(kit.tar(entries)), kit.digest(packed.read_bytes()))
    ours, theirs = tree(shown(name)), tree(reference)
    for either in (ours, theirs):
        either.pop("doc"), either.pop("zoneinfo")
    assert ours == theirs
    assert len(ours) > 50
    assert Context("default").namespace == "default"


@pytest.mark.parametrize("form", ["gnu", "pax"])
def test_a_sparse_file_of_an_archive_takes_what_it_holds(
    importer: Importer, layout: Layout, snapshotter: Snapshotter, tmp_path: Path, form: str
) -> None:
    with (tmp_path / "holes").open("wb") as file:
        file.truncate(64 << 20)
        file.seek(32 << 20)
        file.write(b"data")
    packed = tmp_path / "holes.tar"
    subprocess.run(
        ["tar", "--sparse", f"--format={form}", "-C", tmp_path, "-cf", packed, "holes"],
        check=True,
        timeout=60,
    )
    layout.image([packed.read_bytes()])
    run(importer, layout.root)
    (layer,) = snapshotter.walk()
    made = snapshotter.root / "layers" / str(layer.id) / "fs/holes"
    assert made.read_bytes() == (tmp_path / "holes").read_bytes()
    assert made.stat().st_blocks * 512 <= 2 << 20


def test_layers_stay_as_long_as_any_namespace_has_them(
    importer: Importer, metadata: Metadata, snapshotter: Snapshotter, layout: Layout
) -> None:
    layout.image([[file("a")], [file("b")]])
    for namespace in ("one", "two"):
        importer.import_path(namespace, layout.root, WANTED)
    metadata.images.delete("one", "example.org/made:1")
    metadata.collector.collect()
    assert Catalog(metadata).verify("two", "example.org/made:1") == []
    snapshotter.stat(Catalog(metadata).get("two", "example.org/made:1").snapshot)
    assert not metadata.has_snapshot(
        "one", Catalog(metadata).get("two", "example.org/made:1").snapshot
    )
    metadata.images.delete("two", "example.org/made:1")
    metadata.collector.collect()
    assert list(snapshotter.walk()) == []


def test_layers_of_many_namespaces_go_children_first(
    importer: Importer, metadata: Metadata, snapshotter: Snapshotter, layout: Layout
) -> None:
    base, top = [file("a")], [file("b")]
    layout.image([base, top], name="both:1")
    other = Layout(layout.root.with_name("other"))
    other.image([base], name="base:1")
    importer.import_path("one", layout.root, WANTED)
    importer.import_path("two", other.root, WANTED)
    metadata.images.delete("one", "both:1")
    metadata.images.delete("two", "base:1")
    assert metadata.collector.collect().failed == []
    assert list(snapshotter.walk()) == []
