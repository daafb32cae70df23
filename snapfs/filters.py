r"""containerd's filter grammar: which objects does a list of filters select?

    filters   := any of the strings; no string, or an empty one, selects everything
    filter    := selector ("," selector)*              all of them
    selector  := fieldpath [operator value]            without operator: is the field present?
    fieldpath := field ("." field)*
    field     := quoted | [A-Za-z0-9_]+
    operator  := "==" | "!=" | "~="                    ~= searches for a regular expression
    value     := quoted | printable characters up to a comma or a space
    quoted    := "..." ; after ~= also /.../ or |...|  with Go's escapes (\n \" \x41 \u00e9 ...)

White space may stand before a token, but not before a comma, a dot or the end. An absent field
counts as the empty string for `!=` and `~=`, so `!=x` selects objects without the field. An
expression that does not compile selects nothing, as in containerd; expressions are RE2's, as
Go's are, so that no expression takes more than linear time.

Pure: no I/O. Source: containerd `filters` (parser.go, scanner.go, quote.go).
"""

from __future__ import annotations

import enum
import functools
import re
import unicodedata
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias, assert_never

from snapfs.model import InvalidArgument

if TYPE_CHECKING:
    import re2

__all__ = ["Adaptor", "Filter", "Operator", "Selector", "parse"]

Adaptor: TypeAlias = Callable[[tuple[str, ...]], str | None]
"""Value of the field at a path, or None when the object has no such field."""


class Operator(enum.Enum):
    """How a selector compares a field with its value."""

    PRESENT = ""
    EQUAL = "=="
    NOT_EQUAL = "!="
    MATCHES = "~="


@dataclass(frozen=True, slots=True)
class Selector:
    """One comparison of a field."""

    path: tuple[str, ...]
    operator: Operator = Operator.PRESENT
    value: str = ""

    def matches(self, adaptor: Adaptor) -> bool:
        """Tell whether the object behind `adaptor` satisfies this comparison."""
        found = adaptor(self.path)
        match self.operator:
            case Operator.PRESENT:
                return found is not None
            case Operator.EQUAL:
                return found == self.value
            case Operator.NOT_EQUAL:
                return (found or "") != self.value
            case Operator.MATCHES:
                expression = _compiled(self.value)
                return expression is not None and expression.search(found or "") is not None
            case _:
                assert_never(self.operator)


@dataclass(frozen=True, slots=True)
class Filter:
    """A disjunction of conjunctions of selectors."""

    alternatives: tuple[tuple[Selector, ...], ...]

    def matches(self, adaptor: Adaptor) -> bool:
        """Tell whether any alternative holds for the object behind `adaptor`."""
        return any(
            all(selector.matches(adaptor) for selector in selectors)
            for selectors in self.alternatives
        )


def parse(filters: Sequence[str]) -> Filter:
    """Parse the filters of a request; raise InvalidArgument that shows where one is wrong."""
    if not filters:
        return Filter(((),))
    return Filter(tuple(_Parser(text).filter() if text else () for text in filters))


_SPACE = re.compile(r"[\t-\r \x85\xa0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000]")
_FIELD = re.compile(r"[A-Za-z0-9_]+")
_OPERATOR = re.compile(r"[=!~]+")
_SEPARATORS = ",."
_QUOTES = '"/|'
_UNUSABLE = re.compile("[\0\ufffd\ud800-\udfff]")
_ESCAPE = re.compile(
    r"\\([abfnrtv\\\"/|]|[0-7]{3}|x[\da-fA-F]{2}|u[\da-fA-F]{4}|U[\da-fA-F]{8})", re.ASCII
)
_SIMPLE_ESCAPES = {
    **dict(zip("abfnrtv", "\a\b\f\n\r\t\v", strict=True)),
    **{char: char for char in '\\"/|'},
}


class _Parser:
    """Recursive descent over one filter string."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._at = 0
        if unusable := _UNUSABLE.search(text):
            raise self._error("unexpected character", unusable.start())

    def filter(self) -> tuple[Selector, ...]:
        selectors = [self._selector()]
        while self._peek():
            if self._peek() != ",":
                raise self._error(f"unexpected input {self._peek()!r}")
            self._at += 1
            selectors.append(self._selector())
        return tuple(selectors)

    def _selector(self) -> Selector:
        path = [self._field()]
        while self._peek() == ".":
            self._at += 1
            path.append(self._field())
        if self._peek() in ("", ","):
            return Selector(tuple(path))
        operator = self._operator()
        return Selector(tuple(path), operator, self._value(operator))

    def _field(self) -> str:
        self._skip_space()
        if self._peek() and self._peek() in _QUOTES:
            return self._quoted('"')
        if found := _FIELD.match(self._text, self._at):
            self._at = found.end()
            return found.group()
        raise self._error("expected a field or a quoted field")

    def _operator(self) -> Operator:
        self._skip_space()
        found = _OPERATOR.match(self._text, self._at)
        if found is None or found.group() not in ("==", "!=", "~="):
            raise self._error('expected an operator ("==", "!=" or "~=")')
        self._at = found.end()
        return Operator(found.group())

    def _value(self, operator: Operator) -> str:
        self._skip_space()
        first = self._peek()
        if not first or first in _SEPARATORS or first in "=!~":
            raise self._error("expected a value or a quoted value")
        if first in _QUOTES:
            return self._quoted(_QUOTES if operator is Operator.MATCHES else '"')
        start = self._at
        self._at += 1
        while (char := self._peek()) and char != "," and _is_printable(char):
            self._at += 1
        return self._text[start : self._at]

    def _quoted(self, allowed: str) -> str:
        start, quote = self._at, self._text[self._at]
        if quote not in allowed:
            raise self._error("only double quotes may stand here")
        out = bytearray()
        self._at += 1
        while (char := self._peek()) != quote:
            if char in ("", "\n"):
                raise self._error("quoted part is not terminated", start)
            if char == "\\":
                out += self._escape(quote)
            else:
                out += char.encode()
                self._at += 1
        self._at += 1
        return out.decode("utf-8", "surrogateescape")

    def _escape(self, quote: str) -> bytes:
        found = _ESCAPE.match(self._text, self._at)
        if found is None or (found[1] in _QUOTES and found[1] != quote):
            raise self._error("illegal escape sequence")
        kind, digits = found[1][0], found[1][1:]
        if (simple := _SIMPLE_ESCAPES.get(found[1])) is not None:
            value = simple.encode()
        elif kind == "x":
            value = bytes([int(digits, 16)])
        elif kind in "uU":
            value = self._rune(int(digits, 16))
        else:
            value = self._octal(int(found[1], 8))
        self._at = found.end()
        return value

    def _octal(self, number: int) -> bytes:
        if number > 0xFF:
            raise self._error("octal escape is greater than 377")
        return bytes([number])

    def _rune(self, number: int) -> bytes:
        if number > 0x10FFFF:
            raise self._error("escape is not a character")
        is_surrogate = 0xD800 <= number <= 0xDFFF
        return ("\ufffd" if is_surrogate else chr(number)).encode()

    def _peek(self) -> str:
        return self._text[self._at : self._at + 1]

    def _skip_space(self) -> None:
        while _SPACE.match(self._text, self._at):
            self._at += 1

    def _error(self, why: str, at: int | None = None) -> InvalidArgument:
        at = self._at if at is None else at
        shown = f"{self._text[:at]} >|{self._text[at : at + 1]}|< {self._text[at + 1 :]}"
        shown = shown if at < len(self._text) else self._text
        return InvalidArgument(f"filter [{shown}]: {why}")


def quoted(text: str) -> str:
    """Return a field's part or a value as it is written in quotes."""
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'


def _is_printable(char: str) -> bool:
    """Say whether a character continues an unquoted value: letter, mark, number, sign."""
    return unicodedata.category(char)[0] in "LMNPS"


@functools.lru_cache(maxsize=128)
def _compiled(expression: str) -> re2._Regexp[str] | None:
    import re2  # few filters have expressions, and each worker would load it at its start

    options = re2.Options()
    options.log_errors = False
    try:
        return re2.compile(expression, options)
    except re2.error:
        return None
