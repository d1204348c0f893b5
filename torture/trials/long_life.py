"""A million updates of a small model: does memory grow, and is the average what the closed form says?"""

from __future__ import annotations

import gc
from collections.abc import Callable
from typing import Any

import numpy as np
import psutil

import polyak
from torture.trials.models import BACKEND, Array, put, vectors

DECAY, SIZE = 0.999, 16
PERIOD = 1000  # the weights repeat after so many steps


def lived(steps: int) -> tuple[int, float, float]:
    """(updates, relative difference from the closed form, bytes that each update after a first tenth kept)."""
    values = _values()
    model = vectors(values[0])
    average = polyak.track(model, f"ema:{DECAY},start=initial")
    advance = {"tensorflow": _on_tensorflow, "jax": _on_jax, "torch": _on_torch}[BACKEND](model, average, values)
    for _ in range(max(steps // PERIOD // 10, 2)):
        advance()
    began, held = average.count, _memory()
    while average.count < steps:
        advance()
    kept = max(0, _memory() - held) / max(average.count - began, 1)
    expected = closed_form(values, average.count)
    found = average.values()["w0"].astype(np.float64)
    return average.count, float(np.linalg.norm(found - expected) / np.linalg.norm(expected)), kept


def _values() -> Array:
    """A wave around one, different in each element, of float32 numbers."""
    steps, phases = np.arange(PERIOD)[:, None], np.linspace(0, 2 * np.pi, SIZE)
    return (1 + 0.1 * np.sin(2 * np.pi * steps / PERIOD + phases)).astype(np.float32)


def closed_form(values: Array, count: int) -> Array:
    """The average after ``count`` updates, from a geometric series over periods: count is a multiple of the period."""
    wide = values.astype(np.float64)
    ages = np.arange(PERIOD - 1, -1, -1.0)[:, None]
    one = ((1 - DECAY) * DECAY**ages * wide).sum(0)
    periods = count // PERIOD
    share = DECAY**PERIOD
    return one * (1 - share**periods) / (1 - share) + share**periods * wide[0]


def _memory() -> int:
    gc.collect()
    return int(psutil.Process().memory_info().rss)


def _on_tensorflow(model: Any, average: Any, values: Array) -> Callable[[], None]:
    import tensorflow as tf

    rows, variable = tf.constant(values), model.variables[0].value

    @tf.function
    def advance() -> None:
        for i in tf.range(PERIOD):
            variable.assign(rows[i])
            average.update()

    return advance


def _on_jax(model: Any, average: Any, values: Array) -> Callable[[], None]:
    import jax
    import jax.numpy as jnp

    rows = jnp.asarray(values)
    others = [v.value for v in model.non_trainable_variables]

    @jax.jit
    def advance(tree: Any) -> Any:
        return jax.lax.fori_loop(0, PERIOD, lambda i, tree: average.stateless_update(tree, [rows[i]], others), tree)

    return lambda: average.take(advance(average.tree()))


def _on_torch(model: Any, average: Any, values: Array) -> Callable[[], None]:
    import torch

    rows, parameter = torch.tensor(values), model.variables[0].value

    def advance() -> None:
        for row in rows:
            with torch.no_grad():
                parameter.copy_(row)
            average.update()

    return advance


def lived_eagerly(steps: int) -> tuple[int, float]:
    """Updates one by one, with all that a loop of one's own does beside: (updates, bytes that each one kept)."""
    model = vectors(np.ones(SIZE, np.float32))
    average = polyak.track(model, f"ema:{DECAY}")
    for i in range(steps // 5):
        _used(model, average, i)
    held = _memory()
    for i in range(steps):
        _used(model, average, i)
    return average.count, max(0, _memory() - held) / steps


def _used(model: Any, average: Any, i: int) -> None:
    put(model, np.full(SIZE, 1 + i % 7, np.float32))
    average.update()
    if i % 50 == 0:
        with average.applied():
            average.values()
        average.snapshot().copy()
