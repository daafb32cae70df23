"""An interceptor that answers a request which does not parse as what it is: a bad argument.

gRPC itself would say INTERNAL, and containerd would take that for a fault of ours. (Clients that
do not check their strings, containerd 1.6 among them, can send keys that are not UTF-8.)
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import grpc


class RefuseMalformed(grpc.ServerInterceptor):  # type: ignore[type-arg]  # generic in stubs only
    """Answers INVALID_ARGUMENT to a request that does not parse."""

    def __init__(self) -> None:
        self._cache: dict[str, Any] = {}

    def intercept_service(
        self, continuation: Callable[[Any], Any], handler_call_details: Any
    ) -> Any:
        """Return the method's handler, made safe; kept, since handlers never change."""
        method = handler_call_details.method
        if method not in self._cache:
            handler = continuation(handler_call_details)
            if handler is None:
                return None
            self._cache[method] = _made_safe(handler)
        return self._cache[method]


class _Malformed:
    """Stands for a request that did not parse."""

    def __init__(self, reason: str) -> None:
        self.reason = reason


def _made_safe(handler: Any) -> Any:
    if handler.request_streaming or handler.request_deserializer is None:
        return handler
    parse = handler.request_deserializer

    def parse_safely(raw: bytes) -> Any:
        try:
            return parse(raw)
        except Exception as error:  # noqa: BLE001 - protobuf's error type depends on its engine
            return _Malformed(str(error))

    if handler.response_streaming:
        return handler._replace(
            request_deserializer=parse_safely,
            unary_stream=_refusing(handler.unary_stream),
        )
    return handler._replace(
        request_deserializer=parse_safely,
        unary_unary=_refusing(handler.unary_unary),
    )


def _refusing(behaviour: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
    @functools.wraps(behaviour)
    def behave(request: Any, context: Any) -> Any:
        if isinstance(request, _Malformed):
            context.abort(
                grpc.StatusCode.INVALID_ARGUMENT,
                f"request does not parse: {request.reason}; keys, names and labels are UTF-8 text",
            )
        return behaviour(request, context)

    return behave
