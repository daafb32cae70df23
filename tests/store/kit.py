"""Tables and helpers that the store's tests share."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import msgspec

from snapfs.model import InvalidArgument
from snapfs.store import Index, Reference, Table

REPOSITORY = Path(__file__).parents[2]

PARENT = 1
FRIEND = 2


class Doc(msgspec.Struct, frozen=True):
    text: str = ""
    parent: int = 0
    friend: int = 0
    tags: tuple[str, ...] = ()
    slug: str = ""


class Note(msgspec.Struct, frozen=True):
    about: int


def _no_evil(doc: Doc) -> None:
    if doc.text == "evil":
        raise InvalidArgument("a doc may not be evil; write something else")


DOCS = Table(
    1,
    "doc",
    Doc,
    indexes=(
        Index("tag", lambda doc: [tag.encode() for tag in doc.tags]),
        Index("slug", lambda doc: [doc.slug.encode()] if doc.slug else [], unique=True),
    ),
    references=(
        Reference(PARENT, lambda doc: [doc.parent] if doc.parent else []),
        Reference(FRIEND, lambda doc: [doc.friend] if doc.friend else [], strong=False),
    ),
    validate=_no_evil,
)
NOTES = Table(2, "note", Note, references=(Reference(PARENT, lambda note: [note.about]),))
TABLES: tuple[Table[Any], ...] = (DOCS, NOTES)
SCOPE = "tests"


def child(*arguments: str, **options: Any) -> subprocess.Popen[str]:
    """Start tests/store/child.py with `arguments`; its standard input and output are pipes."""
    return subprocess.Popen(
        [sys.executable, "-m", "tests.store.child", *arguments],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )
