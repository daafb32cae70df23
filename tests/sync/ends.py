"""Ends of connections: an sshd of Debian's on loopback, and certificates for TLS."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

SNAPFS = Path(sys.executable).with_name("snapfs")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Sshd:
    """An sshd with keys of its own, whose one user may run remote-serve for one root only."""

    def __init__(self, directory: Path, root: Path) -> None:
        directory.mkdir()
        self.port = free_port()
        for name in ("host", "user"):
            subprocess.run(
                ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / name], check=True
            )
        public = (directory / "user.pub").read_text()
        forced = f'restrict,command="{SNAPFS} remote-serve --stdio {root}" '
        (directory / "authorized").write_text(forced + public)
        host_key = (directory / "host.pub").read_text()
        (directory / "known").write_text(f"[127.0.0.1]:{self.port} {host_key}")
        (directory / "sshd_config").write_text(
            f"Port {self.port}\nListenAddress 127.0.0.1\nHostKey {directory}/host\n"
            f"AuthorizedKeysFile {directory}/authorized\nPidFile {directory}/pid\n"
            "StrictModes no\nUsePAM no\nPasswordAuthentication no\nPermitRootLogin yes\n"
        )
        self.config = directory / "ssh_config"
        self.config.write_text(
            f"Host *\nUserKnownHostsFile {directory}/known\nIdentityFile {directory}/user\n"
            "IdentitiesOnly yes\nStrictHostKeyChecking yes\n"
        )
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
        self._log = (directory / "log").open("wb")
        self._process = subprocess.Popen(
            ["/usr/sbin/sshd", "-D", "-e", "-f", directory / "sshd_config"], stderr=self._log
        )
        self._await()

    def _await(self) -> None:
        end = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", self.port), 1).close()
            except OSError:
                assert time.monotonic() < end, "sshd does not listen"
                time.sleep(0.05)
            else:
                return

    def close(self) -> None:
        self._process.terminate()
        self._process.wait()
        self._log.close()


class Namespace:
    """A network namespace, joined to this one by a pair of devices."""

    def __init__(self) -> None:
        self.name = f"snapfs-{os.getpid()}"
        number = os.getpid() % 64
        self.outside, self.inside = (f"10.211.{number}.{it}" for it in (1, 2))
        ends = f"sn{os.getpid()}a", f"sn{os.getpid()}b"
        _run("ip", "netns", "add", self.name)
        try:
            _run("ip", "link", "add", ends[0], "type", "veth", "peer", "name", ends[1])
            _run("ip", "link", "set", ends[1], "netns", self.name)
            _run("ip", "address", "add", f"{self.outside}/24", "dev", ends[0])
            _run("ip", "link", "set", ends[0], "up")
            self._inside("address", "add", f"{self.inside}/24", "dev", ends[1])
            self._inside("link", "set", ends[1], "up")
            self._inside("link", "set", "lo", "up")
        except subprocess.CalledProcessError:
            self.close()
            raise

    @property
    def enter(self) -> tuple[str, ...]:
        """Return what stands before a command that is to run in it."""
        return ("nsenter", f"--net=/run/netns/{self.name}")

    def close(self) -> None:
        _run("ip", "netns", "del", self.name)

    def _inside(self, *words: str) -> None:
        _run("ip", "-n", self.name, *words)


class Authority:
    """Signs certificates of hosts."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self._directory = directory
        self.certificate = directory / "authority.pem"
        _openssl(
            *("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", "/CN=authority", "-days", "1"),
            *("-keyout", directory / "authority.key", "-out", self.certificate),
        )

    def sign(self, name: str, ip: str) -> tuple[Path, Path]:
        """Return certificate and key of a host that is reached by an address."""
        key, certificate = self._directory / f"{name}.key", self._directory / f"{name}.pem"
        request, extra = self._directory / f"{name}.csr", self._directory / f"{name}.ext"
        _openssl(
            *("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes"),
            *("-subj", f"/CN={name}", "-keyout", key, "-out", request),
        )
        extra.write_text(f"subjectAltName=IP:{ip}\n")
        _openssl(
            *("x509", "-req", "-in", request, "-CA", self.certificate, "-days", "1"),
            *("-CAkey", self._directory / "authority.key", "-CAcreateserial"),
            *("-extfile", extra, "-out", certificate),
        )
        return certificate, key


def _openssl(*arguments: object) -> None:
    _run("openssl", *map(str, arguments))


def _run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
