"""Containers on snapfs, run by containerd and runc: real programs, many at once, commits."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support import images, trees
from tests.support.containerd import NAMESPACE, Containerd
from tests.support.oci import Image

pytestmark = [
    pytest.mark.root,
    pytest.mark.fuse,
    pytest.mark.containerd,
    pytest.mark.slow,
    # The first test here makes the Debian tree.
    pytest.mark.timeout(1200),
]

Load = Callable[[Image, str], None]

DPKG = """
set -e
mkdir -p /tmp/p/DEBIAN /tmp/p/usr/share/hello
printf 'Package: hello-snapfs\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x.test>\\n'\
'Description: x\\n' > /tmp/p/DEBIAN/control
echo hello > /tmp/p/usr/share/hello/text
dpkg-deb --build /tmp/p /tmp/p.deb
dpkg --install /tmp/p.deb
dpkg --listfiles hello-snapfs
dpkg --verify hello-snapfs dpkg
dpkg --remove hello-snapfs
test ! -e /usr/share/hello
dpkg --audit
"""

PYTHON = """
import mmap, os, pathlib, subprocess, sys, tempfile
library = pathlib.Path(os.__file__).parent
for source in sorted(library.glob("*.py")):
    compile(source.read_text(), str(source), "exec")
with tempfile.TemporaryFile() as file:
    file.truncate(1 << 20)
    with mmap.mmap(file.fileno(), 0) as memory:
        memory[12345] = 7
        memory.flush()
    file.seek(12345)
    assert file.read(1) == bytes([7])
os.rename("/usr/share", "/usr/shared")
os.rename("/usr/shared", "/usr/share")
print(subprocess.run([sys.executable, "-c", "print(6 * 7)"], capture_output=True, text=True).stdout)
"""

GIT = """
set -e
export HOME=/root
git config --global user.name n
git config --global user.email n@x.test
git config --global init.defaultBranch main
mkdir /r && cd /r && git init --quiet
for n in 1 2 3; do cp -r /etc/perl "perl$n" 2>/dev/null || cp /etc/passwd "file$n"
  echo $n > counter; git add --all; git commit --quiet --message "change $n"; done
git checkout --quiet -b side HEAD~1
echo side > side && git add side && git commit --quiet --message side
git checkout --quiet main && git merge --quiet --no-edit side
git gc --quiet --aggressive
git fsck --strict
git log --oneline | wc -l
"""


def test_dpkg_builds_installs_verifies_and_removes_a_package(
    engine: Containerd, snapshotter: str, debian_image: Image, load: Load
) -> None:
    load(debian_image, snapshotter)
    said = engine.run(debian_image.name, "dpkg", "/bin/sh", "-c", DPKG, snapshotter=snapshotter)
    assert "/usr/share/hello/text" in said


def test_python_compiles_maps_and_renames_directories_of_lower_layers(
    engine: Containerd, snapshotter: str, debian_image: Image, load: Load
) -> None:
    load(debian_image, snapshotter)
    said = engine.run(debian_image.name, "python", "python3", "-c", PYTHON, snapshotter=snapshotter)
    assert said.strip() == "42"


def test_git_commits_merges_collects_and_checks_a_repository(
    engine: Containerd, snapshotter: str, debian_image: Image, load: Load
) -> None:
    load(debian_image, snapshotter)
    said = engine.run(debian_image.name, "git", "/bin/sh", "-c", GIT, snapshotter=snapshotter)
    assert said.strip().splitlines()[-1] == "5"


def test_a_container_stops_at_its_max_size(
    engine: Containerd, snapshotter: str, odd_image: Image, load: Load
) -> None:
    load(odd_image, snapshotter)
    script = "dd if=/dev/zero of=/full bs=64k count=1000; du -k /full; df -k / | tail -n 1"
    said = engine.run_labelled(
        odd_image.name,
        "bounded",
        *("sh", "-c", f"({script}) 2>&1"),
        label="containerd.io/snapshot/max-size=8MiB",
        snapshotter=snapshotter,
    )
    assert "quota exceeded" in said.lower()
    *_, used, shown = said.splitlines()
    assert 7000 <= int(used.split()[0]) <= 8192
    assert "8192" in shown.split()


def test_what_one_exec_writes_the_next_reads(
    engine: Containerd, snapshotter: str, odd_image: Image, load: Load
) -> None:
    load(odd_image, snapshotter)
    with _standing(engine, odd_image, "stands", snapshotter):
        engine.exec("stands", "sh", "-c", "echo written > /odd/kept/0; rm /odd/one")
        assert engine.exec("stands", "cat", "/odd/kept/0") == "written\n"
        assert engine.exec("stands", "sh", "-c", "ls /odd/one || echo gone") == "gone\n"


def test_20_containers_at_once_write_each_their_own(
    engine: Containerd, snapshotter: str, odd_image: Image, load: Load
) -> None:
    load(odd_image, snapshotter)
    script = "echo $0 > /odd/kept/1; rm /odd/kept/2; sync; sleep 1; cat /odd/kept/1; ls /odd/kept"

    def run(number: int) -> str:
        return engine.run(
            odd_image.name,
            f"many-{number}",
            *("sh", "-c", script, f"container {number}"),
            snapshotter=snapshotter,
        )

    with ThreadPoolExecutor(20) as pool:
        said = list(pool.map(run, range(20)))
    assert said == [f"container {number}\n0\n1\nlink-to-1\n" for number in range(20)]


CHANGES = """
set -e
echo changed > /odd/kept/0
echo added > /odd/kept/added
rm -r /odd/becomes-directory
mv /odd/renewed /odd/renamed
chmod 0711 /odd/replaced
ln /odd/capable /odd/capable-too
ln -s /odd /odd/self
mkdir -p /new/deep/er
echo deep > /new/deep/er/file
touch /new/empty
"""


def test_a_changed_container_becomes_a_layer_that_runs(
    engine: Containerd,
    snapshotter: str,
    odd_image: Image,
    load: Load,
    tmp_path: Path,
) -> None:
    load(odd_image, snapshotter)
    with _standing(engine, odd_image, "changed", snapshotter):
        engine.exec("changed", "sh", "-c", CHANGES)
        live = trees.describe(_rootfs(engine, "changed"))
        # While the container runs: its tree is mounted a second time, and both must agree.
        layer = engine.ctr(
            *("snapshots", "--snapshotter", snapshotter, "diff"),
            *("--media-type", "application/vnd.oci.image.layer.v1.tar", "changed"),
        ).stdout
    assert "odd/.wh.becomes-directory" in _names(layer)
    image = Image(
        f"snapfs.test/changed:{snapshotter}",
        [*images.odd_layers(), layer],
    )
    assert image.chain_id != odd_image.chain_id
    for name in ("overlayfs", snapshotter):
        engine.load(image.write(tmp_path / "changed.tar"), snapshotter=name)
        with engine.viewed(image.chain_id, tmp_path / name, snapshotter=name) as mounted:
            found = trees.describe(mounted)
            # containerd writes the times of a layer in whole seconds.
            assert trees.differences(_in_seconds(live), _in_seconds(found)) == []
    said = engine.run(
        image.name, "again", "cat", "/new/deep/er/file", "/odd/kept/added", snapshotter=snapshotter
    )
    assert said == "deep\nadded\n"


def test_a_containers_snapshot_can_be_committed_and_stood_upon(
    engine: Containerd, snapshotter: str, odd_image: Image, load: Load, tmp_path: Path
) -> None:
    load(odd_image, snapshotter)
    snapshots = ("snapshots", "--snapshotter", snapshotter)
    with _standing(engine, odd_image, "kept", snapshotter):
        engine.exec("kept", "sh", "-c", CHANGES)
        live = trees.describe(_rootfs(engine, "kept"))
        engine.end("kept")
        engine.ctr(*snapshots, "commit", "kept-image", "kept")
    with engine.viewed("kept-image", tmp_path / "kept", snapshotter=snapshotter) as mounted:
        assert trees.differences(live, trees.describe(mounted)) == []
    engine.ctr(*snapshots, "remove", "kept-image")


@contextmanager
def _standing(engine: Containerd, image: Image, name: str, snapshotter: str) -> Iterator[None]:
    """A container that does nothing until the end of the block."""
    engine.run_detached(image.name, name, "sleep", "600", snapshotter=snapshotter)
    try:
        yield
    finally:
        if name in engine.tasks():
            engine.end(name)
        engine.remove(name)


def _rootfs(engine: Containerd, name: str) -> Path:
    return engine.base / "state" / "io.containerd.runtime.v2.task" / NAMESPACE / name / "rootfs"


def _in_seconds(tree: dict[str, trees.Entry]) -> dict[str, trees.Entry]:
    return {
        path: entry._replace(mtime_ns=entry.mtime_ns // 10**9 * 10**9)
        for path, entry in tree.items()
    }


def _names(layer: bytes) -> set[str]:
    with tarfile.open(fileobj=io.BytesIO(layer)) as tar:
        return set(tar.getnames())
