"""Images made in a few lines: layers from lists of entries, layouts from layers."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import stat
import tarfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

LAYER = "application/vnd.oci.image.layer.v1.tar"
MTIME = 1_600_000_000


@dataclass
class Entry:
    """One member of a layer."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    device: tuple[int, int] = (0, 0)
    pax: dict[str, str] = field(default_factory=dict)

    def member(self) -> tarfile.TarInfo:
        made = tarfile.TarInfo(self.name)
        made.type, made.mode, made.uid, made.gid = self.type, self.mode, self.uid, self.gid
        made.size = len(self.data) if self.type == tarfile.REGTYPE else 0
        made.linkname, made.mtime = self.link, MTIME
        made.devmajor, made.devminor = self.device
        made.pax_headers = dict(self.pax)
        return made


def file(name: str, data: bytes = b"data", **more: Any) -> Entry:
    return Entry(name, data, **more)


def directory(name: str, mode: int = 0o755, **more: Any) -> Entry:
    return Entry(name, type=tarfile.DIRTYPE, mode=mode, **more)


def symlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    return Entry(name, type=tarfile.LNKTYPE, link=target)


def whiteout(name: str) -> Entry:
    head, _, tail = name.rpartition("/")
    return Entry(f"{head}/.wh.{tail}" if head else f".wh.{tail}", b"")


def opaque(name: str) -> Entry:
    return Entry(f"{name}/.wh..wh..opq", b"")


def tar(entries: Sequence[Entry]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            archive.addfile(entry.member(), io.BytesIO(entry.data))
    return out.getvalue()


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Layout:
    """An OCI layout being made."""

    root: Path
    index: list[dict[str, Any]] = field(default_factory=list)

    def blob(self, data: bytes) -> dict[str, Any]:
        name = digest(data)
        path = self.root / "blobs" / name.replace(":", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": name, "size": len(data)}

    def document(self, value: Any, media_type: str) -> dict[str, Any]:
        return {"mediaType": media_type, **self.blob(json.dumps(value).encode())}

    def image(
        self,
        layers: Sequence[Sequence[Entry] | bytes],
        *,
        name: str = "example.org/made:1",
        compress: str = "",
        architecture: str = "amd64",
        diff_ids: Sequence[str] | None = None,
        history: bool = True,
    ) -> dict[str, Any]:
        plain = [layer if isinstance(layer, bytes) else tar(layer) for layer in layers]
        config = {
            "architecture": architecture,
            "os": "linux",
            "rootfs": {
                "type": "layers",
                "diff_ids": list(diff_ids or [digest(each) for each in plain]),
            },
            "config": {"Cmd": ["/bin/true"]},
            "history": [{"created_by": "made"} for _ in plain if history],
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": self.document(config, "application/vnd.oci.image.config.v1+json"),
            "layers": [
                {"mediaType": LAYER + suffix(compress), **self.blob(packed(each, compress))}
                for each in plain
            ],
        }
        described = self.document(manifest, manifest["mediaType"])  # type: ignore[arg-type]
        if name:
            described["annotations"] = {"io.containerd.image.name": name}
        self.index.append(described)
        self.write()
        return described

    def write(self) -> None:
        self.root.mkdir(parents=True, exist_ok=True)
        (self.root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self.root / "index.json").write_text(
            json.dumps({"schemaVersion": 2, "manifests": self.index})
        )


def suffix(compress: str) -> str:
    return f"+{compress}" if compress else ""


def packed(data: bytes, compress: str) -> bytes:
    if compress == "gzip":
        return gzip.compress(data)
    if compress == "zstd":
        return zstandard.ZstdCompressor().compress(data)
    return data


def docker_archive(path: Path, layers: Sequence[Sequence[Entry]], tags: Sequence[str]) -> None:
    """Write what `docker save` does."""
    plain = [tar(layer) for layer in layers]
    config = json.dumps(
        {
            "architecture": "amd64",
            "os": "linux",
            "rootfs": {"type": "layers", "diff_ids": [digest(each) for each in plain]},
        }
    ).encode()
    manifest = [
        {
            "Config": "config.json",
            "RepoTags": list(tags),
            "Layers": [f"{number}/layer.tar" for number in range(len(plain))],
        }
    ]
    with tarfile.open(path, "w") as archive:
        for name, data in (
            ("config.json", config),
            *((f"{number}/layer.tar", each) for number, each in enumerate(plain)),
            ("manifest.json", json.dumps(manifest).encode()),
        ):
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))


def archive(layout: Path, path: Path, mode: str = "w") -> Path:
    with tarfile.open(path, mode) as out:  # type: ignore[call-overload]
        for entry in sorted(layout.rglob("*")):
            out.add(entry, entry.relative_to(layout), recursive=False)
    return path


def tree(root: Path) -> dict[str, tuple[Any, ...]]:
    """Return all that a user sees of a tree, by path."""
    found: dict[str, tuple[Any, ...]] = {}
    for here, directories, files in os.walk(root):
        for name in sorted([*directories, *files]):
            path = Path(here, name)
            info = path.lstat()
            kind = stat.S_IFMT(info.st_mode)
            content: Any = None
            if kind == stat.S_IFREG:
                content = hashlib.sha256(path.read_bytes()).hexdigest()
            elif kind == stat.S_IFLNK:
                content = path.readlink()
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                content = info.st_rdev
            xattrs = {
                each: os.getxattr(path, each, follow_symlinks=False)
                for each in os.listxattr(path, follow_symlinks=False)
                if not each.startswith("trusted.overlay.")
            }
            times = None if kind == stat.S_IFDIR else info.st_mtime_ns
            found[str(path.relative_to(root))] = (
                info.st_mode, info.st_uid, info.st_gid, times, content, sorted(xattrs.items()),
                info.st_nlink if kind == stat.S_IFREG else None,
            )  # fmt: skip
    return found
