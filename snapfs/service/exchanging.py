"""This host among others: a socket where they may sync with it, and the ways to them.

Owns <state>/sync.sock, root's alone as the service's own socket is, the symbolic link to it in the
root, by which ssh's command at this end finds the service of a root, and the TLS port if there is
one.
Nothing but snapfs.v1.Exchange (and health) answers there.
"""

from __future__ import annotations

from contextlib import suppress
from functools import partial
from pathlib import Path

import structlog

from snapfs.closing import Closing
from snapfs.config import Config
from snapfs.model import ResourceExhausted
from snapfs.service import exchange_server, grpc_server, ways
from snapfs.service.exchange_client import ExchangePeer
from snapfs.service.ways import Identity
from snapfs.snapshots.faults import refusing
from snapfs.sync import remotes
from snapfs.sync.remotes import Remote
from snapfs.sync.replica import Replica

log = structlog.get_logger(__name__)

WORKERS = 32
"""Calls of other hosts at once; one that brings a layer takes one as long as it does."""


class Exchanging(Closing):
    """What serves other hosts; ended by `close`."""

    def __init__(self, config: Config, replica: Replica) -> None:
        """Listen. Raises FailedPrecondition when keys for TLS are missing, Unavailable, ..."""
        self._config = config
        self._link = config.root / ways.SOCKET_NAME
        self._server = grpc_server.build(
            config.state / ways.SOCKET_NAME,
            services=[partial(exchange_server.register, replica=replica)],
            max_workers=WORKERS,
            secure=_secure(config),
        )
        self._server.set_serving(serving=True)
        try:
            self._make_link()
        except ResourceExhausted as error:  # a full disk: remotes by ssh find nobody
            log.warning("exchange.not_linked", error=str(error))

    def _make_link(self) -> None:
        with refusing(f"make {self._link}"):
            if self._link.is_symlink() and self._link.readlink() == self._server.address:
                return  # one killed before left it; to make it anew takes room
            self._link.unlink(missing_ok=True)
            self._link.symlink_to(self._server.address)

    def close(self) -> None:
        """Give calls in flight a while, then end; twice is fine."""
        self._server.stop(grace_s=self._config.timeouts.drain_s)
        with suppress(FileNotFoundError):
            self._link.unlink()


def connect(config: Config, remote: Remote) -> ExchangePeer:
    """Return a remote as a peer; nothing is asked of it yet."""
    ssh_config = config.sync.ssh_config
    connected = ways.connect(
        remotes.parse(remote.url),
        _identity(config),
        ssh_config=None if ssh_config == Path() else ssh_config,
    )
    return ExchangePeer(remote.name, connected, timeout_s=config.timeouts.call_s)


def address_of(root: Path) -> Path:
    """Return the socket on which the service of a root answers other hosts."""
    return root / ways.SOCKET_NAME


def _identity(config: Config) -> Identity:
    return Identity(config.sync.certificate, config.sync.key, config.sync.authority)


def _secure(config: Config) -> grpc_server.Secure | None:
    if not config.sync.listen:
        return None
    key, certificate, authority = ways.read_identity(_identity(config))
    return grpc_server.Secure(config.sync.listen, key, certificate, authority)
