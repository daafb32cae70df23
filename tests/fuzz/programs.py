"""What programs do in a container, for streams of requests: build, unpack, install, look, clean up.

`python -m tests.fuzz.programs -max_total_time=SECONDS` damages them in new ways for so long.
"""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path

from snapfs.fuse.modes import Mode
from tests.fuzz import damage, streams
from tests.fuzz.streams import Asked, Kernel
from tests.support import lanes, sanitizers
from tests.support.sanitizers import Sanitized

DEADLINE_S = 60
DIRECTORIES = ("etc", "usr/bin", "usr/share/doc", "var")
UNPACKED = Path(__file__).parents[1] / "store"
GIT = "git -c user.name=n -c user.email=e -c maintenance.auto=false -c safe.directory=*"
MANY = 8
TIME = "-max_total_time="
ENVIRON = {
    "GIT_CONFIG_GLOBAL": "/dev/null",
    "GIT_CONFIG_SYSTEM": "/dev/null",
    "HOME": "/nonexistent",
    "GIT": GIT,
}
SCRIPT = """
ls -lR . ; find . -name absent ; cat etc/* usr/bin/file2
mkdir repository ; cp usr/bin/file* repository
cd repository ; $GIT init -q . ; $GIT add . ; $GIT commit -qm first ; echo more >>file3
$GIT commit -qam second ; $GIT status ; $GIT log --stat ; cd ..
tar xf $ARCHIVE ; tar cf - unpacked etc | cat
for name in file1 file4 file5 new ; do
    echo text >etc/$name.dpkg-new ; chmod 640 etc/$name.dpkg-new
    if test -e etc/$name ; then ln etc/$name etc/$name.dpkg-tmp ; fi
    mv etc/$name.dpkg-new etc/$name ; rm -f etc/$name.dpkg-tmp
done
chmod 600 usr/bin/file7 ; chown 1:1 usr/bin/file8 ; touch -d @5 var var/file3 ; chmod 700 var
sed -i s/1/2/ var/file1 ; echo x >>var/file5 ; ln -s /a/b var/new ; readlink var/link var/new
mv unpacked moved ; mv moved/conftest.py var/ ; truncate -s 3 var/file6
ls -lR . ; rm -rf repository moved/*s*.py ; rm var/file2 ; ls -l . var
"""


def fill(layer: Path) -> None:
    for name in DIRECTORIES:
        (layer / name).mkdir(parents=True)
        for number in range(12):
            (layer / name / f"file{number}").write_bytes(b"%d" % number * 50 * number)
        (layer / name / "link").symlink_to("file3")
    os.setxattr(layer / "usr" / "bin" / "file9", "user.a", b"b")
    os.link(layer / "var" / "file1", layer / "var" / "other")


def work(place: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as tar:
        for path in sorted(UNPACKED.glob("*.py")):
            tar.add(path, arcname=f"unpacked/{path.name}")
    environ = {**os.environ, **ENVIRON, "ARCHIVE": str(archive)}
    command = ["sh", "-euc", SCRIPT]
    subprocess.run(
        command, cwd=place, env=environ, check=True, stdout=subprocess.DEVNULL, timeout=DEADLINE_S
    )
    assert os.getxattr(place / "usr" / "bin" / "file9", "user.a") == b"b"
    assert os.listxattr(place / "usr" / "bin" / "file9") == ["user.a"]
    shutil.rmtree(place / "usr" / "share")


def recorded(base: Path, mode: Mode) -> list[Asked]:
    """Return the requests that all this makes in a lane."""
    return streams.recorded(base, mode, fill, lambda place: work(place, base / "archive.tar"))


def feed(
    package: Sanitized, base: Path, mode: Mode, stream: list[Asked], seed: int, each: int
) -> Kernel:
    """Feed a stream, with `each` damaged requests before each one, to a worker of such a build over
    a root of its own; assert that nothing was found and nothing else was touched."""
    base.mkdir()
    library = base / "calls.so"
    streams.build(library)
    python = package.python(base / "python", library)
    shown = base / "shown"
    with lanes.house(shown, mode) as house:
        root, active = house.root, house.active(fill).upper.parent
    outside = [active, root / "metadata"]
    before = streams.everything_but(shown, *outside)
    try:
        with streams.worker(python, base, root, mode) as kernel:
            damage.feed_damaged(kernel, stream, seed, each)
    finally:
        found = sanitizers.said(python)
        assert not found, found
    after = streams.everything_but(shown, *outside)
    assert not {name for name in {*before, *after} if before.get(name) != after.get(name)}
    return kernel


def main(*options: str) -> None:
    (seconds,) = (float(it.removeprefix(TIME)) for it in options if it.startswith(TIME))
    fed = 0
    with tempfile.TemporaryDirectory(prefix="snapfs-streams-") as name:
        base = Path(name)
        package = Sanitized.build(base / "package", sanitizers.MEMORY)
        modes = (Mode.PASSTHROUGH, Mode.NO_OPEN)
        made = {mode: recorded(base / f"recorded-{mode.value}", mode) for mode in modes}
        end_s = time.monotonic() + seconds
        while time.monotonic() < end_s:
            for mode, stream in made.items():
                seed = random.getrandbits(32)
                print(f"{mode.value}, seed {seed}", file=sys.stderr, flush=True)
                place = base / f"fed-{seed}"
                kernel = feed(package, place, mode, stream, seed, MANY)
                shutil.rmtree(place)
                fed += kernel.asked
    print(f"Done {fed} runs", file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
