"""Reading begins for the array that is asked for next while the caller deals with the present one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import Generic, TypeVar

from polyak.errors import FileError
from polyak.forks import new_lock

T = TypeVar("T")


class Ahead(Generic[T]):
    """Readings under way: where two are asked for in order, the third is begun with the second.

    Args:
        begin: begins to read what has a name, and does not wait for it.
        order: the names, as somebody asks who wants them all. One that is not among them is not begun ahead.

    Example:
        >>> begun = []
        >>> readings = Ahead(lambda name: begun.append(name) or name.upper(), "abcd")
        >>> [(readings.of(name), "".join(begun)) for name in "abd"]
        [('A', 'a'), ('B', 'abc'), ('D', 'abcd')]
    """

    def __init__(self, begin: Callable[[str], T], order: Sequence[str]) -> None:
        self._begin = begin
        self._next = dict(pairwise(order))
        self._turn = new_lock()
        self._last: str | None = None
        self._ahead: tuple[str, T] | None = None

    def of(self, name: str) -> T:
        """The reading of a name, begun now or before. Raises what ``begin`` raises for it."""
        with self._turn:
            following = self._next.get(name) if self._last is not None and self._next.get(self._last) == name else None
            held, self._last, self._ahead = self._ahead, name, None
        reading = held[1] if held is not None and held[0] == name else self._begin(name)
        if following is not None:
            self._begin_ahead(following)
        return reading

    def _begin_ahead(self, name: str) -> None:
        try:
            reading = self._begin(name)
        except FileError:  # raised where the name is asked for
            return
        with self._turn:
            self._ahead = name, reading
