"""A snapshot that tells which of its arrays is read."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import TypeVar

from polyak.combine.average import Watch
from polyak.snapshot import Snapshot

T = TypeVar("T")


def watched(held: Snapshot, watch: Watch) -> Snapshot:
    """The same arrays; ``watch`` is told of each before it is read: name, how many others were read, of how many.

    Example:
        >>> import numpy as np
        >>> held = Snapshot.from_arrays({"a": np.zeros(1), "b": np.zeros(1)})
        >>> told = []
        >>> list(watched(held, lambda *what: told.append(what)).values()) and told
        [('a', 0, 2), ('b', 1, 2)]
    """
    seen: dict[str, int] = {}

    def told(name: str, read: Callable[[], T]) -> Callable[[], T]:
        return partial(_read, name, read, seen, partial(_tell, watch, len(held)))

    items = [
        replace(item, read=told(name, item.read), measure=item.measure and told(name, item.measure))
        for name, item in held.items_by_path.items()
    ]
    return Snapshot(items, held.states, held.origin, held.integrity, held.manifest, held.moment)


def _read(name: str, read: Callable[[], T], seen: dict[str, int], tell: Callable[[str, int], None]) -> T:
    tell(name, seen.setdefault(name, len(seen)))
    return read()


def _tell(watch: Watch, total: int, name: str, done: int) -> None:
    watch(name, done, total)
