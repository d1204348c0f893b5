"""Mean teacher (arXiv 1703.01780) on handwritten digits: a few labels, many images, and a teacher that is an average.

The student learns from the labelled images, and from the teacher's opinion of all images. The teacher is the average of
the students of the past: nobody trains it. Printed are the test accuracies of a student that had the labels alone, of
the student that had a teacher, and of the teacher.

    python examples/mean_teacher.py --steps 800 --seed 1
"""

from __future__ import annotations

import argparse
import os
from typing import Any

os.environ["KERAS_BACKEND"] = "tensorflow"

import keras
import numpy as np
import tensorflow as tf
from sklearn.datasets import load_digits

import polyak

LABELS_A_CLASS = 3
TAU = 0.02
CONSISTENCY = 2.0
BATCH = 128


def digits(seed: int) -> tuple[Any, ...]:
    """Images for training, of which the first few have a label, labels of those, and images and labels for testing."""
    bunch: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    x, y = (bunch.data / 16.0).astype("float32")[order], bunch.target[order]
    train, test = slice(0, 1200), slice(1200, None)
    known = np.concatenate([np.flatnonzero(y[train] == digit)[:LABELS_A_CLASS] for digit in range(10)])
    return x[train], x[train][known], y[train][known], x[test], y[test]


def network() -> Any:
    """Images of 64 pixels to logits of shape (n, 10)."""
    layers = [keras.layers.Dense(128, "relu"), keras.layers.Dense(128, "relu"), keras.layers.Dense(10)]
    return keras.Sequential([keras.Input((64,)), *layers])


def noisy(x: Any, draw: np.random.Generator) -> Any:
    """Each image shifted by up to a pixel, and with noise."""
    n, side = len(x), np.arange(8)
    padded = np.pad(x.reshape(-1, 8, 8), ((0, 0), (1, 1), (1, 1)))
    down, across = draw.integers(0, 3, (2, n, 1)) + side
    shifted = padded[np.arange(n)[:, None, None], down[:, :, None], across[:, None, :]]
    return (shifted.reshape(n, 64) + draw.normal(0.0, 0.1, x.shape)).astype("float32")


class Pupil(keras.Model):
    """A student, and its teacher, which Keras' own files keep with it."""

    def __init__(self, student: Any, consistency: float) -> None:
        super().__init__()
        self.student = student
        self.teacher = polyak.Target(student, tau=TAU)
        self.consistency = consistency

    def call(self, inputs: Any) -> Any:
        return self.student(inputs)

    def both_losses(self, x: Any, y: Any, seen: Any, opinion: Any, share: Any) -> Any:
        """Cross entropy where labels are known, and everywhere a share of the distance from the teacher's opinion."""
        known = keras.losses.sparse_categorical_crossentropy(y, self.student(x), from_logits=True)
        distance = keras.ops.square(keras.ops.softmax(self.student(seen)) - opinion)
        return keras.ops.mean(known) + share * self.consistency * keras.ops.mean(keras.ops.sum(distance, axis=-1))


def learn(pupil: Pupil, data: tuple[Any, ...], steps: int, seed: int) -> None:
    """Train a student; its teacher follows."""
    unlabelled, x, y, _, _ = data
    draw = np.random.default_rng(seed)
    step = compiled_step(pupil, keras.optimizers.Adam(0.003))
    for n in range(steps):
        # The paper's ramp: at first the teacher knows nothing.
        share = np.exp(-5.0 * (1.0 - min(1.0, n / (0.4 * steps))) ** 2).astype("float32")
        some = unlabelled[draw.integers(0, len(unlabelled), BATCH)]
        step(noisy(x, draw), y, noisy(some, draw), noisy(some, draw), share)


def compiled_step(pupil: Pupil, optimizer: Any) -> Any:
    """One step of training in a tf.function: the average moves in it, too."""
    optimizer.build(pupil.student.trainable_variables)

    @tf.function
    def step(x: Any, y: Any, seen: Any, shown: Any, share: Any) -> None:
        opinion = keras.ops.softmax(pupil.teacher(shown))
        with tf.GradientTape() as tape:
            loss = pupil.both_losses(x, y, seen, opinion, share)
        variables = pupil.student.trainable_variables
        optimizer.apply(tape.gradient(loss, variables), variables)
        pupil.teacher.update()

    return step


def accuracy(call: Any, data: tuple[Any, ...]) -> float:
    """On the images for testing."""
    return float(np.mean(np.argmax(keras.ops.convert_to_numpy(call(data[3])), axis=-1) == data[4]))


def main() -> None:
    """Train without and with a teacher, and print both."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=800)
    arguments.add_argument("--seed", type=int, default=1)
    asked = arguments.parse_args()
    data = digits(asked.seed)
    scores = {}
    for consistency in (0.0, CONSISTENCY):
        keras.utils.set_random_seed(asked.seed)
        pupil = Pupil(network(), consistency)
        learn(pupil, data, asked.steps, asked.seed)
        scores[consistency] = accuracy(pupil.student, data), accuracy(pupil.teacher, data)
    print(
        f"{10 * LABELS_A_CLASS} labels, {len(data[0])} images, {asked.steps} steps; accuracy on {len(data[4])} others"
    )
    print(f"student, labels alone    {scores[0.0][0]:.3f}")
    print(f"student with a teacher   {scores[CONSISTENCY][0]:.3f}")
    print(f"teacher                  {scores[CONSISTENCY][1]:.3f}")


if __name__ == "__main__":
    main()
