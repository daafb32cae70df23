"""Our own content as the place that layers of a differ come from and go to."""

from __future__ import annotations

import os
from contextlib import suppress
from typing import BinaryIO, cast

from snapfs.closing import Closing
from snapfs.metadata import Context, Metadata, Wish, Writer
from snapfs.model import AlreadyExists, Labels, NotFound


class OwnContents(Closing):
    """Blobs of a namespace of ours, held by the lease of the context if it has one."""

    def __init__(self, metadata: Metadata, context: Context) -> None:
        self._content = metadata.content
        self._context = context

    def writer(self, ref: str) -> OwnWriter:
        writer = self._content.writer(self._context, ref)
        writer.truncate(0)
        return OwnWriter(self, writer)

    def label(self, digest: str, key: str, value: str) -> None:
        """Set a label of content that is there, if it has none of this name."""
        namespace = self._context.namespace
        if key not in self._content.info(namespace, digest).labels:
            self._content.update(namespace, digest, {key: value}, [f"labels.{key}"])

    def open(self, digest: str, size_bytes: int) -> BinaryIO:
        """Open content, or raise NotFound."""
        fd = self._content.open(self._context.namespace, digest)
        return cast(BinaryIO, os.fdopen(fd, "rb"))

    def abort(self, ref: str) -> None:
        self._content.abort(self._context.namespace, ref)

    def close(self) -> None:
        """Nothing is held."""


class OwnWriter(Closing):
    """A blob on its way into our content."""

    def __init__(self, contents: OwnContents, writer: Writer) -> None:
        self._contents = contents
        self._writer = writer
        self._is_done = False
        self.write = writer.write

    def commit(self, size_bytes: int, digest: str, labels: Labels) -> None:
        """Make what was written content; AlreadyExists when it is there."""
        try:
            self._writer.commit(Wish(size_bytes, digest, labels))
        except AlreadyExists:  # the ingest is dropped
            self._is_done = True
            raise
        self._is_done = True

    def close(self) -> None:
        """Drop what is not committed."""
        self._writer.close()
        if not self._is_done:
            with suppress(NotFound):  # a commit that failed can have dropped it
                self._contents.abort(self._writer.place.ref)
