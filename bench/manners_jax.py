"""Ways to update averages of a Keras layer's weights on JAX. A manner ends when the arrays are there."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import keras
import optax

from bench.manners import DECAY, together, use_ema
from bench.turns import Manner


def manners(layer: Any, averages: int, few: bool) -> dict[str, Callable[[], Manner]]:
    """By tool and mode (eager, or in a compiled step of one's own), a function that makes the manner."""
    made = {"polyak eager": lambda: _eager(layer, averages)}
    if averages > 1:
        return made
    made |= {"polyak jit": lambda: _pure(layer), "use_ema eager": lambda: _waiting_use_ema(layer)}
    if not few:
        made["use_ema jit"] = lambda: _compiled_use_ema(layer)
    made["optax jit"] = lambda: _optax(layer)
    return made


def _eager(layer: Any, averages: int) -> Manner:
    average = together(layer, averages)
    counted = average if averages == 1 else average["a0"]

    def update() -> int:
        average.update()
        return counted.count  # of the same program as the averages: when it is there, they are

    return update


def _kept(step: Callable[[Any], Any], state: Any) -> Manner:
    """A step that gives its state on to the next one."""
    held = [state]

    def update() -> None:
        held[0] = jax.block_until_ready(step(held[0]))

    return update


def _pure(layer: Any) -> Manner:
    average = together(layer, 1)
    step = jax.jit(average.stateless_update, donate_argnums=0)
    values = [v.value for v in layer.trainable_variables]
    return _kept(lambda tree: step(tree, values, []), average.tree())


def _waiting_use_ema(layer: Any) -> Manner:
    optimizer, update = use_ema(layer)
    return lambda: (update(), jax.block_until_ready([v.value for v in optimizer._model_variables_moving_average]))


def _compiled_use_ema(layer: Any) -> Manner:
    """As ``fit`` does it: in a scope that stands for the variables."""
    optimizer, update = use_ema(layer)
    averages = [v for v in optimizer._model_variables_moving_average if v is not None]
    trained = list(layer.trainable_variables)

    def pure(values: Any, new: Any) -> Any:
        given = [*zip(averages, values, strict=True), *zip(trained, new, strict=True)]
        with keras.StatelessScope(state_mapping=given) as scope:
            update()
        return [scope.get_current_value(v) for v in averages]

    step, values = jax.jit(pure, donate_argnums=0), [v.value for v in trained]
    return _kept(lambda state: step(state, values), [jax.numpy.copy(v.value) for v in averages])


def _optax(layer: Any) -> Manner:
    step = jax.jit(lambda old, new: optax.incremental_update(new, old, 1 - DECAY), donate_argnums=0)
    values = [v.value for v in layer.trainable_variables]
    return _kept(lambda old: step(old, values), [jax.numpy.copy(v) for v in values])
