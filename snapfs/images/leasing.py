"""A lease for the time that something with many steps takes."""

from __future__ import annotations

import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

from snapfs.metadata import Metadata
from snapfs.metadata.references import EXPIRE

LIFE = timedelta(days=1)
"""After that the collector takes what a process that died had leased."""


@contextmanager
def leased(metadata: Metadata, namespace: str, what: str) -> Iterator[str]:
    """Give the id of a lease, which is removed after the block."""
    name = f"snapfs-{what}-{uuid.uuid4()}"
    until = (datetime.now(UTC) + LIFE).strftime("%Y-%m-%dT%H:%M:%SZ")
    metadata.leases.create(namespace, name, {EXPIRE: until})
    try:
        yield name
    finally:
        metadata.leases.delete(namespace, name)
