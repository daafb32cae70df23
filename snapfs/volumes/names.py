"""What sets, branches and volumes can be called, and what may be said of them. Pure."""

from __future__ import annotations

import re

from snapfs.model import InvalidArgument, check_labels, check_name
from snapfs.volumes.ids import is_id, is_short
from snapfs.volumes.model import Attributes

MAX_NAME_BYTES = 255
MAX_DESCRIPTION_BYTES = 16 * 1024
MAX_ATTRIBUTES = 256

_FORBIDDEN = re.compile(r"[\s:*?^~@{}\[\]\\\x00-\x1f\x7f]")
_HEAD = "HEAD"


def check_branch(name: str, *, tracking: bool = False) -> str:
    """Return `name`, or raise InvalidArgument when a branch cannot be called so.

    A name has none of ``: * ? ^ ~ @ { } [ ] \\`` and no white space, which references use, and is
    neither HEAD nor shaped like an id. A slash is for branches that follow a remote (`tracking`).
    """
    _check_word(name, "branch")
    if "/" in name and not tracking:
        raise InvalidArgument(
            f"branch name {name!r} has a slash, which marks branches of a remote; leave it out"
        )
    return name


def check_set(name: str, prefix: str = "") -> None:
    """Raise InvalidArgument when a set cannot be called so; a prefix may have slashes."""
    _check_word(name, "volume set")
    if "/" in name:
        raise InvalidArgument(f"volume set name {name!r} has a slash; put it into the prefix")
    if prefix:
        _check_word(prefix, "prefix")
        if prefix.startswith("/") or prefix.endswith("/") or "//" in prefix:
            raise InvalidArgument(f"prefix {prefix!r} is not a path such as team/databases")


def check_volume(name: str) -> str:
    """Return `name`, or raise InvalidArgument when a volume cannot be called so."""
    _check_word(name, "volume")
    if "/" in name:
        raise InvalidArgument(f"volume name {name!r} has a slash; leave it out")
    return name


def check_attributes(attributes: Attributes) -> dict[str, str]:
    """Return a copy of `attributes`, or raise InvalidArgument saying which cannot be kept."""
    if len(attributes) > MAX_ATTRIBUTES:
        raise InvalidArgument(f"{len(attributes)} attributes; at most {MAX_ATTRIBUTES} are allowed")
    for text in (*attributes, *attributes.values()):
        _utf8(text, "an attribute")
    return check_labels(attributes)


def check_description(text: str) -> str:
    """Return `text`, or raise InvalidArgument when it is too long or no text."""
    if (size := len(_utf8(text, "the description"))) > MAX_DESCRIPTION_BYTES:
        raise InvalidArgument(
            f"the description is {size} bytes long; at most {MAX_DESCRIPTION_BYTES} are allowed"
        )
    return text


def check_person(name: str) -> str:
    """Return `name`, or raise InvalidArgument when no creator or owner can be called so."""
    if (size := len(_utf8(name, "the name of a person"))) > MAX_NAME_BYTES:
        raise InvalidArgument(
            f"the name of a person is {size} bytes long; at most {MAX_NAME_BYTES} are allowed"
        )
    return name


def check_mount_path(path: str) -> str:
    """Return `path`, or raise InvalidArgument when it is not absolute and plain."""
    parts = path.split("/")
    if not path.startswith("/") or path == "/" or "\0" in path or {"", ".", ".."} & set(parts[1:]):
        raise InvalidArgument(f"mount path {path!r} is not a plain absolute path; write it so")
    _utf8(path, "the mount path")
    return path


def _check_word(name: str, what: str) -> None:
    check_name(name, f"{what} name")
    if len(_utf8(name, f"{what} name")) > MAX_NAME_BYTES:
        raise InvalidArgument(f"{what} name {name[:64]!r}… is over {MAX_NAME_BYTES} bytes long")
    if found := _FORBIDDEN.search(name):
        raise InvalidArgument(f"{what} name {name!r} has {found.group()!r} in it; leave it out")
    if name == _HEAD or is_id(name) or is_short(name) or name.startswith("-"):
        raise InvalidArgument(
            f"{what} name {name!r} would be taken for something else; use another"
        )


def _utf8(text: str, what: str) -> bytes:
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {text[:64]!r} is not valid utf-8; write it anew") from None
