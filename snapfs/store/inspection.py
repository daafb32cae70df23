"""Looking at a store's directory before LMDB does, without changing or creating anything.

LMDB maps the data file and follows the page numbers in it, so a damaged file can end the process
(SIGBUS, SIGSEGV). Everything is therefore read and verified here first: meta pages, size, then
every page of every tree. What passes can be given to LMDB.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import lmdb
import lmdb.verify

from snapfs.model import DataLoss, FailedPrecondition
from snapfs.store import faults, lock, readertable, schema
from snapfs.store.environment import Txn
from snapfs.store.schema import Sub

DATA_FILE = "data.mdb"
NEW_PREFIX = "new."
"""Of a directory in which a store is being made; a leftover is of a process that died at it."""

_OURS_BEFORE_DATA = frozenset({lock.FILE_NAME, readertable.APART, "lost+found"})
_MAGIC = 0xBEEFC0DE
_DATA_VERSION = 1
_PAGE_HEADER_BYTES = 16
_P_META = 0x08
_META = struct.Struct("=IIQQ48s48sQQ")
"""Magic, version, address, map size, two trees, last page, transaction (mdb.c, MDB_meta)."""
_PAGE_SIZES = (4096, 8192, 16384, 32768)
_META_ATTEMPTS = 20
_MAX_MAP_BYTES = 1 << 46
"""More than this process could map."""
_STABLE_ATTEMPTS = 5
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Meta:
    """What the newer of the two meta pages says."""

    map_size_bytes: int
    page_bytes: int
    last_page: int
    transaction: int


@dataclass(frozen=True, slots=True)
class Inspected:
    """A store whose data file is sound."""

    map_size_bytes: int
    format: int


def holds_store(path: Path) -> bool:
    """Say whether `path` holds a data file; False when a store can be made there.

    Raises FailedPrecondition for a directory of someone else's, DataLoss for a store whose data
    file is gone.
    """
    with faults.translated(path):
        try:
            names = {entry.name for entry in os.scandir(path)}
        except FileNotFoundError:
            return False
        except NotADirectoryError:
            raise FailedPrecondition(f"{path} is not a directory; name another one") from None
    if DATA_FILE in names:
        return True
    if readertable.FILE_NAME in names:
        raise DataLoss(
            f"{path}/{DATA_FILE} is missing though a store was here; restore it from a copy, "
            "or empty the directory to begin anew"
        )
    foreign = sorted(n for n in names - _OURS_BEFORE_DATA if not n.startswith(NEW_PREFIX))
    if foreign:
        raise FailedPrecondition(
            f"directory {path} holds other files ({', '.join(foreign[:_SHOWN])}) and no store; "
            "name an empty or a new directory"
        )
    return False


def read_meta(path: Path) -> Meta:
    """Read and verify both meta pages of the store in `path`; raise DataLoss for a bad one.

    They are of successive transactions, always: were the newer one's number damaged, LMDB would
    take the other and the last update be lost in silence. A writer may commit between the reading
    of the one and of the other, hence more than one attempt. The file's size is not judged here:
    LMDB may count free pages behind its end.
    """
    data = path / DATA_FILE
    for _ in range(_META_ATTEMPTS):
        with faults.translated(path), data.open("rb", buffering=0) as file:
            head = file.read(2 * max(_PAGE_SIZES))
        first = _parse_meta(data, head, 0)
        second = _parse_meta(data, head[first.page_bytes :], 1)
        if first.page_bytes != second.page_bytes:
            raise _damaged(data, "its meta pages disagree on the size of a page")
        older, newer = sorted((first, second), key=lambda meta: meta.transaction)
        if newer.transaction - older.transaction == (1 if newer.transaction else 0):
            return newer
    raise _damaged(data, "its meta pages are not of successive transactions")


def structure_problems(path: Path) -> list[str]:
    """Verify every page of the data file and return what is wrong with it.

    Takes about 10 ms a megabyte. Works beside a writer: a result during which the writer
    committed is thrown away and made again, a few times at most, then nothing is said.
    """
    for _ in range(_STABLE_ATTEMPTS):
        before = read_meta(path).transaction
        with faults.translated(path), (path / DATA_FILE).open("rb") as file:
            problems = _verify(file)
        if not problems or read_meta(path).transaction == before:
            return problems
    return []


def _verify(file: BinaryIO) -> list[str]:
    """Verify every page, and that all in use are in the file.

    Upstream's public `verify` looks at the first page only of a value that has several, so a cut
    through such a value passes; its map of pages in use, which we need for that, is not public.
    """
    size = os.fstat(file.fileno()).st_size
    verifier = lmdb.verify._Verifier(file, size)  # type: ignore[no-untyped-call]  # untyped upstream
    try:
        problems = cast("list[str]", verifier.verify())  # type: ignore[no-untyped-call]
    except lmdb.verify.VerifyError as error:
        return [str(error)]
    missing = verifier.live.find(1, size // verifier.psize)
    if missing >= 0:
        problems.append(f"page {missing} is in use and beyond the end of the file")
    return problems


def inspect(path: Path) -> Inspected:
    """Verify the store in `path`: pages, then whose it is and of what format.

    Raises DataLoss for a damaged file, FailedPrecondition for one that is not ours or too new.
    """
    meta = read_meta(path)
    problems = structure_problems(path)
    if problems:
        more = f" and {len(problems) - _SHOWN} more" if len(problems) > _SHOWN else ""
        raise _damaged(path / DATA_FILE, "; ".join(problems[:_SHOWN]) + more)
    return Inspected(meta.map_size_bytes, check_format(path, _read_format(path)))


def check_format(path: Path, version: int | None) -> int:
    """Return the format's version, or raise FailedPrecondition when we cannot read it."""
    if version is None:
        raise FailedPrecondition(_not_ours(path))
    if version > schema.FORMAT:
        raise FailedPrecondition(
            f"{path}/{DATA_FILE} is of format {version} and this snapfs knows up to "
            f"{schema.FORMAT}; use the snapfs that wrote it or a newer one"
        )
    return version


def _read_format(path: Path) -> int | None:
    """Read the format, and see that what an open needs is there; None when it is not ours.

    Done without LMDB's lock file, so that a refusal leaves none; right because nobody writes now.
    """
    with faults.translated(path):
        env = lmdb.open(
            str(path), readonly=True, lock=False, create=False, max_dbs=len(Sub), map_size=0
        )
        try:
            with env.begin() as txn:
                try:
                    sys = env.open_db(Sub.SYS.value, txn=txn, create=False)
                except (lmdb.NotFoundError, lmdb.IncompatibleError):
                    return None
                version = schema.parse_format(_sealed(txn, sys, schema.FORMAT_KEY))
                if version == schema.FORMAT:
                    _check_parts(path, env, txn, sys)
                return version
        finally:
            env.close()


def _check_parts(path: Path, env: lmdb.Environment, txn: Txn, sys: lmdb._Database) -> None:
    """Raise DataLoss when the store lacks something without which it cannot be opened."""
    for key in (schema.REVISION_KEY, schema.TABLES_KEY):
        if _sealed(txn, sys, key) is None:
            raise _damaged(path / DATA_FILE, f"it lacks {key.decode()}")
    for sub in Sub:
        try:
            env.open_db(sub.value, txn=txn, create=False)
        except (lmdb.NotFoundError, lmdb.IncompatibleError):
            raise _damaged(path / DATA_FILE, f"it lacks its {sub.name.lower()}") from None


def _sealed(txn: Txn, sys: lmdb._Database, key: bytes) -> bytes | None:
    value = txn.get(key, db=sys)
    return None if value is None else schema.unseal(Sub.SYS, key, value)


def _parse_meta(data: Path, raw: bytes, number: int) -> Meta:
    if len(raw) < _PAGE_HEADER_BYTES + _META.size:
        raise _damaged(data, f"it is cut short in meta page {number}")
    page, _, flags = struct.unpack_from("=QHH", raw)
    magic, version, _, map_size, free, _, last, txn = _META.unpack_from(raw, _PAGE_HEADER_BYTES)
    if magic != _MAGIC or page != number or not flags & _P_META:
        raise _damaged(data, f"page {number} is not a meta page of LMDB")
    if version != _DATA_VERSION:
        raise _damaged(data, f"it is of LMDB's data version {version}, not {_DATA_VERSION}")
    page_bytes = struct.unpack_from("=I", free)[0]
    if page_bytes not in _PAGE_SIZES:
        raise _damaged(data, f"meta page {number} says a page has {page_bytes} bytes")
    if map_size > _MAX_MAP_BYTES:
        raise _damaged(data, f"meta page {number} says the map has {map_size} bytes")
    return Meta(map_size, page_bytes, last, txn)


def _damaged(data: Path, what: str) -> DataLoss:
    return DataLoss(
        f"{data} is damaged or not a snapfs store ({what}); it was left as it is: "
        "restore it from a copy, or move it away to begin anew"
    )


def _not_ours(path: Path) -> str:
    return (
        f"{path}/{DATA_FILE} is an LMDB file of another program; it was left as it is: "
        "name another directory"
    )
