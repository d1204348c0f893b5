"""Manners of doing one thing, measured in turns: each turn calls all of them, so that all see the same machine.

A machine has slow and quick moments. Only times of one turn are compared: a ratio is the median, over the turns, of the
ratios within each.
"""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

Manner = Callable[[], object]
# A call that is shorter is repeated until so many seconds have passed.
LEAST = 0.02
MOST_CALLS = 1000


@dataclass(frozen=True)
class Times:
    """Seconds of one call of each manner, turn by turn, and of each manner's first call, which traces and compiles."""

    seconds: Mapping[str, Sequence[float]]
    first: Mapping[str, float]

    def median(self, name: str) -> float:
        """Seconds."""
        return statistics.median(self.seconds[name])

    def ratio(self, name: str, base: str) -> float:
        """The median of the ratios within each turn.

        Example:
            >>> Times({"a": [2, 4, 6], "b": [1, 1, 3]}, {}).ratio("a", "b")
            2.0
        """
        return statistics.median(a / b for a, b in zip(self.seconds[name], self.seconds[base], strict=True))

    def by_name(self) -> dict[str, dict[str, float]]:
        """Plain numbers, to be kept."""
        return {name: {"seconds": self.median(name), "first": self.first[name]} for name in self.seconds}


def in_turns(manners: Mapping[str, Manner], turns: int) -> Times:
    """Call each manner once for its compilation, then all of them in every turn."""
    first = {name: _timed(manner, 1) for name, manner in manners.items()}
    calls = {name: _calls(manner) for name, manner in manners.items()}
    seconds: dict[str, list[float]] = {name: [] for name in manners}
    gc.collect()
    gc.disable()  # no manner pays for what another one has left
    try:
        for _ in range(turns):
            for name, manner in manners.items():
                seconds[name].append(_timed(manner, calls[name]))
    finally:
        gc.enable()
    return Times(seconds, first)


def _calls(manner: Manner) -> int:
    """So many that a turn can be measured."""
    _timed(manner, 1)
    return max(1, min(MOST_CALLS, round(LEAST / max(_timed(manner, 1), 1e-9))))


def _timed(manner: Manner, calls: int) -> float:
    start = time.perf_counter()
    for _ in range(calls):
        manner()
    return (time.perf_counter() - start) / calls
