"""Two services in two network namespaces, and a volume of one of them."""

from __future__ import annotations

import os
from contextlib import ExitStack, suppress
from pathlib import Path

from tests.support.daemon import RunningDaemon, running
from tests.sync.ends import Authority, Namespace, Sshd, free_port


class Site:
    """A service with one volume."""

    def __init__(self, daemon: RunningDaemon, volume: str) -> None:
        self.daemon = daemon
        self.run, self.json = daemon.run, daemon.json
        self.name = volume
        self.db = daemon.state / "volumes" / volume

    def volume(self) -> None:
        self.run("volume", "create", self.name, "--mount")

    def working_copy(self) -> None:
        """Make a volume of the set that came from elsewhere, on its branch main."""
        self.run("volume", "clone", self.name, self.name, "main")
        self.run("branch", "switch", self.name, "main")
        self.run("volume", "mount", self.name)

    def fates(self, verb: str, remote: str) -> dict[str, str]:
        (report,) = self.json(verb, self.name, remote)
        assert report["error"] is None, report
        return {it["name"]: it["fate"] for it in report["branches"]}

    def snapshot(self, message: str = "x") -> str:
        return str(self.json("volume", "snapshot", self.name, "-m", message)["id"])

    def tips_of_set(self) -> dict[str, str]:
        """Return the tips of a set that no volume here is of."""
        self.run("volume", "clone", self.name, "look", "main")
        found = {it["name"]: it["tip"] for it in self.json("branch", "list", "look")}
        self.run("volume", "remove", "look")
        return found

    def received_bytes(self) -> int:
        """Return how much data the newest layer has on disk."""
        layers = self.daemon.root / "layers"
        newest = max(map(int, os.listdir(layers)), default=0)
        total = 0
        for directory, _, names in os.walk(layers / str(newest) / "fs"):
            for name in names:
                with suppress(FileNotFoundError):
                    total += os.lstat(os.path.join(directory, name)).st_blocks * 512
        return total

    def tips(self) -> dict[str, str]:
        return {it["name"]: it["tip"] for it in self.json("branch", "list", self.name)}


class Ground:
    """Both services, the ways between them, and who signed for whom."""

    def __init__(self, base: Path, stack: ExitStack) -> None:
        self.base = base
        self.authority = Authority(base / "ca")
        self.namespace = Namespace()
        stack.callback(self.namespace.close)
        port = free_port()
        self.tls = f"https://{self.namespace.inside}:{port}"
        bases = {name: base / name for name in ("ann", "bob")}
        for each in bases.values():
            each.mkdir()
        sshd = Sshd(base / "sshd", bases["bob"] / "root")
        stack.callback(sshd.close)
        self.ssh = f"ssh://127.0.0.1:{sshd.port}{bases['bob']}/root"
        self.no_ssh = f"ssh://127.0.0.1:{free_port()}/"
        self.unix = f"unix://{bases['bob']}/root"
        own = {"SNAPFS_SYNC_SSH_CONFIG": str(sshd.config), **self._identity("ann", "127.0.0.1")}
        listen = f"{self.namespace.inside}:{port}"
        other = {"SNAPFS_SYNC_LISTEN": listen, **self._identity("bob", self.namespace.inside)}
        self.ann = stack.enter_context(running(bases["ann"], environ=own))
        prefix = self.namespace.enter
        self.bob = stack.enter_context(running(bases["bob"], environ=other, prefix=prefix))
        for name in ("tls", "ssh", "unix"):
            self.ann.run("remote", "add", name, getattr(self, name))

    def _identity(self, name: str, ip: str) -> dict[str, str]:
        certificate, key = self.authority.sign(name, ip)
        return {
            "SNAPFS_SYNC_CERTIFICATE": str(certificate),
            "SNAPFS_SYNC_KEY": str(key),
            "SNAPFS_SYNC_AUTHORITY": str(self.authority.certificate),
        }
