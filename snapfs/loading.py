"""Loading the code of a process that others wait for, in less time than plain imports take.

structlog imports rich where it is installed, to colour tracebacks; ours are plain. And what is
loaded lives as long as the process: looking for garbage among it, meanwhile or later, finds none.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from importlib import import_module


@contextmanager
def quickly() -> Iterator[None]:
    """Import in the block what the process needs; for its only thread, at its start."""
    gc.disable()
    try:
        with _hidden("rich"):
            import structlog  # noqa: F401  # now, since later it would find rich
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
