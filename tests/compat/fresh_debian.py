"""The README's commands on a fresh Debian of any suite: `make compat SUITE=trixie`.

A tree holds what Debian calls required, and apt, make and git; all else is for the Makefile to
install. Packages come from where this machine gets its own, with the suite's name in place of its
own. Kernel, devices and cgroups are this machine's; processes, mounts and /run are the run's own
and end with it. The tree is made once, in build/compat; a run changes a copy of it.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import shutil
import subprocess
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

HERE = Path(__file__).parents[2]
TREES = HERE / "build" / "compat"
PACKAGES = ("apt", "ca-certificates", "git", "make")
SOURCE = "/root/snapfs"
APT_SETTINGS = Path("/etc/apt/apt.conf.d")
BOUND = (
    *("/etc/hosts", "/etc/resolv.conf", "/etc/ssl/certs/ca-certificates.crt"),
    *("/etc/pip.conf", "/etc/xdg/pip", "/root/.config/pip", "/opt"),
)
"""What says how this machine reaches what it installs from, as far as it is there."""

_STALE = ('Acquire::Check-Valid-Until "false"',)

_ENTER = """
set -eu
mount --make-rprivate /
mount --bind "$TREE" "$TREE"
cd "$TREE"
for shared in dev sys; do mount --rbind /$shared $shared; mount --make-rslave $shared; done
mount -t proc proc proc
mount -t tmpfs -o mode=755 run run
for bound in $BOUND; do mount --bind -o ro $bound .$bound; done
mkdir -p .before
pivot_root . .before
umount -l /.before
rmdir /.before
cd "$WORK"
status=0
"$@" || status=$?  # not exec: the first process has to wait for what others leave behind
exit $status
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command in the source tree on a fresh Debian; return its exit status."""
    parser = argparse.ArgumentParser(description=__doc__, prog="fresh_debian")
    parser.add_argument("suite", help="a suite of Debian: bookworm, trixie, sid")
    parser.add_argument("command", nargs="+", help="what to run in a clone of HEAD")
    parser.add_argument("--keep", metavar="DIR", type=Path, help="work in DIR, and leave it")
    parser.add_argument(
        "--stale", action="store_true", help="take package lists of a mirror that stands still"
    )
    wish = parser.parse_args(arguments)
    base = fresh_tree(wish.suite, stale=wish.stale)
    with _working_copy(base, wish.keep) as tree:
        if not (tree / SOURCE.lstrip("/")).exists():
            run("git", "clone", "-q", HERE, tree / SOURCE.lstrip("/"))
        return enter(tree, wish.command)


def fresh_tree(suite: str, *, stale: bool = False) -> Path:
    """Return a tree of `suite` with nothing of ours in it; made when missing.

    `stale` lets package lists be used after the time that they are valid for.
    """
    made = TREES / suite
    if not made.exists():
        TREES.mkdir(parents=True, exist_ok=True)
        growing = Path(tempfile.mkdtemp(prefix=f"{suite}.", dir=TREES))
        growing.chmod(0o755)
        with tempfile.TemporaryDirectory() as sources:
            run(
                *("mmdebstrap", "--quiet", "--mode=root", "--variant=required"),
                *(f"--aptopt={it}" for it in _STALE if stale),
                *(f"--include={','.join(PACKAGES)}", suite, growing),
                *sources_of(suite, Path(sources)),
            )
        (growing / "etc/dpkg/dpkg.cfg.d/unsafe-io").write_text("force-unsafe-io\n")
        for settings in APT_SETTINGS.iterdir():
            shutil.copy(settings, growing / str(APT_SETTINGS.relative_to("/")))
        growing.rename(made)
    return made


def sources_of(suite: str, to: Path) -> list[Path]:
    """Write this machine's own package sources with another suite's name; return the files."""
    own = platform.freedesktop_os_release()["VERSION_CODENAME"]
    found = []
    for path in [*sorted(Path("/etc/apt").glob("sources.list*/*")), Path("/etc/apt/sources.list")]:
        if path.suffix not in (".list", ".sources") or not path.is_file():
            continue
        for number, stanza in enumerate(_stanzas(path)):
            if re.search(rf"\b{own}\b(?!-)", stanza):
                kept = to / f"{number}-{path.name}"
                # the suite alone: its updates are not needed, and unstable has none
                kept.write_text(re.sub(rf"\b{own}\b( {own}-[a-z]+)*", suite, stanza) + "\n")
                found.append(kept)
    return found


def _stanzas(path: Path) -> list[str]:
    text = "\n".join(it for it in path.read_text().splitlines() if not it.startswith("#"))
    return text.split("\n\n") if path.suffix == ".sources" else text.splitlines()


@contextmanager
def _working_copy(base: Path, keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        if not keep.exists():
            run("cp", "-a", "--reflink=auto", base, keep)
        yield keep.resolve()
        return
    place = Path(tempfile.mkdtemp(prefix="run.", dir=TREES))
    try:
        run("cp", "-a", "--reflink=auto", base, place / "tree")
        yield place / "tree"
    finally:
        shutil.rmtree(place)


def enter(tree: Path, command: Sequence[str]) -> int:
    """Run a command in a tree as if the machine were that; what it started ends with it."""
    bound = [it for it in BOUND if Path(it).exists()]
    for path in bound:
        _make_room(tree / path.lstrip("/"), like=Path(path))
    return subprocess.run(
        [
            *("unshare", "--mount", "--pid", "--fork", "--kill-child", "--propagation=private"),
            *("sh", "-c", _ENTER, "enter", *command),
        ],
        env={
            "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
            "HOME": "/root",
            "LC_ALL": "C.UTF-8",
            "TREE": str(tree),
            "WORK": SOURCE,
            "BOUND": " ".join(bound),
            **{name: value for name, value in os.environ.items() if _is_of_a_client(name)},
        },
        stdin=subprocess.DEVNULL,
        check=False,
    ).returncode


def _make_room(place: Path, like: Path) -> None:
    if like.is_dir():
        place.mkdir(parents=True, exist_ok=True)
    elif not place.exists() or place.is_symlink():
        place.parent.mkdir(parents=True, exist_ok=True)
        place.unlink(missing_ok=True)
        place.touch()


def _is_of_a_client(name: str) -> bool:
    return name.startswith("PIP_") or name.endswith(("_proxy", "_PROXY")) or name == "CI"


def run(*command: str | Path) -> None:
    subprocess.run(command, check=True, env={**os.environ, "LC_ALL": "C.UTF-8"})


if __name__ == "__main__":
    raise SystemExit(main())
