"""Other stores by name, and the ways to them.

ssh://[USER@]HOST[:PORT][/ROOT]   `snapfs remote-serve --stdio` there, through ssh
unix:///PATH                      a socket of this host
https://HOST:PORT                 TLS, each side with a certificate that the other's CA signed
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import msgspec

from snapfs.model import AlreadyExists, FailedPrecondition, InvalidArgument, NotFound
from snapfs.store import ReadTx, Row, WriteTx
from snapfs.sync.schema import CONFLICTS, LASTS, REMOTES, SCOPE, RemoteBody

MAX_NAME_BYTES = 64
_NAME = re.compile(r"[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
_HOST = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?|[0-9A-Fa-f:.]+")
_USER = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]*")


@dataclass(frozen=True, slots=True)
class Ssh:
    """A host that is reached by ssh; `path` is the root there, empty for the default one."""

    host: str
    user: str = ""
    port: int | None = None
    path: str = ""


@dataclass(frozen=True, slots=True)
class Unix:
    """A socket of this host."""

    path: str


@dataclass(frozen=True, slots=True)
class Tls:
    """A host and port that speak TLS."""

    host: str
    port: int


Way = Ssh | Unix | Tls


@dataclass(frozen=True, slots=True)
class Remote:
    """A remote as people see it."""

    name: str
    url: str
    store: str
    """Id of the store there; empty until it has answered."""
    added_ns: int


def parse(url: str) -> Way:
    """Return the way that an address names, or raise InvalidArgument saying how one is written."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise _malformed(url) from error
    if parts.query or parts.fragment or parts.password is not None:
        raise _malformed(url)
    match parts.scheme:
        case "ssh":
            return _ssh(url, parts, port)
        case "unix" if not parts.netloc and parts.path.startswith("/"):
            return Unix(parts.path)
        case "https" if parts.path in ("", "/") and not parts.username and port:
            return Tls(_host(url, parts), port)
        case _:
            raise _malformed(url)


def _ssh(url: str, parts: SplitResult, port: int | None) -> Ssh:
    user = parts.username or ""
    if user and not _USER.fullmatch(user):
        raise _malformed(url)
    return Ssh(_host(url, parts), user, port, parts.path.rstrip("/"))


def _host(url: str, parts: SplitResult) -> str:
    """Return the host; what ssh could take for an option is none."""
    host = parts.hostname or ""
    if not _HOST.fullmatch(host):
        raise _malformed(url)
    return host


def _malformed(url: str) -> InvalidArgument:
    return InvalidArgument(
        f"{url[:200]!r} is not the address of a remote; "
        "write ssh://HOST/ROOT, unix:///PATH or https://HOST:PORT"
    )


def add(tx: WriteTx, name: str, url: str) -> Remote:
    """Record a remote. Raises InvalidArgument, AlreadyExists."""
    if not _NAME.fullmatch(name) or len(name) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"remote name {name[:80]!r} is not a word of letters, digits, '.', '_' and '-'"
        )
    parse(url)
    if tx.get(REMOTES, SCOPE, name) is not None:
        raise AlreadyExists(f"remote {name!r} already exists; remove it or use another name")
    return _show(tx.create(REMOTES, SCOPE, name, RemoteBody(url)))


def find(tx: ReadTx, name: str) -> Remote:
    """Return a remote, or raise NotFound."""
    return _show(_row(tx, name))


def only(tx: ReadTx) -> Remote:
    """Return the one remote there is; or raise NotFound, or FailedPrecondition for several."""
    found = list(walk(tx))
    if not found:
        raise NotFound("there is no remote; add one with `snapfs remote add NAME URL`")
    if len(found) > 1:
        names = ", ".join(it.name for it in found)
        raise FailedPrecondition(f"there are several remotes; name one of {names}")
    return found[0]


def walk(tx: ReadTx) -> Iterator[Remote]:
    """Yield the remotes in the order of names."""
    return map(_show, tx.rows(REMOTES, SCOPE))


def recognise(tx: WriteTx, name: str, store: str) -> None:
    """Record the store that answered, or refuse one that is not the store that did before."""
    row = _row(tx, name)
    if row.body.store and row.body.store != store:
        raise FailedPrecondition(
            f"remote {name!r} answers as another store than before; if that is meant, "
            "remove the remote and add it again"
        )
    if store == tx.uuid.hex():
        raise FailedPrecondition(f"remote {name!r} is this store itself; give another address")
    if not row.body.store:
        tx.update(row, msgspec.structs.replace(row.body, store=store))


def remove(tx: WriteTx, name: str) -> None:
    """Forget a remote, with what is known of its last syncs and conflicts with it."""
    tx.delete(_row(tx, name))
    for scope in list(tx.scopes()):
        if scope.startswith(f"{name}/"):
            for last in list(tx.rows(LASTS, scope)):
                tx.delete(last)
        for conflict in list(tx.rows(CONFLICTS, scope)):
            if conflict.body.remote == name:
                tx.delete(conflict)


def _row(tx: ReadTx, name: str) -> Row[RemoteBody]:
    row = tx.get(REMOTES, SCOPE, name)
    if row is None:
        known = ", ".join(it.name for it in walk(tx)) or "none"
        raise NotFound(f"remote {name[:80]!r} does not exist; there are: {known}")
    return row


def _show(row: Row[RemoteBody]) -> Remote:
    return Remote(row.name, row.body.url, row.body.store, row.created_ns)
