"""Our C under AddressSanitizer and UBSan: fed with damaged requests, and serving a mount."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.support.daemon import eventually

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
SOURCES = ROOT / "snapfs" / "fuse" / "channel_src"
NEED_PYTHON = {"module.c", "hotmodule.c", "openedmodule.c"}
ROUNDS = 60_000
DEADLINE_S = 100


@pytest.fixture(scope="module")
def stream(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The harness and all sources that do without Python, with sanitizers built in."""
    program = tmp_path_factory.mktemp("sanitized") / "channel_stream"
    sources = [it for it in SOURCES.glob("*.c") if it.name not in NEED_PYTHON]
    subprocess.run(
        [
            "gcc",
            "-std=c11",
            "-O1",
            "-g",
            "-Wall",
            "-Wextra",
            "-Werror",
            "-fsanitize=address,undefined",
            "-fno-sanitize-recover=all",
            "-o",
            program,
            HERE / "channel_stream.c",
            *sources,
            "-lm",
        ],
        check=True,
        timeout=DEADLINE_S,
    )
    return program


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_streams_of_requests_break_nothing(stream: Path, seed: int) -> None:
    done = subprocess.run(
        [stream, str(seed), str(ROUNDS)],
        env={**os.environ, "ASAN_OPTIONS": "detect_leaks=0"},  # tables live as long as the process
        cwd=stream.parent,
        capture_output=True,
        text=True,
        timeout=DEADLINE_S,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{ROUNDS}\n"


BUILD = "from setuptools import setup; setup(script_args=['-q', 'build_ext', '--inplace'])"
SERVE = "import sys; from snapfs.cli.overlay import main; sys.argv[0] = 'snapfs-overlay'; main()"
COMPLAINTS = ("AddressSanitizer", "runtime error", "unexpected_error", "event_failed")


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the package whose C is built with sanitizers; to be put on PYTHONPATH."""
    copy = tmp_path_factory.mktemp("package")
    ours = shutil.ignore_patterns("*.so", "__pycache__")
    shutil.copytree(ROOT / "snapfs", copy / "snapfs", ignore=ours)
    shutil.copytree(ROOT / "plugin", copy / "plugin", ignore=ours)
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, copy)
    flags = "-O1 -g -fno-omit-frame-pointer -fsanitize=address,undefined"
    subprocess.run(
        [sys.executable, "-c", BUILD],
        env={**os.environ, "CFLAGS": f"{flags} -fno-sanitize-recover=all"},
        cwd=copy,
        check=True,
        timeout=DEADLINE_S,
    )
    return copy


@contextmanager
def overlay_under_sanitizers(package: Path, base: Path) -> Iterator[Path]:
    """An overlay over `base`/lower, served by such a build; fails when that complains."""
    place = base / "mounted"
    for name in ("upper", "work", "mounted"):
        (base / name).mkdir()
    layers = f"lowerdir={base}/lower,upperdir={base}/upper,workdir={base}/work"
    library = subprocess.check_output(["gcc", "-print-file-name=libasan.so"], text=True).strip()
    with (base / "said").open("w") as said:
        server = subprocess.Popen(
            [sys.executable, "-c", SERVE, "-f", "-o", layers, place],
            env={
                **os.environ,
                "LD_PRELOAD": library,
                "PYTHONPATH": str(package),
                "PYTHONMALLOC": "malloc",
                "ASAN_OPTIONS": "detect_leaks=0",
            },
            stderr=said,
        )
        try:
            eventually(lambda: place.is_mount(), what="the mount")
            yield place
        finally:
            subprocess.run(["umount", "-l", place], check=False)
            try:
                server.wait(DEADLINE_S / 2)
            finally:
                server.kill()
    text = (base / "said").read_text()
    assert server.returncode == 0, text
    assert not any(word in text for word in COMPLAINTS), text


def work(place: Path, name: str) -> None:
    """Do to files what the C has a part in."""
    directory = place / name
    directory.mkdir()
    for number in range(60):
        file = directory / f"{number:03}{'x' * number}"
        file.write_bytes(b"x" * number)
        file.chmod(0o640)
        os.utime(file, (1, number))
        os.setxattr(file, "user.number", b"%d" % number)
        assert os.getxattr(file, "user.number") == b"%d" % number
        assert os.listxattr(file) == ["user.number"]
        with file.open("r+b") as held:
            file.rename(directory / "moved")
            (directory / "moved").unlink() if number % 3 else os.link(directory / "moved", file)
            held.write(b"held")
    for number in range(60):
        below = directory / f"{number}" / "below"
        below.mkdir(parents=True)
        (below / "link").symlink_to("x" * (number + 1))
        os.chown(below / "link", 1, number, follow_symlinks=False)
        below.chmod(0o750)
        assert len(os.readlink(below / "link")) == number + 1
        assert [it.stat(follow_symlinks=False).st_gid for it in os.scandir(below)] == [number]
        if number % 2:
            (below / "link").unlink()
            below.rmdir()
    for number in range(60):
        lower = place / "lower" / f"{name}{number}"
        assert lower.read_text() == lower.name
        if number % 2:
            with lower.open("a") as grown:
                grown.write("more")
    for top in (directory, place / "lower"):  # those of other threads come and go
        for above, directories, files in os.walk(top):
            for it in (*directories, *files):
                (Path(above) / it).lstat()
    shutil.rmtree(directory)


@pytest.mark.root
@pytest.mark.fuse
def test_a_mount_is_served_without_a_complaint(sanitized: Path, tmp_path: Path) -> None:
    names = ("a", "b", "c")
    (tmp_path / "lower" / "lower").mkdir(parents=True)
    for name in names:
        for number in range(60):
            (tmp_path / "lower" / "lower" / f"{name}{number}").write_text(f"{name}{number}")
    with (
        overlay_under_sanitizers(sanitized, tmp_path) as place,
        ThreadPoolExecutor(len(names)) as pool,
    ):
        list(pool.map(lambda name: work(place, name), names))
        Path("/proc/sys/vm/drop_caches").write_text("2")
        assert os.listdir(place) == ["lower"]
        (place / "last").touch()
