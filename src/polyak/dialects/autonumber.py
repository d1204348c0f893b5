"""Numbers that Keras and TensorFlow append to names: they count objects of one class as they are created."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

_NUMBERED = re.compile(r"(.+?)(?:_(\d{1,9}))?")


def creation_keys(names: Iterable[str]) -> Mapping[str, str]:
    """The name of each weight with the rank of each number among its siblings, as a live model's evidence has it.

    Where a user chose a name that ends in a number, the key is that of no live weight, and says nothing.

    Example:
        >>> creation_keys(["dense_9/kernel", "dense_10/kernel", "head/kernel"])["dense_10/kernel"]
        'dense~1/kernel'
    """
    known = tuple(names)
    numbers: dict[tuple[str, str], set[int]] = {}
    for name in known:
        for place, family, number in _numbers(name):
            numbers.setdefault((place, family), set()).add(number)
    ranks = {at: {n: rank for rank, n in enumerate(sorted(held))} for at, held in numbers.items()}
    return {name: _ranked(name, ranks) for name in known}


def _numbers(name: str) -> list[tuple[str, str, int]]:
    steps = name.split("/")
    found = [_NUMBERED.fullmatch(step) for step in steps[:-1]]
    return [("/".join(steps[:i]), f.group(1), int(f.group(2) or 0)) for i, f in enumerate(found) if f]


def _ranked(name: str, ranks: Mapping[tuple[str, str], Mapping[int, int]]) -> str:
    steps = [f"{family}~{ranks[place, family][number]}" for place, family, number in _numbers(name)]
    return "/".join([*steps, name.rpartition("/")[2]])
