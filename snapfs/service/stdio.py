"""Standard input and output joined to a service's socket: what ssh runs at the other end."""

from __future__ import annotations

import os
import socket
import threading
from contextlib import suppress
from pathlib import Path

from snapfs.model import Unavailable

_BYTES = 256 << 10


def join(address: Path, reader: int, writer: int) -> None:
    """Carry bytes between two descriptors and a socket until either side ends.

    Raises Unavailable when nothing answers on the socket.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as service:
        try:
            service.connect(str(address))
        except OSError as error:
            raise Unavailable(
                f"nothing answers on socket {address} ({(error.strerror or str(error)).lower()}); "
                "start the service there"
            ) from error
        threading.Thread(target=_inward, args=(reader, service), daemon=True).start()
        while data := service.recv(_BYTES):
            _write(writer, data)


def _inward(reader: int, service: socket.socket) -> None:
    with suppress(OSError):
        while data := os.read(reader, _BYTES):
            service.sendall(data)
    with suppress(OSError):
        service.shutdown(socket.SHUT_RDWR)


def _write(writer: int, data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(writer, view) :]
