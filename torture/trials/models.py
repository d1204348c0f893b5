"""Small models whose weights are set by hand, and loops that drive their averages, on the backend of Keras."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import keras
import numpy as np

BACKEND = keras.backend.backend()
Array = Any


@keras.saving.register_keras_serializable(package="torture")
class Weights(keras.layers.Layer):
    """A layer of vectors: one weight for each dtype that is given."""

    def __init__(self, size: int, dtypes: Sequence[str]) -> None:
        super().__init__()
        self.held = [
            self.add_weight(shape=(size,), dtype=dtype, name=f"w{i}", initializer="zeros")
            for i, dtype in enumerate(dtypes)
        ]
        self.built = True

    def call(self, x: Any) -> Any:
        return x


def vectors(start: Array, *dtypes: str) -> Weights:
    """A weight of each of the dtypes, by default one of float32; all hold ``start``."""
    model = Weights(len(start), dtypes or ("float32",))
    put(model, start)
    return model


def put(model: Any, value: Array) -> None:
    """Set every weight to a value of its dtype."""
    for variable in model.variables:
        variable.assign(keras.ops.convert_to_tensor(value, dtype=variable.dtype))


def modes() -> tuple[str, ...]:
    """The ways in which averages move on this backend."""
    return {"tensorflow": ("eager", "graph", "xla"), "jax": ("eager", "pure"), "torch": ("eager",)}[BACKEND]


def drive(model: Any, averages: Sequence[Any], values: Array, mode: str) -> None:
    """For each row of values set every weight to it and update the averages."""
    {"eager": _eager, "graph": _graph, "xla": _xla, "pure": _pure}[mode](model, averages, values)


def _eager(model: Any, averages: Sequence[Any], values: Array) -> None:
    for value in values:
        put(model, value)
        for average in averages:
            average.update()


def _graph(model: Any, averages: Sequence[Any], values: Array, jit: bool = False) -> None:
    import tensorflow as tf

    rows = {dtype: tf.cast(tf.constant(values), dtype) for dtype in {v.dtype for v in model.variables}}

    @tf.function(jit_compile=jit)
    def run() -> None:
        for i in tf.range(len(values)):
            for variable in model.variables:
                variable.assign(rows[variable.dtype][i])
            for average in averages:
                average.update()

    run()


def _xla(model: Any, averages: Sequence[Any], values: Array) -> None:
    _graph(model, averages, values, jit=True)


def _pure(model: Any, averages: Sequence[Any], values: Array) -> None:
    import jax

    dtypes = [v.dtype for v in model.trainable_variables]
    rows = [keras.ops.cast(keras.ops.convert_to_tensor(values), dtype) for dtype in dtypes]
    others = [v.value for v in model.non_trainable_variables]

    def step(trees: Any, row: Any) -> tuple[Any, None]:
        pairs = zip(averages, trees, strict=True)
        return [average.stateless_update(tree, row, others) for average, tree in pairs], None

    trees, _ = jax.jit(lambda trees: jax.lax.scan(step, trees, rows))([average.tree() for average in averages])
    for average, tree in zip(averages, trees, strict=True):
        average.take(tree)
    put(model, values[-1])


def walk(steps: int, size: int, seed: int) -> Array:
    """A path of weights as training makes it: a start near one, noise, a slow drift; float32, (steps, size)."""
    draw = np.random.default_rng(seed)
    noise = draw.standard_normal((steps, size)) * 0.01
    drift = np.linspace(0, 1, steps)[:, None] * draw.uniform(-0.3, 0.3, size)
    return (draw.uniform(0.5, 1.5, size) + noise + drift).astype(np.float32)


def reference(values: Array, rule: Any) -> Array:
    """The average in float64 of a path, by the recurrence of the rule from its first row on."""
    average = values[0].astype(np.float64)
    for n, value in enumerate(values.astype(np.float64), 1):
        average += float(rule.weight(n)) * (value - average)
    return average


def error(found: Array, expected: Array) -> float:
    """The relative difference of two vectors, by their lengths."""
    return float(np.linalg.norm(found.astype(np.float64) - expected) / np.linalg.norm(expected))
