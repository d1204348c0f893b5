"""The demo's own training loop: one compiled step that moves the model and its averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import polyak
from polyak.demo.data import Digits


@dataclass(frozen=True, slots=True)
class Settings:
    """Plain SGD whose learning rate is high and never lowered, so the weights keep wandering: what averaging is for.

    Attributes:
        fast, slow: decays of the two averages.
    """

    learning_rate: float = 0.5
    batch: int = 16
    epochs: int = 16
    fast: float = 0.9
    slow: float = 0.99


class Training:
    """A model on its way, with the averages that follow it.

    Args:
        averages: moved once in each step.
        seed: order of the images.
    """

    def __init__(self, model: Any, averages: Mapping[str, polyak.Average], digits: Digits, seed: int) -> None:
        self.model, self.averages, self.digits = model, averages, digits
        self._batches = batches(digits, Settings().batch, seed)
        self._step = compiled_step(model, list(averages.values()), Settings().learning_rate)

    def advance(self, steps: int) -> None:
        """Take so many more steps."""
        for _ in range(steps):
            x, y = next(self._batches)
            self._step(tf.constant(x), tf.constant(y))


def compiled_step(
    model: Any, averages: list[polyak.Average], learning_rate: float
) -> Callable[[tf.Tensor, tf.Tensor], None]:
    """One step of SGD on a batch, then one update of each average, in one graph."""
    optimizer = keras.optimizers.SGD(learning_rate)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply(gradients, model.trainable_variables)
        for average in averages:
            average.update()

    return step  # type: ignore[no-any-return]


def batches(digits: Digits, size: int, seed: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Batches without end: every epoch in a new order, its incomplete last batch left out."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(digits.train_x))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield digits.train_x[chosen], digits.train_y[chosen]


def steps_per_epoch(digits: Digits) -> int:
    return len(digits.train_x) // Settings().batch


def accuracy(predict: Callable[[Any], Any], digits: Digits) -> float:
    """Share of the test images that are recognised, in [0, 1]; ``predict`` gives logits of shape (n, 10)."""
    logits = np.asarray(predict(tf.constant(digits.test_x)))
    return float(np.mean(np.argmax(logits, axis=1) == digits.test_y))


def reproducible(seed: int) -> None:
    """The same bits on every run with this seed on one machine."""
    keras.utils.set_random_seed(seed)
    tf.config.experimental.enable_op_determinism()
