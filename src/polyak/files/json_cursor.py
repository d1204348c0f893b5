"""JSON of a known form, taken apart value by value.

A JSON library first builds whatever a text holds: 25 MB of brackets become half a gigabyte of lists. Headers and
indexes have one form each, so a value is checked before the next one is looked at, and junk ends the reading at once.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from polyak.errors import DamagedFile
from polyak.files.limits import MOST_HEADER

_LONGEST_VALUE = 4096
_BLANK = rb"[ \t\r\n]*+"
_TEXT = rb'"(?:[^"\\\x00-\x1f]++|\\[^\x00-\x1f])*+"'
_OPEN = {close: re.compile(_BLANK + re.escape(bracket) + _BLANK) for bracket, close in ((b"{", b"}"), (b"[", b"]"))}
_NAME = re.compile(_BLANK + rb"(" + _TEXT + rb")" + _BLANK + rb":" + _BLANK)
_VALUE = re.compile(_TEXT)
_NEXT = re.compile(_BLANK + rb"([,}\]])" + _BLANK)
_DECODER = json.JSONDecoder()


class Cursor:
    """A place in a JSON text. Every method moves it behind what it returns, and raises DamagedFile.

    Args:
        raw: the text.
        what: what errors call it, with the file: ``file 'a': the header``.

    Example:
        >>> cursor = Cursor(b'{"a": "x", "b": [1, 2]}', "the text")
        >>> [(name, cursor.value()) for name in cursor.names(10)]
        [('a', 'x'), ('b', [1, 2])]
    """

    def __init__(self, raw: bytes, what: str) -> None:
        if len(raw) > MOST_HEADER:
            raise DamagedFile(f"{what}: expected at most {MOST_HEADER:,} bytes, received {len(raw):,}")
        self._raw = raw
        self._what = what
        self._at = 0

    def names(self, most: int) -> Iterator[str]:
        """Each name of an object; the caller takes its value before it asks for the next one."""
        seen: set[str] = set()
        for _ in self._entries(b"}", most):
            name = self._decoded(self._take(_NAME, "a name").group(1))
            if name in seen:
                raise DamagedFile(f"{self._what}: a name occurs twice: {name!r:.120}")
            seen.add(name)
            yield name

    def texts(self, most: int) -> Iterator[str]:
        """A text, or each of a list of texts."""
        if self._next() == b'"':
            yield self.text()
            return
        for _ in self._entries(b"]", most):
            yield self.text()

    def text(self, most: int = MOST_HEADER) -> str:
        """A text of at most so many bytes, as it is written."""
        found = self._take(_VALUE, "a text")
        if found.end() - found.start() > most:
            raise DamagedFile(f"{self._what}: expected a text of at most {most:,} bytes, received a longer one")
        return self._decoded(found.group())

    def description(self) -> dict[str, Any]:
        """A short object that holds no other one."""
        end = self._raw.find(b"}", self._at, self._at + _LONGEST_VALUE) + 1
        if end == 0 or self._next() != b"{":
            raise self._unreadable("a description")
        start, self._at = self._at, end
        try:
            return dict(json.loads(self._raw[start:end].decode(), object_pairs_hook=self._fields))
        except (ValueError, RecursionError) as error:
            raise DamagedFile(f"{self._what} is not readable: {error!s:.200}") from error

    def value(self) -> Any:
        """A text of any length, or a short value."""
        if self._next() == b'"':
            return self.text()
        try:
            piece = self._raw[self._at : self._at + _LONGEST_VALUE].decode("latin-1")  # a character for each byte
            found, end = _DECODER.raw_decode(piece)
        except (ValueError, RecursionError) as error:
            raise self._unreadable("a text or a short value") from error
        self._at += end
        return found

    def finish(self) -> None:
        """Only blanks may follow."""
        if self._raw[self._at :].strip(b" \t\r\n"):
            raise self._unreadable("nothing more")

    def _entries(self, close: bytes, most: int) -> Iterator[None]:
        self._take(_OPEN[close], "an object" if close == b"}" else "a list")
        if self._next() == close:
            self._at += 1
            return
        for _ in range(most):
            yield
            mark = self._take(_NEXT, "a comma or the end").group(1)
            if mark == close:
                return
            if mark != b",":
                raise self._unreadable("a comma or the end")
        raise DamagedFile(f"{self._what}: expected at most {most:,} entries, received more")

    def _next(self) -> bytes:
        return self._raw[self._at : self._at + 1]

    def _take(self, pattern: re.Pattern[bytes], expected: str) -> re.Match[bytes]:
        found = pattern.match(self._raw, self._at)
        if found is None:
            raise self._unreadable(expected)
        self._at = found.end()
        return found

    def _decoded(self, quoted: bytes) -> str:
        try:
            return str(json.loads(quoted)) if b"\\" in quoted else quoted[1:-1].decode()
        except ValueError as error:
            raise DamagedFile(f"{self._what} is not readable: {error!s:.200}") from error

    def _fields(self, pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        if len({key for key, _ in pairs}) < len(pairs):
            raise DamagedFile(f"{self._what}: a name occurs twice")
        return dict(pairs)

    def _unreadable(self, expected: str) -> DamagedFile:
        received = self._raw[self._at : self._at + 20]
        return DamagedFile(
            f"{self._what} is not readable: expected {expected} at byte {self._at}, received {received!r}"
        )
