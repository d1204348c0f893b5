"""Nested Keras models, and TensorFlow's own checkpoints of them: ``python -m tests.keras.nests FOLDER`` writes those.

Beside each lies what is in it, by the paths that polyak gives a live model: ``NAME-raw.npz`` and ``NAME-average.npz``.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import polyak

WIDTH = 4


def dense(**kwargs: Any) -> Any:
    """All of one shape, so that a wrong pairing is not found by the shape."""
    return layers.Dense(WIDTH, **kwargs)


class Block(layers.Layer):
    """Layers in attributes, of which one is private, and a weight of its own under another name."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dense()
        self._second = dense()
        self.norm = layers.LayerNormalization()

    def build(self, shape: Any) -> None:
        self.gain = self.add_weight(shape=(WIDTH,), initializer="ones", name="scale")
        self.built = True

    def call(self, x: Any) -> Any:
        return self.gain * self.norm(self._second(self.first(x)))


def sequential_in_sequential() -> Any:
    inner = [keras.Sequential([dense(), layers.BatchNormalization(), dense()]) for _ in range(2)]
    return keras.Sequential([keras.Input((WIDTH,)), inner[0], dense(), inner[1]])


def functional_in_functional() -> Any:
    """One part is named and made before the other, which is used first."""
    tail = keras.Model(x := keras.Input((WIDTH,)), dense(name="out")(dense()(x)), name="tail")
    head = keras.Sequential([dense(), layers.Dropout(0.5), dense()])
    x = keras.Input((WIDTH,))
    return keras.Model(x, tail(layers.BatchNormalization()(head(x) + x)))


def functional_of_blocks() -> Any:
    x = keras.Input((WIDTH,))
    return keras.Model(x, dense()(Block()(Block()(dense()(x)))))


def functional_of_cells() -> Any:
    x = keras.Input((WIDTH,))
    steps = layers.Reshape((2, 2))(x)
    steps = layers.Bidirectional(layers.LSTM(2))(layers.MultiHeadAttention(2, 2)(steps, steps))
    return keras.Model(x, dense()(steps))


def functional_of_cells_before_layers() -> Any:
    """What lies deep in the first layers counts among the layers, or the order speaks for other ones."""
    x = keras.Input((WIDTH,))
    steps = layers.LSTM(WIDTH)(layers.Dropout(0.5)(layers.Reshape((2, 2))(x)))
    return keras.Model(x, dense()(dense()(dense()(Block()(steps)))))


class Subclassed(keras.Model):
    """Models in attributes."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([dense(), Block()])
        self._teacher = functional_in_functional()
        self.head = dense()

    def call(self, x: Any) -> Any:
        return self.head(self.encoder(x) + self._teacher(x))


NESTS: dict[str, Callable[[], Any]] = {
    make.__name__: make
    for make in (
        sequential_in_sequential,
        functional_in_functional,
        functional_of_blocks,
        functional_of_cells,
        functional_of_cells_before_layers,
        Subclassed,
    )
}


def built(name: str) -> Any:
    """A new instance, built."""
    model = NESTS[name]()
    model(np.zeros((1, WIDTH), np.float32))
    return model


def write(name: str, folder: Path) -> None:
    """The checkpoint of a model after some steps with ``use_ema``."""
    import tensorflow as tf

    from polyak.frameworks.keras_anatomy import Flavour, paths_in

    keras.utils.set_random_seed(len(name))
    model = built(name)
    model.compile(optimizer := keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5), "mse")
    data = np.random.default_rng(len(name)).normal(size=(2, 8, WIDTH))
    for _ in range(3):  # at its end fit would write the average over the weights
        model.train_on_batch(*data)
    tf.train.Checkpoint(model=model, optimizer=optimizer).write(str(folder / name))
    raw = dict(polyak.snapshot(model))
    paths = paths_in(model, Flavour.keras3(keras))
    pairs = zip(optimizer._trainable_variables, optimizer._model_variables_moving_average, strict=True)
    average = raw | {paths[id(weight)]: mean.numpy() for weight, mean in pairs}
    for role, values in (("raw", raw), ("average", average)):
        np.savez(folder / f"{name}-{role}.npz", **{path.replace("/", "|"): value for path, value in values.items()})


def expected(name: str, role: str, folder: Path) -> dict[str, Any]:
    with np.load(folder / f"{name}-{role}.npz") as held:
        return {path.replace("|", "/"): held[path] for path in held.files}


if __name__ == "__main__":
    for each in NESTS:
        write(each, Path(sys.argv[1]))
