"""A momentum encoder, as BYOL has it (arXiv 2006.07733), on digits without labels, in pure functions of JAX.

Two views of each image go through two encoders. The online one learns to predict what the momentum encoder, its
average, makes of the other view. How slowly the average follows changes during the run: a rule of one's own says it.
Printed is the accuracy of a linear probe, ridge regression on few labels, on the features of an encoder that was never
trained, of the online and of the momentum encoder.

    python examples/momentum_encoder.py --steps 800 --seed 0
"""

from __future__ import annotations

import argparse
import os
from dataclasses import dataclass
from typing import Any, ClassVar

os.environ["KERAS_BACKEND"] = "jax"

import jax
import keras
import numpy as np
from keras import ops
from sklearn.datasets import load_digits
from sklearn.linear_model import RidgeClassifier

import polyak

BATCH, LABELS_A_CLASS, BASE = 256, 2, 0.03


@dataclass(frozen=True, slots=True)
class Falling(polyak.rules.Rule):
    """Tau falls smoothly from ``base`` to 0 over ``steps`` updates, much as BYOL's half cosine does.

    That one is built in, "cosine:0.97,steps=800"; this shows what a rule of one's own takes.
    """

    name: ClassVar[str] = "falling"
    base: float
    steps: int

    def _at(self, n: Any, ops: Any) -> Any:
        left = 1.0 - ops.minimum(n / self.steps, 1.0)
        return self.base * left * left * (3.0 - 2.0 * left)


def images(seed: int) -> tuple[Any, ...]:
    """Images and labels, for training and for testing."""
    bunch: Any = load_digits()
    order = np.random.default_rng(seed).permutation(len(bunch.target))
    x, y = (bunch.images / 16.0).astype("float32")[order], bunch.target[order]
    return x[:1200], y[:1200], x[1200:], y[1200:]


def view(x: Any, draw: np.random.Generator) -> Any:
    """Each image shifted by up to a pixel, with a square of it blanked, and with noise."""
    n, side = len(x), np.arange(8)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    down, across = draw.integers(0, 3, (2, n, 1)) + side
    shifted = padded[np.arange(n)[:, None, None], down[:, :, None], across[:, None, :]]
    rows, columns = np.abs(side - draw.integers(0, 8, (2, n, 1))) <= 1
    blanked = np.where(rows[:, :, None] & columns[:, None, :], 0.0, shifted)
    return (blanked + draw.normal(0.0, 0.05, x.shape)).reshape(n, 64).astype("float32")


def perceptron(inputs: int, hidden: int, outputs: int) -> Any:
    """One hidden layer, normalised."""
    layers = [keras.layers.Dense(hidden), keras.layers.BatchNormalization(momentum=0.9), keras.layers.ReLU()]
    return keras.Sequential([keras.Input((inputs,)), *layers, keras.layers.Dense(outputs)])


def unit(x: Any) -> Any:
    """Rows of length one."""
    return x / ops.norm(x, axis=-1, keepdims=True)


def values(model: Any) -> tuple[list[Any], list[Any]]:
    """Copies of a model's lists, whose memory a compiled step may take over."""
    lists = model.trainable_variables, model.non_trainable_variables
    trainable, others = ([jax.numpy.copy(v.value) for v in some] for some in lists)
    return trainable, others


def learn(encoder: Any, target: polyak.Average, x: Any, steps: int, draw: np.random.Generator) -> None:
    """A training loop from scratch, as Keras' guide for JAX has it, with the target's state beside the others."""
    predictor = perceptron(64, 128, 64)
    both = keras.Sequential([encoder, predictor])
    optimizer = keras.optimizers.Adam(0.003)
    optimizer.build(both.trainable_variables)
    own = len(encoder.trainable_variables), len(encoder.non_trainable_variables)

    def loss_of(trainable: Any, others: Any, tree: Any, one: Any, two: Any) -> Any:
        loss = 0.0
        for seen, aimed_at in ((one, two), (two, one)):
            guess, others = both.stateless_call(trainable, others, seen, training=True)
            aim = jax.lax.stop_gradient(target.stateless_call(tree, aimed_at, training=True))
            loss += ops.mean(ops.sum(ops.square(unit(guess) - unit(aim)), axis=-1))
        return loss, others

    def step(state: Any, one: Any, two: Any) -> Any:
        trainable, others, kept, tree = state
        grads, others = jax.grad(loss_of, has_aux=True)(trainable, others, tree, one, two)
        trainable, kept = optimizer.stateless_apply(kept, grads, trainable)
        return trainable, others, kept, target.stateless_update(tree, trainable[: own[0]], others[: own[1]])

    step = jax.jit(step, donate_argnums=0)
    state = (*values(both), [jax.numpy.copy(v.value) for v in optimizer.variables], target.tree())
    for _ in range(steps):
        some = x[draw.integers(0, len(x), BATCH)]
        state = step(state, view(some, draw), view(some, draw))
    for variables, found in zip((both.trainable_variables, both.non_trainable_variables), state[:2], strict=True):
        for variable, value in zip(variables, found, strict=True):
            variable.assign(value)
    target.take(state[3])


def probe(encoder: Any, data: tuple[Any, ...]) -> float:
    """Accuracy of a linear classifier of features, made from few labels."""
    x, y, test_x, test_y = data
    few = np.concatenate([np.flatnonzero(y == digit)[:LABELS_A_CLASS] for digit in range(10)])
    features = [np.asarray(unit(encoder(some.reshape(-1, 64)))) for some in (x[few], test_x)]
    return float(RidgeClassifier(0.1).fit(features[0], y[few]).score(features[1], test_y))


def main() -> None:
    """Train, and print what a probe makes of the features."""
    arguments = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    arguments.add_argument("--steps", type=int, default=800)
    arguments.add_argument("--seed", type=int, default=0)
    asked = arguments.parse_args()
    keras.utils.set_random_seed(asked.seed)
    data = images(asked.seed)
    encoder = perceptron(64, 256, 64)
    untrained = probe(encoder, data)
    target = polyak.Target(encoder, Falling(BASE, asked.steps))
    learn(encoder, target, data[0], asked.steps, np.random.default_rng(asked.seed))
    print(f"{asked.steps} steps on {len(data[0])} images; accuracy of a probe of {10 * LABELS_A_CLASS} labels")
    print(f"untrained   {untrained:.3f}")
    print(f"online      {probe(encoder, data):.3f}")
    print(f"momentum    {probe(target, data):.3f}")


if __name__ == "__main__":
    main()
