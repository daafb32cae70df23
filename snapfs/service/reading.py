"""What the readers' socket answers: calls that change nothing and show no file's content.

A group may be let look (`service.group`) by a socket of its own; the kernel checks who connects, by
the file's mode. It has its own server, so that readers cannot keep root's calls waiting.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import grpc

from snapfs.service.status import CODE_KEY

READS = frozenset(
    {
        "/grpc.health.v1.Health/Check",
        "/snapfs.v1.Anchors/Get",
        "/snapfs.v1.Anchors/History",
        "/snapfs.v1.Anchors/List",
        "/snapfs.v1.Images/Get",
        "/snapfs.v1.Images/List",
        "/snapfs.v1.Metadata/ListLeases",
        "/snapfs.v1.Metadata/ListNamespaces",
        "/snapfs.v1.Snapfs/Info",
        "/snapfs.v1.Snapfs/List",
        "/snapfs.v1.Snapfs/Quota",
        "/snapfs.v1.Snapfs/Status",
        "/snapfs.v1.Snapfs/Usage",
    }
)
"""Full names of methods. Who adds one asks whether a stranger in the group may know the answer."""


class OnlyReads(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in stubs only
    """Answers PERMISSION_DENIED to every method but those of READS, also to unknown ones."""

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Return the method's handler, or one that refuses before a request is read."""
        method = handler_call_details.method
        if method in READS:
            return continuation(handler_call_details)
        return _REFUSES


def _refuse(_requests: Any, context: grpc.ServicerContext) -> Any:
    context.set_trailing_metadata(((CODE_KEY, "PERMISSION_DENIED"),))
    context.abort(
        grpc.StatusCode.PERMISSION_DENIED,
        "this socket is for looking only; ask on the service's own socket, as root",
    )


_REFUSES = grpc.stream_stream_rpc_method_handler(_refuse)
