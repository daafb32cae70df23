"""Dataclasses made while a process loads are as others: their methods come when they are called."""

from __future__ import annotations

import dataclasses
import subprocess
import sys
import textwrap
from types import FunctionType

import pytest

from snapfs import loading


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Plain:
    """What the others are compared with."""

    number: int
    words: tuple[str, ...] = ()
    names: list[str] = dataclasses.field(default_factory=list, compare=False)


with loading._methods_when_called():

    @dataclasses.dataclass(frozen=True, slots=True, order=True)
    class Late:
        """As `Plain`."""

        number: int
        words: tuple[str, ...] = ()
        names: list[str] = dataclasses.field(default_factory=list, compare=False)

    @dataclasses.dataclass(frozen=True, slots=True)
    class Inheriting(Late):
        self: int = 3


def test_they_behave_as_others() -> None:
    for kind in (Late, Plain):
        one, same, more = kind(1, names=["a"]), kind(number=1), kind(2, ("b",))
        assert one == same != more
        assert hash(one) == hash(same)
        assert sorted([more, one]) == [one, more]
        assert repr(more) == f"{kind.__name__}(number=2, words=('b',), names=[])"
        assert dataclasses.replace(more, number=3) == kind(3, ("b",))
        assert dataclasses.asdict(more) == {"number": 2, "words": ("b",), "names": []}
        assert same.names is not more.names


def test_their_errors_are_those_of_others() -> None:
    for kind in (Late, Plain):
        with pytest.raises(
            dataclasses.FrozenInstanceError, match="cannot assign to field 'number'"
        ):
            kind(1).number = 2  # type: ignore[misc]
        with pytest.raises(dataclasses.FrozenInstanceError, match="cannot delete field 'number'"):
            del kind(1).number
        with pytest.raises(TypeError, match=rf"{kind.__name__}.__init__\(\) missing 1 required"):
            kind()  # type: ignore[call-arg]


def test_those_that_inherit_have_methods_of_their_own() -> None:
    assert repr(Inheriting(1, self=4)) == "Inheriting(number=1, words=(), names=[], self=4)"
    assert Inheriting(1) == Inheriting(1, (), [], 3) != Inheriting(1, self=4)
    assert Late(1) == Late(1)


def test_a_method_that_was_called_is_called_directly() -> None:
    Late(1)
    Plain(1)
    ours, theirs = Late.__init__, Plain.__init__
    assert isinstance(ours, FunctionType)
    assert isinstance(theirs, FunctionType)
    assert ours.__code__.co_varnames == theirs.__code__.co_varnames


def test_a_process_that_has_loaded_makes_dataclasses_as_ever() -> None:
    program = """
        import dataclasses
        before = dataclasses.make_dataclass("Before", ["x"]).__init__.__code__.co_varnames
        from snapfs.loading import quickly
        with quickly():
            from snapfs.fuse import worker
        after = dataclasses.make_dataclass("After", ["x"]).__init__.__code__.co_varnames
        assert before == after, after
        """
    subprocess.run([sys.executable, "-c", textwrap.dedent(program)], check=True, timeout=60)
