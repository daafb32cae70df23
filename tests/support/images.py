"""The images that tests, demo and benchmarks run: a Debian tree under layers full of oddities.

The Debian tree is made once a machine by mmdebstrap, from the machine's own package sources, and
kept in build/cache.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import platform
import stat
import subprocess
from pathlib import Path

from tests.support.oci import MTIME_NS, Image, Layer

CACHE = Path(__file__).parents[2] / "build" / "cache"
BUSYBOX = Path("/bin/busybox")
DEBIAN_PACKAGES = ("python3", "git", "dpkg")
DEBIAN_TIMEOUT_S = 900
LONG_NAME = "n" * 255
_APPLETS = ("sh", "ls", "cat", "echo", "sleep", "touch", "mkdir", "rm", "mv", "ln", "stat", "sync")


def debian_tree(*more: str) -> Path:
    """Return a tar archive of a small Debian with python3, git, dpkg and `more` packages; made when
    missing."""
    suite = platform.freedesktop_os_release()["VERSION_CODENAME"]
    packages = (*DEBIAN_PACKAGES, *more)
    recipe = " ".join((suite, platform.machine(), *packages))
    made = CACHE / f"debian-{hashlib.sha256(recipe.encode()).hexdigest()[:16]}.tar"
    CACHE.mkdir(parents=True, exist_ok=True)
    with (CACHE / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not made.exists():
            growing = made.with_suffix(".growing.tar")
            _bootstrap(suite, packages, growing)
            growing.rename(made)
    return made


def _bootstrap(suite: str, packages: tuple[str, ...], archive: Path) -> None:
    subprocess.run(
        [
            *("mmdebstrap", "--quiet", "--mode=root", "--variant=essential", "--format=tar"),
            f"--include={','.join(packages)}",
            *(suite, archive, *_package_sources(suite)),
        ],
        check=True,
        timeout=DEBIAN_TIMEOUT_S,
        # What the machine's C library would preload or translate is not in the new tree.
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )


def _package_sources(suite: str) -> list[Path]:
    """Return the machine's source lists that serve `suite`; none leaves mmdebstrap its default."""
    etc = Path("/etc/apt")
    found = [etc / "sources.list", *sorted((etc / "sources.list.d").glob("*"))]
    return [
        path
        for path in found
        if path.suffix in (".list", ".sources") and path.is_file() and suite in path.read_text()
    ]


def busybox_layer() -> bytes:
    """Return a layer that is enough to run a shell."""
    layer = Layer()
    layer.directory("./")
    for name in ("bin", "dev", "etc", "proc", "sys", "root", "usr"):
        layer.directory(name)
    layer.directory("tmp", 0o1777)
    layer.file("bin/busybox", BUSYBOX.read_bytes(), 0o755)
    for applet in _APPLETS:
        layer.hard_link(f"bin/{applet}", "bin/busybox")
    layer.file("etc/passwd", b"root:x:0:0:root:/root:/bin/sh\n")
    return layer.archive()


def odd_layer() -> bytes:
    """Return a layer with one of everything that layers can hold."""
    layer = Layer()
    layer.directory("./")
    layer.directory("odd", 0o751, owner=(12, 34))
    layer.file("odd/sticky-setuid", b"#!/bin/sh\n", 0o6755, owner=(1000, 1000))
    layer.file("odd/one", b"linked", 0o600, xattrs={"user.colour": "blue", "trusted.odd": "yes"})
    layer.hard_link("odd/two", "odd/one")
    layer.hard_link("odd/three", "odd/one")
    layer.device("odd/null", stat.S_IFCHR | 0o666, 1, 3)
    layer.device("odd/loop", stat.S_IFBLK | 0o660, 7, 99, owner=(0, 6))
    layer.fifo("odd/fifo", 0o640)
    layer.symlink("odd/dangling", "/nowhere/" + "t" * 1000, owner=(5, 6))
    layer.file(f"odd/{LONG_NAME}", b"long")
    layer.file("odd/ein Fuß\nund mehr", b"words")
    layer.file("odd/before-1970", b"", mtime_ns=-1_000_000_001)
    layer.file("odd/far-future", b"", mtime_ns=4_000_000_000 * 10**9 + 1)
    layer.file("odd/capable", b"", 0o755, xattrs={"security.capability": _NET_RAW})
    deep = "odd"
    for level in range(20):
        deep += f"/{level:02d}" + "d" * 60
        layer.directory(deep)
    layer.file(f"{deep}/bottom", b"deep")
    for name in ("emptied", "replaced", "kept", "renewed"):
        layer.directory(f"odd/{name}")
        for number in range(3):
            layer.file(f"odd/{name}/{number}", f"{name} {number}".encode())
    layer.file("odd/becomes-directory", b"file")
    layer.directory("odd/becomes-file")
    layer.file("odd/becomes-file/inside", b"gone")
    return layer.archive()


_NET_RAW = b"\x01\x00\x00\x02\x00\x20\x00\x00".decode() + "\x00" * 12
"""cap_net_raw+ep, as xattr(7) security.capability has it (version 2)."""


def change_layer() -> bytes:
    """Return a layer that deletes, replaces, hides and links across what `odd_layer` made."""
    layer = Layer()
    layer.directory("./")
    layer.directory("odd", 0o755, owner=(12, 35), mtime_ns=MTIME_NS + 1)
    layer.directory("odd/emptied")
    layer.whiteout("odd/emptied/0")
    layer.whiteout("odd/emptied/1")
    layer.whiteout("odd/emptied/2")
    layer.directory("odd/replaced", 0o700)
    layer.opaque("odd/replaced")
    layer.file("odd/replaced/new", b"only me")
    layer.whiteout("odd/two")
    layer.file("odd/one", b"no longer linked", 0o640)
    layer.whiteout("odd/becomes-directory")
    layer.directory("odd/becomes-directory", 0o711)
    layer.file("odd/becomes-directory/inside", b"new")
    layer.whiteout("odd/becomes-file")
    layer.file("odd/becomes-file", b"file now")
    layer.whiteout("odd/null")
    layer.whiteout("odd/renewed")
    layer.directory("odd/kept", 0o700)
    layer.file("odd/kept/1", b"changed", xattrs={"user.layer": "3"})
    layer.hard_link("odd/kept/link-to-1", "odd/kept/1")
    return layer.archive()


def renewal_layer() -> bytes:
    """Return a layer that makes again what `change_layer` deleted."""
    layer = Layer()
    layer.directory("./")
    layer.directory("odd", 0o755, owner=(12, 36))
    layer.directory("odd/renewed", 0o750)
    layer.file("odd/renewed/1", b"again")
    layer.device("odd/null", stat.S_IFCHR | 0o600, 1, 5)
    layer.directory("odd/emptied")
    layer.file("odd/emptied/1", b"again")
    layer.directory("odd/replaced", 0o700)
    layer.whiteout("odd/replaced/new")
    return layer.archive()


def odd_layers() -> list[bytes]:
    """Return the layers of `odd_image`."""
    return [busybox_layer(), odd_layer(), change_layer(), renewal_layer()]


def odd_image(name: str = "snapfs.test/odd:1") -> Image:
    """Return a small image (busybox) whose layers hold one of everything; compressed."""
    return Image(name, odd_layers(), compress=True)


def debian_image(name: str = "snapfs.test/debian:1") -> Image:
    """Return a Debian with python3, git and dpkg under the same layers, a tenth deleted."""
    layers = [debian_tree(), odd_layer(), change_layer(), renewal_layer(), _trimmed_debian()]
    return Image(name, layers, command=("/bin/bash",))


def _trimmed_debian() -> bytes:
    layer = Layer()
    for name in ("./", "usr", "usr/share", "usr/share/doc", "etc"):
        layer.directory(name)
    layer.opaque("usr/share/doc")
    layer.whiteout("usr/share/man")
    layer.file("etc/issue", b"trimmed\n")
    return layer.archive()
