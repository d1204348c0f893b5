"""MessagePack as Flax writes it: maps, plain values, and arrays as an extension; a parser of just that.

Values are taken apart, arrays are not read: of each it remembers where its bytes lie. Every length is compared with
what is left of the file before anything is read, and nesting and the number of values are bounded.

Source: the MessagePack specification, and ``flax/serialization.py`` for the extension types.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, BinaryIO

from polyak.files.limits import most_steps
from polyak.weights import numpy_dtype

ARRAY, COMPLEX, SCALAR = 1, 2, 3
_COST = 3  # of an empty container, in values
_DEEPEST = 64
_MOST_AXES = 32
_LONGEST_NAME = 4096
_LONGEST_TEXT = 65_536
_NUMBERS: dict[int, tuple[str, int]] = {
    0xCA: (">f", 4), 0xCB: (">d", 8), 0xCC: (">B", 1), 0xCD: (">H", 2), 0xCE: (">I", 4), 0xCF: (">Q", 8),
    0xD0: (">b", 1), 0xD1: (">h", 2), 0xD2: (">i", 4), 0xD3: (">q", 8),
}  # fmt: skip
_CONSTANTS: dict[int, Any] = {0xC0: None, 0xC2: False, 0xC3: True}


@dataclass(frozen=True, slots=True)
class Run:
    """An array in the file: where its bytes begin, shape, and dtype by name ("" for one that is not read)."""

    start: int
    shape: tuple[int, ...]
    dtype: str


@dataclass(frozen=True, slots=True)
class Skipped:
    """A value that is not read, and what it is."""

    what: str


class Malformed(Exception):
    """What is wrong; the parser's position says where."""


class Parser:
    """Reads values one after the other from a file of known size."""

    def __init__(self, file: BinaryIO, size: int) -> None:
        self._file = file
        self.size = size
        self.position = 0
        self._most = self._left = most_steps(size, 0)

    def value(self, depth: int = 0) -> Any:
        """The next value: a dict, a list, a plain value, a Run or a Skipped. Raises Malformed."""
        self._left -= 1
        if self._left < 0 or depth > _DEEPEST:
            raise Malformed(f"more than {self._most:,} values or {_DEEPEST} levels")
        code = self._take(1)[0]
        if code <= 0x7F or code >= 0xE0:
            return code if code <= 0x7F else code - 0x100
        if code in _CONSTANTS:
            return _CONSTANTS[code]
        if code in _NUMBERS:
            kind, width = _NUMBERS[code]
            return struct.unpack(kind, self._take(width))[0]
        sort, count = self._counted(code)
        return sort(self, count, depth)

    def _counted(self, code: int) -> tuple[Callable[[Parser, int, int], Any], int]:
        """What a code with a length begins, and the length: elements of containers, bytes of others."""
        if code <= 0x8F:
            return _map, code & 0x0F
        if code <= 0x9F:
            return _list, code & 0x0F
        if code <= 0xBF:
            return _text, code & 0x1F
        for first, widths, sort in _LENGTHS:
            if first <= code < first + len(widths):
                return sort, int.from_bytes(self._take(widths[code - first]), "big")
        if 0xD4 <= code <= 0xD8:
            return _extension, 1 << (code - 0xD4)
        raise Malformed(f"the byte {code:#04x}, which begins no value")

    def _take(self, count: int) -> bytes:
        self._refuse_beyond(count)
        raw = self._file.read(count)
        self.position += len(raw)
        if len(raw) != count:
            raise Malformed("the end of the file")
        return raw

    def _skip(self, count: int) -> None:
        self._refuse_beyond(count)
        self.position += count
        self._file.seek(self.position)

    def _refuse_beyond(self, count: int) -> None:
        if count > self.size - self.position:
            raise Malformed(f"{count} bytes, with {self.size - self.position} left in the file")


def _map(parser: Parser, count: int, depth: int) -> dict[str, Any]:
    parser._left -= _COST
    held: dict[str, Any] = {}
    for _ in range(count):
        key = parser.value(depth + 1)
        if type(key) is not int and (type(key) is not str or len(key) > _LONGEST_NAME):
            raise Malformed("a key that is no name")
        if str(key) in held:
            raise Malformed(f"two values of the key {str(key)[:60]!r}")
        held[str(key)] = parser.value(depth + 1)
    return held


def _list(parser: Parser, count: int, depth: int) -> list[Any]:
    parser._left -= _COST
    return [parser.value(depth + 1) for _ in range(count)]


def _text(parser: Parser, count: int, depth: int) -> Any:
    if count > _LONGEST_TEXT:
        parser._skip(count)
        return Skipped("a long text")
    try:
        return parser._take(count).decode()
    except UnicodeDecodeError as error:
        raise Malformed("a text that is not UTF-8") from error


def _binary(parser: Parser, count: int, depth: int) -> Any:
    parser._skip(count)
    return Skipped("bytes")


def _extension(parser: Parser, count: int, depth: int) -> Any:
    sort = struct.unpack(">b", parser._take(1))[0]
    end = parser.position + count
    if sort in (ARRAY, SCALAR):
        value: Any = _array(parser, end)
    elif sort == COMPLEX:
        value = _complex(parser, depth)
    else:
        parser._skip(count)
        value = Skipped(f"an extension of type {sort}")
    if parser.position != end:
        raise Malformed(f"an extension that ends at byte {parser.position} instead of {end}")
    return value


def _complex(parser: Parser, depth: int) -> complex:
    parts = parser.value(depth + 1)
    if not isinstance(parts, list) or len(parts) != 2 or not all(isinstance(p, (int, float)) for p in parts):
        raise Malformed("a complex number without two parts")
    return complex(*parts)


def _array(parser: Parser, end: int) -> Run:
    """Shape, dtype and bytes; these must be the extension's last ones, and as many as shape and dtype say."""
    if parser._take(1) != b"\x93":
        raise Malformed("an array without shape, dtype and bytes")
    shape, name = parser.value(_DEEPEST - 1), parser.value(_DEEPEST)
    sort, count = parser._counted(parser._take(1)[0])
    if not isinstance(shape, list) or len(shape) > _MOST_AXES or not all(type(n) is int and n >= 0 for n in shape):
        raise Malformed("an array of no shape")
    if sort is not _binary or not isinstance(name, str) or parser.position + count != end:
        raise Malformed("an array without a dtype or bytes of its own")
    dtype, start = _known(name), parser.position
    if dtype and math.prod(shape) * numpy_dtype(dtype).itemsize != count:
        raise Malformed(f"{count} bytes for an array of {tuple(shape)} {dtype}"[:200])
    parser._skip(count)
    return Run(start, tuple(shape), dtype)


def _known(name: str) -> str:
    try:
        dtype = numpy_dtype(name)
    except TypeError:
        return ""
    return name if dtype.name == name and dtype.kind in "biufcV" and not dtype.names and dtype.itemsize else ""


_LENGTHS: tuple[tuple[int, tuple[int, ...], Callable[[Parser, int, int], Any]], ...] = (
    (0xC4, (1, 2, 4), _binary),
    (0xC7, (1, 2, 4), _extension),
    (0xD9, (1, 2, 4), _text),
    (0xDC, (2, 4), _list),
    (0xDE, (2, 4), _map),
)
