"""Adding snapfs to containerd's configuration file.

Appends one stanza and touches nothing else: comments and layout of the file stay. The file is
read as TOML before and after; when the result would not be exactly "as before, plus the stanza",
nothing is written. The old file is kept beside the new one.
"""

from __future__ import annotations

import json
import os
import shutil
import tempfile
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from snapfs.model import FailedPrecondition, InvalidArgument
from snapfs_containerd.names import NAME, is_accepted

KNOWN_VERSIONS = (1, 2, 3)
"""Versions of the file in which proxy_plugins means the same (containerd 1.6 to 2.x)."""

CAPABILITIES = ("remap-ids",)
"""What containerd may leave to us (1.7.23 and later ask): owners of user namespaces."""

_DIFF_SERVICE = "io.containerd.service.v1.diff-service"

_NEW_FILE = "version = 2\n"
"""What a file that is missing starts as; 1.6 to 2.x read version 2."""


def install(
    config: Path,
    address: Path,
    *,
    root: Path | None = None,
    name: str = NAME,
    differ: bool = False,
) -> str:
    """Add the stanza `name` for the socket `address` to `config`; return what to tell the user.

    `root`, snapfs's directory, lets containerd 1.6.32 and later report the right file system to
    Kubernetes; with `differ`, containerd 1.7 and later ask our diff service first. Doing it twice
    changes nothing. InvalidArgument: the file is no TOML; FailedPrecondition: a stanza exists and
    differs, or the file's version is unknown.
    """
    if not is_accepted(name):
        raise InvalidArgument(f"snapshotter name {name!r}: use {NAME!r}, or '{NAME}-' and a suffix")
    config = config.resolve()  # a symbolic link stays one
    said = [_add(config, name, _settings(address, root), {})]
    if differ:
        said.append(_add(config, f"{name}-diff", _differ_settings(address), _order(name)))
    if all(added is None for added in said):
        return f"{config} has proxy_plugins.{name} already; nothing was changed"
    return "\n".join(
        (
            *filter(None, said),
            "now restart containerd (systemctl restart containerd), "
            f"then use it: ctr run --snapshotter {name} IMAGE NAME",
        )
    )


def _add(config: Path, name: str, wanted: dict[str, Any], plugins: dict[str, Any]) -> str | None:
    """Add a stanza, and settings of containerd's own plugins; None when it is there."""
    before = _read(config)
    settings = _parse(before, config)
    _check_version(settings, config)
    present = settings.get("proxy_plugins", {}).get(name)
    if present is not None:
        _check_same(present, wanted, config, name)
        return None
    for plugin in plugins.keys() & settings.get("plugins", {}).keys():
        raise FailedPrecondition(
            f"{config} has plugins.{_quoted(plugin)} already; put "
            f"{_quoted(name)} first in its `default` by hand, and add:\n{_stanza(name, wanted)}"
        )
    stanza = _stanza(name, wanted) + _plugin_tables(plugins)
    after = _appended(before or _NEW_FILE, stanza)
    _check_result(_parse(before or _NEW_FILE, config), after, name, wanted, plugins, config)
    try:
        backup = _replace(config, after)
    except OSError as error:
        raise FailedPrecondition(
            f"{config} cannot be written ({(error.strerror or str(error)).lower()}); run as root, "
            "or name the file that containerd reads with --containerd-config; nothing was changed"
        ) from error
    kept = f"the old file is {backup}" if backup else "the file is new"
    return f"added proxy_plugins.{name} to {config}; {kept}"


def _read(config: Path) -> str:
    """Return what the file says, nothing when it is missing."""
    try:
        return config.read_text("utf-8") if config.exists() else ""
    except UnicodeDecodeError as error:
        raise InvalidArgument(
            f"{config} is not UTF-8 ({error.reason}); mend it first, nothing was changed"
        ) from error


def _parse(text: str, config: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(
            f"{config} is not valid TOML ({error}); mend it first, nothing was changed"
        ) from error


def _check_version(settings: Mapping[str, Any], config: Path) -> None:
    version = settings.get("version", 1)
    if version not in KNOWN_VERSIONS:
        raise FailedPrecondition(
            f"{config} is of version {version}, which this snapfs does not know; "
            "add the stanza of plugin/config-2.x.toml by hand"
        )


def _settings(address: Path, root: Path | None) -> dict[str, Any]:
    exports = {"exports": {"root": str(root)}} if root else {}
    return {
        "type": "snapshot",
        "address": str(address),
        "capabilities": list(CAPABILITIES),
        **exports,
    }


def _differ_settings(address: Path) -> dict[str, Any]:
    return {"type": "diff", "address": str(address)}


def _order(name: str) -> dict[str, Any]:
    """Return the setting that lets our differ be asked before the one that walks."""
    return {_DIFF_SERVICE: {"default": [f"{name}-diff", "walking"]}}


def _plugin_tables(plugins: Mapping[str, Any]) -> str:
    return "".join(
        f"\n[plugins.{_quoted(name)}]\n  default = [{', '.join(map(_quoted, it['default']))}]\n"
        for name, it in plugins.items()
    )


def _check_same(
    present: Mapping[str, Any], wanted: Mapping[str, Any], config: Path, name: str
) -> None:
    # Other keys (platform, exports, capabilities) are the administrator's to choose.
    differing = [key for key in ("type", "address") if present.get(key) != wanted[key]]
    if differing:
        told = ", ".join(f"{key} is {present.get(key)!r}, not {wanted[key]!r}" for key in differing)
        raise FailedPrecondition(
            f"{config} has proxy_plugins.{name}, but its {told}; "
            "change or remove it by hand, or give its address with --address"
        )


def _stanza(name: str, wanted: Mapping[str, Any]) -> str:
    lines = [f"[proxy_plugins.{name}]"]
    lines += [f"  {key} = {_quoted(wanted[key])}" for key in ("type", "address")]
    if "capabilities" in wanted:
        lines += [f"  capabilities = [{', '.join(map(_quoted, wanted['capabilities']))}]"]
    if "exports" in wanted:
        lines += [
            f"  [proxy_plugins.{name}.exports]",
            f"    root = {_quoted(wanted['exports']['root'])}",
        ]
    return "\n".join(lines) + "\n"


def _quoted(text: str) -> str:
    return json.dumps(text, ensure_ascii=False)  # also a TOML basic string


def _appended(text: str, stanza: str) -> str:
    return f"{text.rstrip()}\n\n{stanza}"


def _check_result(
    before: dict[str, Any],
    after: str,
    name: str,
    wanted: Mapping[str, Any],
    plugins: Mapping[str, Any],
    config: Path,
) -> None:
    right = {**before, "proxy_plugins": {**before.get("proxy_plugins", {}), name: wanted}}
    if plugins:
        right["plugins"] = {**before.get("plugins", {}), **plugins}
    try:
        is_right = tomllib.loads(after) == right
    except tomllib.TOMLDecodeError:
        is_right = False
    if not is_right:
        raise FailedPrecondition(
            f"{config}: a stanza cannot be added at its end, perhaps since proxy_plugins is "
            f"written in one line; add it by hand, nothing was changed:\n{_stanza(name, wanted)}"
        )


def _replace(config: Path, text: str) -> Path | None:
    """Write the file in one step, with owner and mode of the old; return where that is kept."""
    config.parent.mkdir(parents=True, exist_ok=True)
    backup = None
    with tempfile.NamedTemporaryFile("w", dir=config.parent, delete=False) as growing:
        try:
            growing.write(text)
            growing.flush()
            if config.exists():
                backup = _back_up(config)
                status = config.stat()
                os.fchown(growing.fileno(), status.st_uid, status.st_gid)
                os.fchmod(growing.fileno(), status.st_mode & 0o7777)
            else:
                os.fchmod(growing.fileno(), 0o644)
            os.fsync(growing.fileno())
            Path(growing.name).rename(config)
        except OSError:
            Path(growing.name).unlink(missing_ok=True)
            raise
    return backup


def _back_up(config: Path) -> Path:
    """Copy the file beside itself under a name that is free; older copies stay."""
    number = 0
    while True:
        suffix = f".before-snapfs.{number}" if number else ".before-snapfs"
        backup = config.with_name(config.name + suffix)
        if not backup.exists():
            return Path(shutil.copy2(config, backup))
        number += 1
