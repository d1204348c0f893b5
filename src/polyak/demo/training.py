"""The demo's own training loop: one compiled step that moves the model and its averages."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import NDArray

import polyak
from polyak.demo.data import Digits

# Plain SGD whose learning rate is high and never lowered: the weights keep wandering, which is what averaging is for.
LEARNING_RATE = 0.2
BATCH = 16
EPOCHS = 16

Step = Callable[[Any, Any], None]


class Training:
    """A model on its way, with the averages that follow it.

    Args:
        averages: moved once in each step.
        seed: order of the images.
    """

    def __init__(self, model: Any, averages: Sequence[polyak.Average], digits: Digits, seed: int) -> None:
        self._batches = batches(digits, BATCH, seed)
        self._step = compiled_step(model, averages)

    def advance(self, steps: int) -> None:
        """Take so many more steps."""
        for _ in range(steps):
            x, y = next(self._batches)
            self._step(tf.constant(x), tf.constant(y))


def compiled_step(model: Any, averages: Sequence[polyak.Average]) -> Step:
    """One step of SGD on a batch, then one update of each average, in one graph."""
    optimizer = keras.optimizers.SGD(LEARNING_RATE)
    optimizer.build(model.trainable_variables)
    loss_of = keras.losses.SparseCategoricalCrossentropy(from_logits=True)

    @tf.function
    def step(x: tf.Tensor, y: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = loss_of(y, model(x, training=True))
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        for average in averages:
            average.update()

    compiled: Step = step
    return compiled


def batches(digits: Digits, size: int, seed: int) -> Iterator[tuple[NDArray[np.float32], NDArray[np.int32]]]:
    """Batches without end: every epoch in a new order, its incomplete last batch left out."""
    rng = np.random.default_rng(seed)
    while True:
        order = rng.permutation(len(digits.train_x))
        for start in range(0, len(order) - size + 1, size):
            chosen = order[start : start + size]
            yield digits.train_x[chosen], digits.train_y[chosen]


def steps_per_epoch(digits: Digits) -> int:
    """Full batches in the training images."""
    return len(digits.train_x) // BATCH


def accuracy(predict: Callable[[Any], Any], digits: Digits) -> float:
    """Share of the test images that are recognised, in [0, 1]; ``predict`` gives logits of shape (n, 10)."""
    logits = np.asarray(predict(tf.constant(digits.test_x)))
    return float(np.mean(np.argmax(logits, axis=1) == digits.test_y))


def reproducible(seed: int) -> None:
    """The same weights and the same dropout on every run with this seed."""
    keras.utils.set_random_seed(seed)
