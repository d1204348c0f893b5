"""Ways to update averages of plain arrays in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.turns import Manner
from polyak.averaging import host

W = 0.001
Arrays = list[np.ndarray[Any, Any]]


def manners(values: Arrays, averages: int, few: bool) -> dict[str, Callable[[], Manner]]:
    """The kernel of polyak, alone and after the look at all values that an average takes, and the plain formula."""
    del few
    made = {"polyak host": lambda: _moved(values, averages), "polyak host, guarded": lambda: _guarded(values, averages)}
    if averages == 1:
        made["loop host"] = lambda: _loop(values)
    return made


def _shadows(values: Arrays) -> Arrays:
    return [np.array(v, np.float32).reshape(-1) for v in values]


def _moved(values: Arrays, averages: int) -> Manner:
    shadows = [_shadows(values) for _ in range(averages)]
    moves = zip(*([(a, W) for a in own] for own in shadows), strict=True)
    work = [(v.reshape(-1), move) for v, move in zip(values, moves, strict=True)]
    return lambda: host.move_all(work)


def _guarded(values: Arrays, averages: int) -> Manner:
    move, flat = _moved(values, averages), [v.reshape(-1) for v in values]
    return lambda: host.is_safe(flat) and move()


def _loop(values: Arrays) -> Manner:
    """The answer that circulates."""
    shadows = [np.array(v, np.float32) for v in values]

    def update() -> None:
        for i, v in enumerate(values):
            shadows[i] = (1 - W) * shadows[i] + W * v

    return update
