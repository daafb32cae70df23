"""Owners that are shown otherwise than they are stored, where the kernel cannot translate them.

A tree that has `Owners` speaks of shown ones to its callers, in attributes and in ACLs, and keeps
stored ones on disk.
"""

from __future__ import annotations

import dataclasses
from typing import Protocol

from . import acl
from .types import SetAttr


class Owners(Protocol):
    """Translates between the layers and who looks at them. Setting may raise EOVERFLOW."""

    def shown_uid(self, uid: int, /) -> int: ...

    def shown_gid(self, gid: int, /) -> int: ...

    def stored_uid(self, uid: int, /) -> int: ...

    def stored_gid(self, gid: int, /) -> int: ...


def stored_change(owners: Owners | None, change: SetAttr) -> SetAttr:
    """Return a change of attributes as it is to be stored."""
    if owners is None or (change.uid is None and change.gid is None):
        return change
    return dataclasses.replace(
        change,
        uid=None if change.uid is None else owners.stored_uid(change.uid),
        gid=None if change.gid is None else owners.stored_gid(change.gid),
    )


def shown_value(owners: Owners | None, name: bytes, value: bytes) -> bytes:
    """Return an attribute's value as it is to be shown: ACLs name owners."""
    if owners is None or name not in acl.NAMES:
        return value
    return acl.translated(value, owners.shown_uid, owners.shown_gid)


def stored_value(owners: Owners | None, name: bytes, value: bytes) -> bytes:
    """Return an attribute's value as it is to be stored."""
    if owners is None or name not in acl.NAMES:
        return value
    return acl.translated(value, owners.stored_uid, owners.stored_gid)
