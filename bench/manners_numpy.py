"""Ways to update averages of plain arrays in host memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from bench.turns import Manner
from polyak.averaging.kernel import lerp

W = 0.001
Arrays = list[np.ndarray[Any, Any]]


def manners(values: Arrays, averages: int, few: bool) -> dict[str, Callable[[], Manner]]:
    """The reference that the kernels of the frameworks are held against, and the plain formula."""
    del few
    made = {"polyak host": lambda: _by(lerp, values, averages)}
    return made | ({"loop host": lambda: _by(_formula, values, 1)} if averages == 1 else {})


def _by(move: Callable[[Any, Any, float], Any], values: Arrays, averages: int) -> Manner:
    shadows = [[np.array(v, np.float32) for v in values] for _ in range(averages)]

    def update() -> None:
        for i, v in enumerate(values):
            for own in shadows:
                own[i] = move(own[i], v, W)

    return update


def _formula(average: Any, value: Any, w: float) -> Any:
    """The answer that circulates."""
    return (1 - w) * average + w * value
