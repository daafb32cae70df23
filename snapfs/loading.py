"""Loading the code of a process that others wait for, in less time than plain imports take.

structlog imports rich where it is installed, to colour tracebacks; ours are plain. What is loaded
lives as long as the process: looking for garbage among it, meanwhile or later, finds none. And the
methods of dataclasses, which are compiled one by one, take a fifth of the time; most of them are
not called for long.
"""

from __future__ import annotations

import dataclasses
import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from importlib import import_module
from types import FunctionType
from typing import Any, cast


@contextmanager
def quickly() -> Iterator[None]:
    """Import in the block what the process needs; for its only thread, at its start."""
    gc.disable()
    try:
        with _hidden("rich"):
            import structlog  # noqa: F401  # now, since later it would find rich
        with _methods_when_called():
            yield
    finally:
        gc.freeze()
        gc.enable()


@contextmanager
def _hidden(name: str) -> Iterator[None]:
    """Let a module that is not loaded yet seem not to be installed."""
    if name in sys.modules:
        yield
        return
    sys.modules[name] = None  # type: ignore[assignment]  # documented to refuse the import
    try:
        yield
    finally:
        del sys.modules[name]


@contextmanager
def _methods_when_called() -> Iterator[None]:
    """Let dataclasses that are made in the block compile each method when it is called first.

    From Python 3.13 on they compile those of a class in one go, and in another way: left as it is.
    """
    compiled = getattr(dataclasses, "_create_fn", None)
    if compiled is None:
        yield
        return
    dataclasses._create_fn = partial(_when_called, compiled)  # type: ignore[attr-defined]
    try:
        yield
    finally:
        dataclasses._create_fn = compiled  # type: ignore[attr-defined]


def _when_called(
    compiled: Callable[..., FunctionType], name: str, *how: Any, **where: Any
) -> FunctionType:
    """Return what stands for a method until its first call, and gives its place to it then."""
    found: FunctionType | None = None

    def method(self: object, /, *args: Any, **kwargs: Any) -> Any:
        nonlocal found
        if found is None:
            found = compiled(name, *how, **where)
            found.__qualname__ = method.__qualname__
            for owner in type(self).__mro__:
                if owner.__dict__.get(name) is method:
                    setattr(owner, name, found)
        return found(self, *args, **kwargs)

    method.__name__ = name
    return cast("FunctionType", method)


def on_demand(package: str, names: Mapping[str, str]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package that re-exports `names`, which are given by module and
    imported when they are asked for first (PEP 562)."""
    modules = {name: module for module, those in names.items() for name in those.split()}

    def get(name: str) -> object:
        try:
            module = modules[name]
        except KeyError:
            raise AttributeError(f"module {package!r} has no attribute {name!r}") from None
        found: object = getattr(import_module(f"{package}.{module}"), name)
        setattr(sys.modules[package], name, found)
        return found

    return get
