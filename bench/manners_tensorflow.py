"""Ways to update averages of a Keras layer's weights on TensorFlow: polyak's, and those that users have today."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import tensorflow as tf

from bench.manners import DECAY, together, use_ema
from bench.turns import Manner


def manners(layer: Any, averages: int, few: bool) -> dict[str, Callable[[], Manner]]:
    """By tool and mode (eager, in a graph, compiled by XLA), a function that makes the manner.

    ``few``: of the tools alone what compiles in a moment; XLA takes minutes for thousands of variables.
    """
    made = {
        "polyak eager": lambda: together(layer, averages).update,
        "polyak graph": lambda: tf.function(together(layer, averages).update),
    }
    if not few:
        made["polyak xla"] = lambda: tf.function(together(layer, averages).update, jit_compile=True)
    if averages > 1:
        return made
    variables = [v.value for v in layer.trainable_variables]
    made |= {
        "loop eager": lambda: _loop(variables),
        "loop graph": lambda: tf.function(_loop(variables)),
        "tf.train eager": lambda: _tf_train(variables),
        "tf.train graph": lambda: tf.function(_tf_train(variables)),
        "use_ema eager": lambda: use_ema(layer)[1],
        "use_ema graph": lambda: tf.function(use_ema(layer)[1]),
    }
    if not few:
        made["loop xla"] = lambda: tf.function(_loop(variables), jit_compile=True)
        made["use_ema xla"] = lambda: tf.function(use_ema(layer)[1], jit_compile=True)
    return made


def _loop(variables: list[Any]) -> Manner:
    """The answer that circulates."""
    shadows = [tf.Variable(v) for v in variables]

    def update() -> None:
        for shadow, v in zip(shadows, variables, strict=True):
            shadow.assign(DECAY * shadow + (1 - DECAY) * v)

    return update


def _tf_train(variables: list[Any]) -> Manner:
    tool = tf.train.ExponentialMovingAverage(DECAY)
    tool.apply(variables)

    def update() -> None:
        tool.apply(variables)

    return update
