"""What the manners of all backends share: polyak's own update, and that of a Keras optimizer."""

from __future__ import annotations

from typing import Any

import keras

import polyak
from bench.turns import Manner

DECAY = 0.999


def together(layer: Any, averages: int) -> Any:
    """One average, or several that move together. They begin at the weights, so that all updates are alike."""
    rules = [f"ema:{DECAY - i / 1000},start=initial" for i in range(averages)]
    if averages == 1:
        return polyak.track(layer, rules[0])
    return polyak.Averages(layer, {f"a{i}": rule for i, rule in enumerate(rules)})


def use_ema(layer: Any) -> tuple[Any, Manner]:
    """A Keras optimizer, and what it does after each step; its first update copies, the others average."""
    optimizer = keras.optimizers.SGD(0.0, use_ema=True, ema_momentum=DECAY)
    optimizer.build(layer.trainable_variables)
    optimizer.iterations.assign(1)
    return optimizer, lambda: optimizer._update_model_variables_moving_average(layer.trainable_variables)
