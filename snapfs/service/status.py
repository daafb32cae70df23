"""The one table between snapfs errors and gRPC status, and the decorator that applies it.

Several codes share a status (containerd knows fewer refusals than we do), so the code itself
travels beside the status, as trailing metadata; our own client rebuilds the same error from it.
"""

from __future__ import annotations

import errno
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NoReturn, Protocol, TypeVar, cast

import grpc
import structlog

from snapfs.model import Code, Conflict, DeadlineExceeded, SnapfsError
from snapfs.snapshots.faults import refusal

_log = structlog.get_logger(__name__)

CODE_KEY = "snapfs-code"
REVISIONS_KEY = "snapfs-revisions"

MAX_MESSAGE_BYTES = 1500
"""Longest message sent: it is a header, percent-encoded, and clients take 8 KiB of headers."""

STATUS: Mapping[Code, grpc.StatusCode] = {
    Code.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    Code.ALREADY_EXISTS: grpc.StatusCode.ALREADY_EXISTS,
    Code.INVALID_ARGUMENT: grpc.StatusCode.INVALID_ARGUMENT,
    Code.FAILED_PRECONDITION: grpc.StatusCode.FAILED_PRECONDITION,
    Code.CONFLICT: grpc.StatusCode.FAILED_PRECONDITION,
    Code.COMPACTED: grpc.StatusCode.OUT_OF_RANGE,
    Code.TOO_LARGE: grpc.StatusCode.INVALID_ARGUMENT,
    Code.RESOURCE_EXHAUSTED: grpc.StatusCode.RESOURCE_EXHAUSTED,
    Code.UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    Code.DEADLINE_EXCEEDED: grpc.StatusCode.DEADLINE_EXCEEDED,
    Code.PERMISSION_DENIED: grpc.StatusCode.PERMISSION_DENIED,
    Code.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    Code.DATA_LOSS: grpc.StatusCode.DATA_LOSS,
    Code.INTERNAL: grpc.StatusCode.INTERNAL,
}

# Of codes that share a status, the first of STATUS speaks for it where only the status is known.
_CODE_OF_STATUS: Mapping[grpc.StatusCode, Code] = {
    status: code for code, status in reversed(tuple(STATUS.items()))
}

_ERROR_OF_CODE: Mapping[Code, type[SnapfsError]] = {
    error.code: error for error in SnapfsError.__subclasses__()
}

# Not ENOENT and the like: those speak of our files, not of the snapshot that was asked for.
_CODE_OF_ERRNO: Mapping[int, Code] = {
    errno.ENOSPC: Code.RESOURCE_EXHAUSTED,
    errno.EDQUOT: Code.RESOURCE_EXHAUSTED,
    errno.EMFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENFILE: Code.RESOURCE_EXHAUSTED,
    errno.ENOMEM: Code.RESOURCE_EXHAUSTED,
    errno.EPERM: Code.PERMISSION_DENIED,
    errno.EACCES: Code.PERMISSION_DENIED,
    errno.ETIMEDOUT: Code.DEADLINE_EXCEEDED,
    errno.EROFS: Code.UNAVAILABLE,
}


class Context(Protocol):
    """What the decorator needs of a grpc.ServicerContext."""

    def is_active(self) -> bool: ...
    def abort(self, code: grpc.StatusCode, details: str) -> NoReturn: ...
    def set_trailing_metadata(self, metadata: tuple[tuple[str, str], ...]) -> None: ...


_Method = TypeVar("_Method", bound=Callable[..., Any])


def answers(method: _Method) -> _Method:
    """Make every error of a servicer's method a gRPC status; log what was not foreseen.

    Works for unary methods and for generators (server streams).
    """
    if inspect.isgeneratorfunction(method):
        return cast("_Method", _stream(method))
    return cast("_Method", _unary(method))


def _unary(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def answer(self: Any, request: Any, context: Context) -> Any:
        try:
            _check_wanted(context)
            return method(self, request, context)
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
            _refuse(context, error, method.__name__)

    return answer


def _stream(method: Callable[..., Any]) -> Callable[..., Any]:
    @functools.wraps(method)
    def answer(self: Any, request: Any, context: Context) -> Iterator[Any]:
        try:
            _check_wanted(context)
            yield from method(self, request, context)
        except Exception as error:  # noqa: BLE001 - the edge: every error becomes a status
            _refuse(context, error, method.__name__)

    return answer


def _check_wanted(context: Context) -> None:
    """Do nothing for a caller who gave up while the call waited for its turn."""
    if not context.is_active():
        raise DeadlineExceeded("the caller gave up before the call had its turn; nothing was done")


def _refuse(context: Context, error: Exception, method: str) -> NoReturn:
    code = code_of(error)
    if not isinstance(error, SnapfsError) or code in (Code.INTERNAL, Code.DATA_LOSS):
        _log.error("call.failed", method=method, code=code.name, exc_info=error)
    metadata = [(CODE_KEY, code.name)]
    if isinstance(error, Conflict):
        metadata.append((REVISIONS_KEY, f"{error.expected},{error.actual}"))
    context.set_trailing_metadata(tuple(metadata))
    context.abort(STATUS[code], message_of(error))


def code_of(error: Exception) -> Code:
    """Return the code for an error; INTERNAL for one that nobody foresaw."""
    match error:
        case SnapfsError():
            return error.code
        case OSError() if error.errno is not None:
            return _CODE_OF_ERRNO.get(error.errno, Code.INTERNAL)
        case TimeoutError():
            return Code.DEADLINE_EXCEEDED
        case _:
            return Code.INTERNAL


def message_of(error: Exception) -> str:
    """Return what a client may read of an error, cut to MAX_MESSAGE_BYTES of clean UTF-8."""
    match error:
        case SnapfsError():
            text = str(error)
        case OSError() if code_of(error) is Code.RESOURCE_EXHAUSTED:
            text = str(refusal(error, "go on"))
        case OSError():
            text = f"the system refused: {error}; see the daemon's log"
        case _:
            text = f"unexpected {type(error).__name__}; see the daemon's log"
    # File names that are not UTF-8 arrive as surrogates, which no header can carry.
    raw = text.encode("utf-8", "backslashreplace")
    if len(raw) <= MAX_MESSAGE_BYTES:
        return raw.decode()
    return raw[: MAX_MESSAGE_BYTES - 3].decode("utf-8", "ignore") + "..."


def error_of(call: grpc.RpcError) -> SnapfsError:
    """Return the error that a failed call stands for, with its message; the client's side."""
    failed = cast("grpc.Call", call)  # every RpcError that a call raises is the call itself
    metadata = _metadata(failed)
    message = failed.details() or "no reason given"
    try:
        code = Code[metadata[CODE_KEY]]
    except KeyError:
        code = _CODE_OF_STATUS.get(failed.code(), Code.INTERNAL)
    if code is Code.CONFLICT:
        expected, _, actual = metadata.get(REVISIONS_KEY, "0,0").partition(",")
        return Conflict(message, expected=int(expected), actual=int(actual))
    return _ERROR_OF_CODE[code](message)


def was_answered(call: grpc.RpcError) -> bool:
    """Return whether a failed call reached our service, rather than failed on the way."""
    return CODE_KEY in _metadata(cast("grpc.Call", call))


def _metadata(call: grpc.Call) -> dict[str, str]:
    return {str(item[0]): str(item[1]) for item in call.trailing_metadata() or ()}
