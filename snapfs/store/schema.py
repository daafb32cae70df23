"""The page about what is on disk: every sub-database, its key, value, invariants and writer.

All numbers in keys are fixed-width big-endian, so byte order is number order. The codecs here
are pure. `checksummed` below means: CRC-32 of key and payload (u32), then the payload.

Sub-databases. Unless said otherwise only the core (keeping.py) writes, and always in the one
transaction that also holds the row's change; callers never touch them.

    sys     what the store knows of itself; every value is checksummed
            key                     value
            "format"                "snapfs" and the format version, u32
            "uuid"                  16 random bytes, made once
            "created"               u64 nanoseconds, made once
            "revision"              u64, last revision given
            "compacted"             u64, last revision whose events are gone
            "oid", "intent"         u64, last number given
            "scopes"                u64, number of scopes, which is the last one's number
            "tables"                msgpack: the tables' shapes (tables.describe)
            "scope" 00 <scope>      u32, number of the scope, from 1, never reused
            "seq" 00 <scope>        u64, last sequence number given in the scope
            Counters only grow. Written by create.py, migrations.py and the core.

    row     key    oid u64
            value  checksummed: table u16, msgpack of tables.Row (an array)
            The object. oid is from 1 and never reused; key, row.oid and the table agree with it;
            create_rev <= spec_rev <= mod_rev <= "revision".

    name    key    table u16, scope u32, name (see `fit`; utf-8, folded if the table folds case)
            value  oid u64
            Exactly one for each row, and each leads to a row of that table, scope and name.

    idx     key    table u16, index u8, scope u32, value (see `fit`), 00, oid u64
            value  empty
            Exactly what the table's index functions say of the row's body. A unique index has at
            most one oid for a value. Lookups compare the row's own value: a long one is cut here.

    edge    key    direction u8, oid u64, kind u16, oid u64
            value  01 strong, 00 weak
            Direction 00 is from the referring to the referred row, 01 the same edge seen from the
            referred row. Exactly what the table's reference functions say of the row's body. The
            target of a strong edge exists: a row with strong referrers is not deleted.

    log     key    revision u64, number in the revision u32
            value  checksummed: msgpack of events.Stored
            What each revision did, in order; the last event of a revision is its commit. Revisions
            are without gap from "compacted" + 1 to "revision". Trimmed by retention.py.

    exp     key    time u64 nanoseconds, oid u64
            value  empty
            One for each row whose expires_ns is set.

    intent  key    number u64
            value  checksummed: payload as given
            Side effects promised but not known to be done. Numbers are never reused.

    hist    key    reserved; empty in this format (names with a history are tables: anchors)
"""

from __future__ import annotations

import enum
import hashlib
import struct
import zlib

from snapfs.model import DataLoss, InvalidArgument

MAGIC = b"snapfs"
FORMAT = 1
"""Version of the layout described above; a store of a newer one is refused."""

NAME_BYTES = 400
"""Longest part of a name or an index value that is in a key as it is."""

MAX_SCOPE_BYTES = 255
MAX_TABLE = 0xFFFF
MAX_INDEXES = 0xFF
MAX_U64 = (1 << 64) - 1

FORMAT_KEY = b"format"
UUID_KEY = b"uuid"
CREATED_KEY = b"created"
REVISION_KEY = b"revision"
COMPACTED_KEY = b"compacted"
OID_KEY = b"oid"
INTENT_KEY = b"intent"
SCOPES_KEY = b"scopes"
TABLES_KEY = b"tables"
SCOPE_PREFIX = b"scope\0"
SEQUENCE_PREFIX = b"seq\0"

U16 = struct.Struct(">H")
U32 = struct.Struct(">I")
U64 = struct.Struct(">Q")
_NAME_PREFIX = struct.Struct(">HI")
NAME_AT = _NAME_PREFIX.size
"""Where the fitted name begins in a key of the name sub-database."""
_INDEX_PREFIX = struct.Struct(">HBI")
_EDGE = struct.Struct(">BQHQ")
_EDGE_KIND = struct.Struct(">BQH")
_EDGE_OID = struct.Struct(">BQ")
_LOG = struct.Struct(">QI")
_EXPIRY = struct.Struct(">QQ")

FORWARD = 0
REVERSE = 1
STRONG = b"\x01"
WEAK = b"\x00"


class Sub(enum.Enum):
    """The sub-databases, by their name in the environment."""

    SYS = b"sys"
    ROW = b"row"
    NAME = b"name"
    IDX = b"idx"
    EDGE = b"edge"
    LOG = b"log"
    EXP = b"exp"
    INTENT = b"intent"
    HIST = b"hist"


def seal(key: bytes, payload: bytes) -> bytes:
    """Return `payload` behind its checksum; the key is in the sum, so that values cannot swap."""
    return U32.pack(zlib.crc32(payload, zlib.crc32(key))) + payload


def unseal(sub: Sub, key: bytes, value: bytes) -> bytes:
    """Return the payload of a sealed value, or raise DataLoss naming where it lies."""
    payload = value[4:]
    if len(value) < 4 or U32.unpack_from(value)[0] != zlib.crc32(payload, zlib.crc32(key)):
        raise DataLoss(
            f"value of key {key.hex()} in {sub.name.lower()} does not match its checksum; "
            "run `snapfs fsck` and restore the store from a copy"
        )
    return payload


def unpack(layout: struct.Struct, raw: bytes) -> tuple[int, ...]:
    """Return the numbers in `raw`, or raise DataLoss when it has not their width."""
    if len(raw) != layout.size:
        raise DataLoss(
            f"{raw.hex()} is not {layout.size} bytes long as its place wants; run `snapfs fsck`"
        )
    return layout.unpack(raw)


def number(raw: bytes) -> int:
    """Return the u64 that `raw` is, or raise DataLoss."""
    return unpack(U64, raw)[0]


def format_payload(version: int) -> bytes:
    """Return the payload of "format"."""
    return MAGIC + U32.pack(version)


def parse_format(payload: bytes | None) -> int | None:
    """Return the version in the payload of "format", or None when it is not one of ours."""
    if payload is None or len(payload) != len(MAGIC) + 4 or not payload.startswith(MAGIC):
        return None
    return int(U32.unpack(payload[len(MAGIC) :])[0])


def utf8(text: str, what: str) -> bytes:
    """Return `text` in UTF-8, or raise InvalidArgument when it has no such form."""
    try:
        return text.encode()
    except UnicodeEncodeError:
        raise InvalidArgument(f"{what} {text[:64]!r} is not valid utf-8; rename it") from None


def fit(raw: bytes) -> bytes:
    """Return `raw` as it is in a key: itself up to 400 bytes, else its head and its SHA-256.

    A fitted value is 432 bytes long if and only if it was cut. Byte order holds, except among
    values over 400 bytes that share the first 400: those lie in order of their hash.
    """
    if len(raw) <= NAME_BYTES:
        return raw
    return raw[:NAME_BYTES] + hashlib.sha256(raw).digest()


def is_cut(fitted: bytes) -> bool:
    """Say whether a fitted value stands for a longer one."""
    return len(fitted) > NAME_BYTES


def name_prefix(table: int, scope: int) -> bytes:
    return _NAME_PREFIX.pack(table, scope)


def name_key(table: int, scope: int, name: bytes) -> bytes:
    return _NAME_PREFIX.pack(table, scope) + fit(name)


def split_name_key(key: bytes) -> tuple[int, int, bytes]:
    """Return table, scope number and the fitted name."""
    table, scope = unpack(_NAME_PREFIX, key[:NAME_AT])
    return table, scope, key[NAME_AT:]


def index_prefix(table: int, index: int, scope: int, value: bytes) -> bytes:
    """Return what the keys of all rows with this value begin with; an oid makes one whole."""
    return _INDEX_PREFIX.pack(table, index, scope) + fit(value) + b"\0"


def index_values_prefix(table: int, index: int, scope: int, prefix: bytes) -> bytes:
    """Return what the keys of all rows begin with whose value begins with `prefix`."""
    return _INDEX_PREFIX.pack(table, index, scope) + prefix[:NAME_BYTES]


def index_key(table: int, index: int, scope: int, value: bytes, oid: int) -> bytes:
    return index_prefix(table, index, scope, value) + U64.pack(oid)


def split_index_key(key: bytes) -> tuple[int, int, int, bytes, int]:
    """Return table, index, scope number, fitted value and oid."""
    table, index, scope = unpack(_INDEX_PREFIX, key[: _INDEX_PREFIX.size])
    return table, index, scope, key[_INDEX_PREFIX.size : -9], number(key[-8:])


def edge_key(direction: int, oid: int, kind: int, other: int) -> bytes:
    return _EDGE.pack(direction, oid, kind, other)


def split_edge_key(key: bytes) -> tuple[int, int, int, int]:
    """Return direction, near oid, kind and far oid."""
    direction, oid, kind, other = unpack(_EDGE, key)
    return direction, oid, kind, other


def edge_prefix(direction: int, oid: int, kind: int | None = None) -> bytes:
    if kind is None:
        return _EDGE_OID.pack(direction, oid)
    return _EDGE_KIND.pack(direction, oid, kind)


def log_key(revision: int, number: int) -> bytes:
    return _LOG.pack(revision, number)


def split_log_key(key: bytes) -> tuple[int, int]:
    revision, number = unpack(_LOG, key)
    return revision, number


def expiry_key(time_ns: int, oid: int) -> bytes:
    return _EXPIRY.pack(time_ns, oid)


def split_expiry_key(key: bytes) -> tuple[int, int]:
    time_ns, oid = unpack(_EXPIRY, key)
    return time_ns, oid


def scope_key(scope: str) -> bytes:
    return SCOPE_PREFIX + _scope_bytes(scope)


def sequence_key(scope: str) -> bytes:
    return SEQUENCE_PREFIX + _scope_bytes(scope)


def _scope_bytes(scope: str) -> bytes:
    raw = utf8(scope, "scope")
    if len(raw) > MAX_SCOPE_BYTES:
        raise InvalidArgument(
            f"scope {scope[:64]!r} is {len(raw)} bytes long; at most {MAX_SCOPE_BYTES} are allowed"
        )
    return raw
