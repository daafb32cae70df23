"""Configuration: one TOML file, overridden by the environment, overridden by flags.

Owns the list of settings, their defaults and where each value came from. Refuses unknown keys and
environment variables (naming the nearest known one) and values of the wrong type (naming the key).
An absent default file means defaults; a file that was asked for must exist.

Environment variables are SNAPFS_ and the key in capitals, a dot written as an underscore:
`timeouts.drain_s` is SNAPFS_TIMEOUTS_DRAIN_S.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin

import msgspec

from snapfs.model import InvalidArgument, NotFound

DEFAULT_PATH = Path("/etc/snapfs/config.toml")
ENVIRONMENT_PREFIX = "SNAPFS_"
FILE_VARIABLE = "SNAPFS_CONFIG"
CHANNEL_VARIABLE = "SNAPFS_CHANNEL"
"""Read by each process that serves a mount (fuse/channel.py)."""
OTHER_VARIABLES = (FILE_VARIABLE, CHANNEL_VARIABLE)
"""What else may begin with the prefix: the rest is a setting, or a mistake."""

DOCKER_PLUGIN = Path("/run/docker/plugins/snapfs.sock")
"""Where Docker looks for a plugin called snapfs."""

MOST_WORKERS = 8
"""Of one lane."""

MAX_SOCKET_PATH_BYTES = 107
"""unix(7): sun_path holds 108 bytes with its closing zero."""

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Patience = Annotated[float, msgspec.Meta(ge=1, le=86_400)]
"""Less would end what is well."""
Delay = Annotated[float, msgspec.Meta(ge=0, le=86_400)]
LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]
Unpack = Literal["overlay", "fuse"]
Durability = Literal["full", "metadata"]
Seals = Literal["off", "background"]
Policy = Literal["shared", "isolated"]
ActiveLane = Literal["main", "no-open"]
ViewLane = Literal["views", "main", "no-open"]
Awake = Literal["auto", "on", "off"]

LOG_LEVELS: tuple[str, ...] = get_args(LogLevel)
LOG_FORMATS: tuple[str, ...] = get_args(LogFormat)
UNPACK_MODES: tuple[str, ...] = get_args(Unpack)
DURABILITIES: tuple[str, ...] = get_args(Durability)


class Timeouts(msgspec.Struct, frozen=True, kw_only=True):
    """How long `snapfs serve` and its clients wait, in seconds."""

    start_s: Seconds = 30.0
    """From the mount to a worker that answers."""
    drain_s: Seconds = 10.0
    """For calls in flight when the service is told to stop."""
    stop_s: Seconds = 20.0
    """For the lane to end after that; then it is detached and the process leaves."""
    probe_s: Seconds = 5.0
    """For the store and the worker to answer a health check."""
    watchdog_s: Patience = 20.0
    """For a worker to say anything, before it is replaced."""
    tree_s: Seconds = 30.0
    """For a tree to hold still at a commit, or for another call on the same snapshot."""
    call_s: Seconds = 120.0
    """For one call of the command line to the service."""


class Service(msgspec.Struct, frozen=True, kw_only=True):
    """The gRPC side."""

    max_workers: Annotated[int, msgspec.Meta(ge=1, le=1024)] = 64
    """Calls that run at once; further ones wait in line."""
    group: str = ""
    """A group whose members may look, on a socket of their own; empty: root only."""


class Lanes(msgspec.Struct, frozen=True, kw_only=True):
    """Which lane shows a new snapshot without a label for it (docs/lanes.md), and how all serve."""

    active: ActiveLane = "main"
    view: ViewLane = "views"
    workers: Annotated[int, msgspec.Meta(ge=0, le=MOST_WORKERS)] = 0
    """Workers that share the snapshots of each lane; 0: one for each 4 processors."""
    awake: Awake = "auto"
    """Whether a virtual machine's processors are kept from halting while requests follow each other
    (docs/fuse.md)."""


class Quota(msgspec.Struct, frozen=True, kw_only=True):
    """What an active snapshot may take whose labels do not say it (docs/quota.md); 0: no limit."""

    bytes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0
    inodes: Annotated[int, msgspec.Meta(ge=0, le=1 << 62)] = 0


class Overlay(msgspec.Struct, frozen=True, kw_only=True):
    """How the trees of active snapshots take changes (docs/overlay.md)."""

    metacopy: bool = True
    """Copy no data for a change of owner, mode, times or attributes, before the data changes or the
    snapshot is committed."""


class Gc(msgspec.Struct, frozen=True, kw_only=True):
    """How eager the garbage collector is (docs/metadata.md); containerd's knobs."""

    pause_threshold: Annotated[float, msgspec.Meta(ge=0, le=0.5)] = 0.02
    """Share of the time that collections may take."""
    deletion_threshold: Annotated[int, msgspec.Meta(ge=0)] = 0
    """Deletions that start a collection at once; 0: none do."""
    mutation_threshold: Annotated[int, msgspec.Meta(ge=0)] = 100
    """Changes since the last one without which a planned collection is put off; 0: none."""
    schedule_delay_s: Delay = 0.0
    """From what starts a collection to its beginning."""
    startup_delay_s: Delay = 0.1
    """From the start of the service to the first collection."""


class Sync(msgspec.Struct, frozen=True, kw_only=True):
    """Other hosts that sync volumes with this one, and this one with them (docs/sync.md)."""

    listen: Annotated[str, msgspec.Meta(pattern=r"^(.+:[0-9]{1,5})?$")] = ""
    """HOST:PORT on which others may connect by TLS; empty: nobody may."""
    certificate: Path = Path("/etc/snapfs/tls/certificate.pem")
    """Who this host is, to others."""
    key: Path = Path("/etc/snapfs/tls/key.pem")
    authority: Path = Path("/etc/snapfs/tls/authority.pem")
    """Whose signature on the other side's certificate is believed."""
    ssh_config: Path = Path()
    """ssh's configuration for ssh:// remotes; empty: that of the service's user."""


class Content(msgspec.Struct, frozen=True, kw_only=True):
    """Content of images (docs/metadata.md)."""

    policy: Policy = "shared"
    """Whether a namespace may have by its digest alone what another sent."""


class Diff(msgspec.Struct, frozen=True, kw_only=True):
    """The diff service for containerd (docs/containerd.md)."""

    containerd: Path = Path()
    """containerd's socket, whose content layers are read from and written to; empty: our own."""
    apply: bool = False
    """Unpack layers too; containerd does it faster itself."""


class Volumes(msgspec.Struct, frozen=True, kw_only=True):
    """Volumes with history (docs/volumes.md)."""

    plugin_socket: Path = Path()
    """Where Docker and podman find the volume plugin. Left out: where Docker looks by itself,
    /run/docker/plugins/snapfs.sock, or `volumes.sock` in another state directory than the
    default one."""


class Registered(msgspec.Struct, frozen=True, kw_only=True):
    """A snapshotter of another service, in a table [snapshotters.NAME] (docs/metadata.md)."""

    socket: Path
    """Where that service offers containerd.services.snapshots.v1."""
    snapshotter: str = ""
    """What it is called there; empty: as here."""
    namespace: str = "snapfs"
    """Whose snapshots ours are there, where that service has namespaces, as containerd has."""


SNAPSHOTTERS = "snapshotters"
"""The one table whose keys people choose; no variable sets it."""

SIZE_KEY = "quota.bytes"
"""It takes a size as people write it, too."""

_SNAPSHOTTER_NAME = re.compile(r"(?!snapfs(-|$))[A-Za-z0-9]+(?:[._-][A-Za-z0-9]+)*")
"""Those that begin so are this service's own."""


class History(msgspec.Struct, frozen=True, kw_only=True):
    """Where branches, volumes and names of images were before (docs/volumes.md)."""

    keep_days: Annotated[float, msgspec.Meta(ge=0, le=36_500)] = 0.0
    """For how long that is kept, and with it the snapshots that nothing else has; 0: for ever."""
    every_s: Seconds = 86_400.0
    """From one look for what is older to the next; the first is at the start of the service."""


class Config(msgspec.Struct, frozen=True, kw_only=True):
    """Everything that can be set, with the defaults that serve without a file."""

    root: Path = Path("/var/lib/snapfs")
    """Metadata and layers."""
    state: Path = Path("/run/snapfs")
    """Mount points, the lock and the socket; lost at reboot."""
    address: Path = Path()
    """The unix socket; left out, `snapfs.sock` in the state directory."""
    log_level: LogLevel = "info"
    log_format: LogFormat = "text"
    unpack: Unpack = "overlay"
    """What containerd's unpack gets: an overlay mount (native speed) or the FUSE directory."""
    durability: Durability = "full"
    """What a commit waits for: data and metadata, or metadata only (a power loss may cost data)."""
    seals: Seals = "off"
    """Whether each committed layer gets a digest, in the background, that tells damage later."""
    lanes: Lanes = Lanes()
    quota: Quota = Quota()
    overlay: Overlay = Overlay()
    gc: Gc = Gc()
    content: Content = Content()
    sync: Sync = Sync()
    diff: Diff = Diff()
    volumes: Volumes = Volumes()
    history: History = History()
    timeouts: Timeouts = Timeouts()
    service: Service = Service()
    snapshotters: dict[str, Registered] = {}
    """By what they are called here."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A configuration in force, and for each dotted key where its value came from."""

    config: Config
    origins: Mapping[str, str]

    def rows(self) -> Iterator[tuple[str, Any, str]]:
        """Yield (dotted key, value, origin) in the order of the documentation."""
        for key in KEYS:
            value = _get(self.config, key)
            yield key, _shown(value), self.origins[key]
        for name, it in self.config.snapshotters.items():
            for key in Registered.__struct_fields__:
                value = _shown(getattr(it, key))
                yield f"{SNAPSHOTTERS}.{name}.{key}", value, self.origins[SNAPSHOTTERS]


def _walk(struct: type[msgspec.Struct], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for field in msgspec.structs.fields(struct):
        path = prefix + field.name
        if isinstance(field.type, type) and issubclass(field.type, msgspec.Struct):
            yield from _walk(field.type, path + ".")
        elif path != SNAPSHOTTERS:
            yield path, field.type


KEYS: Mapping[str, Any] = dict(_walk(Config))
"""Every dotted key with its type, but for those of SNAPSHOTTERS."""


def environment_name(key: str) -> str:
    """Return the environment variable that sets the dotted `key`."""
    return ENVIRONMENT_PREFIX + key.replace(".", "_").upper()


def resolve(
    flags: Mapping[str, object] | None = None,
    *,
    path: Path | None = None,
    environ: Mapping[str, str] = os.environ,
) -> Resolved:
    """Return what is in force: flag over environment over file over default.

    `flags` maps dotted keys to values, None meaning "not given". `path` is a file that must
    exist; without it SNAPFS_CONFIG and then the default place are looked at.
    Raises NotFound for a file that was asked for and is missing, InvalidArgument for its content.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(KEYS, "default")
    for key, value, origin in (*_from_file(path, environ), *_from_environment(environ)):
        values[key], origins[key] = value, origin
    for key, value in (flags or {}).items():
        if value is not None:
            values[key] = _convert(key, value, f"flag --{key.replace('_', '-')}", strict=True)
            origins[key] = "flag"
    config = _build(values)
    if "address" not in values:
        config = msgspec.structs.replace(config, address=config.state / "snapfs.sock")
    if "volumes.plugin_socket" not in values:
        socket = DOCKER_PLUGIN if config.state == Config().state else config.state / "volumes.sock"
        config = msgspec.structs.replace(config, volumes=Volumes(plugin_socket=socket))
    return Resolved(_check_sockets(config), origins)


def _from_file(path: Path | None, environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    named = path or (Path(environ[FILE_VARIABLE]) if environ.get(FILE_VARIABLE) else None)
    place = named or DEFAULT_PATH
    try:
        raw = tomllib.loads(place.read_text("utf-8"))
    except FileNotFoundError:
        if named is None:
            return
        raise NotFound(f"{place}: no such configuration file; create it or leave it out") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"{place}: not valid TOML: {error}") from error
    except OSError as error:
        raise InvalidArgument(f"{place}: cannot be read: {error.strerror}") from error
    for key, value in _flatten(raw, str(place)):
        yield key, _convert(key, value, str(place), strict=True), f"file {place}"


def _flatten(table: Mapping[str, Any], where: str, prefix: str = "") -> Iterator[tuple[str, Any]]:
    tables = {key.rpartition(".")[0] for key in KEYS if "." in key}
    for name, value in table.items():
        path = prefix + name
        if path in tables:
            if not isinstance(value, dict):
                raise InvalidArgument(f"{where}: {path}: expected a table, got {_word(value)}")
            yield from _flatten(value, where, path + ".")
        elif path in KEYS or path == SNAPSHOTTERS:
            yield path, value
        else:
            raise InvalidArgument(f"{where}: {path}: unknown key{_nearest(path)}")


def _nearest(path: str) -> str:
    close = difflib.get_close_matches(path, (*KEYS, SNAPSHOTTERS), n=1, cutoff=0.5)
    leaf = path.rpartition(".")[2]
    by_leaf = [key for key in KEYS if key.rpartition(".")[2] == leaf]
    candidates = by_leaf or close
    if candidates:
        return f"; did you mean {candidates[0]}?"
    return f"; known keys are {', '.join(KEYS)}"


def _from_environment(environ: Mapping[str, str]) -> Iterator[tuple[str, Any, str]]:
    names = {environment_name(key): key for key in KEYS}
    for name in environ:
        if name.startswith(ENVIRONMENT_PREFIX) and name not in (*names, *OTHER_VARIABLES):
            close = difflib.get_close_matches(name, (*names, *OTHER_VARIABLES), n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else "unset it"
            raise InvalidArgument(f"environment {name}: no setting is called so; {hint}")
    for name, key in names.items():
        text = environ.get(name)
        if text:
            yield key, _convert(key, text, name, strict=False), f"environment {name}"


def _convert(key: str, value: object, where: str, *, strict: bool) -> Any:
    if key == SNAPSHOTTERS:
        return _registered(value, where)
    kind = KEYS[key]
    if kind is Path:
        return _absolute(key, value, where)
    if key == SIZE_KEY and isinstance(value, str):
        return _size(key, value, where)
    try:
        return msgspec.convert(value, kind, strict=strict)
    except msgspec.ValidationError as error:
        message = str(error)
        message = message[:1].lower() + message[1:]
        if choices := get_args(kind) if get_origin(kind) is Literal else ():
            message += f"; use one of {', '.join(choices)}"
        if kind is bool:
            message = f"{value!r} is neither true nor false"
        raise InvalidArgument(f"{where}: {key}: {message}") from None


def _size(key: str, text: str, where: str) -> int:
    from snapfs.snapshots.quota import parse_size

    try:
        return parse_size(text) if text.strip() != "0" else 0
    except InvalidArgument:
        raise InvalidArgument(
            f"{where}: {key}: {text!r} is no size; write it as 10GiB or 1048576, 0 for no limit"
        ) from None


def _registered(value: object, where: str) -> dict[str, Registered]:
    if not isinstance(value, dict):
        raise InvalidArgument(f"{where}: {SNAPSHOTTERS}: expected a table, got {_word(value)}")
    return {name: _one_registered(name, table, where) for name, table in value.items()}


def _one_registered(name: str, table: object, where: str) -> Registered:
    path = f"{SNAPSHOTTERS}.{name}"
    if not _SNAPSHOTTER_NAME.fullmatch(name):
        raise InvalidArgument(
            f"{where}: {path}: a name is letters and digits in groups joined by one of . _ -, and "
            "not snapfs, which is this service's own"
        )
    if not isinstance(table, dict):
        raise InvalidArgument(f"{where}: {path}: expected a table, got {_word(table)}")
    known = Registered.__struct_fields__
    for key, value in table.items():
        if key not in known:
            close = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
            hint = f"did you mean {close[0]}?" if close else f"known keys are {', '.join(known)}"
            raise InvalidArgument(f"{where}: {path}.{key}: unknown key; {hint}")
        if not isinstance(value, str) or not value:
            raise InvalidArgument(f"{where}: {path}.{key}: expected a word, got {value!r}")
    if "socket" not in table:
        raise InvalidArgument(f"{where}: {path}: no socket is named")
    socket = _absolute(f"{path}.socket", table["socket"], where)
    return Registered(**{**table, "socket": socket})


def _absolute(key: str, value: object, where: str) -> Path:
    if isinstance(value, Path):
        value = str(value)
    if not isinstance(value, str):
        raise InvalidArgument(f"{where}: {key}: expected a path, got {_word(value)}")
    if not value.startswith("/") or "\0" in value:
        raise InvalidArgument(f"{where}: {key}: {value!r} is not an absolute path")
    return Path(os.path.normpath(value))


def _word(value: object) -> str:
    return {dict: "a table", list: "an array", bool: "a boolean"}.get(
        type(value), f"`{type(value).__name__}`"
    )


def _build(values: Mapping[str, Any]) -> Config:
    nested: dict[str, Any] = {}
    for key, value in values.items():
        *parents, leaf = key.split(".")
        table = nested
        for parent in parents:
            table = table.setdefault(parent, {})
        table[leaf] = value
    for field in msgspec.structs.fields(Config):
        if isinstance(nested.get(field.name), dict) and field.name != SNAPSHOTTERS:
            nested[field.name] = field.type(**nested[field.name])
    return Config(**nested)


def _check_sockets(config: Config) -> Config:
    _check_socket(config.address, "address", "choose another with --address")
    for name, it in config.snapshotters.items():
        what = f"{SNAPSHOTTERS}.{name}.socket"
        _check_socket(it.socket, what, "link to it from a shorter one")
        if it.socket == config.address:
            raise InvalidArgument(f"{what} {it.socket}: that is this service itself")
    return config


def _check_socket(path: Path, what: str, way_out: str) -> None:
    size = len(os.fsencode(path))
    if size > MAX_SOCKET_PATH_BYTES:
        raise InvalidArgument(
            f"{what} {path}: {size} bytes are too long for a unix socket, which may have "
            f"{MAX_SOCKET_PATH_BYTES}; {way_out}"
        )


def _shown(value: Any) -> Any:
    """Return a value as people write it; a path that is not set is an empty one."""
    if isinstance(value, Path):
        return str(value) if value.name else ""
    return value


def _get(config: Config, key: str) -> Any:
    value: Any = config
    for name in key.split("."):
        value = getattr(value, name)
    return value
