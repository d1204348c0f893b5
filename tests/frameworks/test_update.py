"""update(): on every make of model, eagerly, in a graph, under XLA and in fit, it is the NumPy kernel bit for bit."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.averaging.kernel import lerp, shadow_dtype
from polyak.errors import Applied, NonFinite, NonFiniteWarning, RuleError, UnbuiltModel
from tests.frameworks.zoo import (
    LEGACY,
    MODULES,
    NAMES,
    WIDTH,
    ZOO,
    Affine,
    OwnTrainStep,
    assert_same_bits,
    dense,
    scramble,
    values,
    vectors,
)

MODES = ("eager", "graph", "xla")
STEPS = 8

Arrays = dict[str, np.ndarray]


def runner(mode: str, update: Callable[[], None]) -> Callable[[], Any]:
    return update if mode == "eager" else tf.function(update, jit_compile=mode == "xla")


def module(**values: Any) -> tf.Module:
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value))
    return made


def replay(rule: Any, raw: list[Arrays], start: Arrays, averaged: set[str]) -> Arrays:
    """The average by the NumPy kernel; other weights are the newest copies."""
    average = {path: start[path].astype(shadow_dtype(start[path].dtype.name)) for path in averaged}
    for n, newest in enumerate(raw, 1):
        average = {path: lerp(average[path], newest[path], float(rule.weight(n))) for path in averaged}
    return {path: average.get(path, raw[-1][path]) for path in start}


def trainable(model: Any) -> set[str]:
    return {w.path for w in polyak.snapshot(model).weights if w.kind == "trainable"}


def assert_close(found: Arrays, expected: Arrays, averaged: set[str], updates: int, peak: Arrays) -> None:
    """Copies agree in all bits, averages as well as XLA allows.

    XLA contracts a - w * (a - x) into one fused multiply-add, which spares the rounding of the product: at most one unit
    in the last place of the larger of a and x, per update.
    """
    for path, value in expected.items():
        if path not in averaged:
            assert_same_bits({path: found[path]}, {path: value})
        else:
            assert found[path].dtype == value.dtype
            assert np.all(np.abs(found[path] - value) <= updates * np.spacing(peak[path].astype(value.dtype))), path


def largest(raw: list[Arrays]) -> Arrays:
    return {path: np.max([np.abs(r[path]) for r in raw], axis=0) for path in raw[0]}


# Every make of model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_update_is_the_numpy_kernel(name: str, mode: str) -> None:
    """The mean's weights 1, 1/2, 1/3 take the kernel's three ways; test_update_every_and_after takes the one of 0."""
    model = ZOO[name].built()
    ema = polyak.track(model, "mean")
    update = runner(mode, ema.update)
    start, averaged, raw = values(model), trainable(model), []
    for seed in range(4):
        scramble(model, seed)
        raw.append(values(model))
        update()
        assert_same_bits({p: v for p, v in ema.values().items() if p not in averaged},
                         {p: v for p, v in raw[-1].items() if p not in averaged})
    expected = replay(ema.rule, raw, start, averaged)
    if mode == "xla":
        assert_close(ema.values(), expected, averaged, 4, largest(raw))
    else:
        assert_same_bits(ema.values(), expected)
    assert_same_bits(values(model), raw[-1])
    assert (ema.count, ema.skipped) == (4, 0)


class Member:
    """A model of the zoo in training: its average, and a record of the weights that each update saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = ZOO[name].built()
        self.start = values(self.model)
        self.averaged = trainable(self.model)
        self.average = polyak.track(self.model, "mean")
        target = self.average.source
        self.trained = [target.variables[path] for path in sorted(self.averaged)]
        self.trail = tf.Variable(tf.zeros((STEPS, sum(v.shape.num_elements() for v in self.trained)), tf.float64))

    def step(self, i: tf.Tensor) -> None:
        sample = tf.convert_to_tensor(ZOO[self.name].sample())
        with tf.GradientTape() as tape:
            y = self.model(sample) if self.name in MODULES else self.model(sample, training=True)
            loss = tf.reduce_mean((tf.cast(y, tf.float32) - 1) ** 2)
        gradients = tape.gradient(loss, self.trained, unconnected_gradients="zero")
        for variable, gradient in zip(self.trained, gradients, strict=True):
            variable.assign_sub(0.1 * tf.convert_to_tensor(gradient))
        flat = [tf.reshape(tf.cast(v, tf.float64), [-1]) for v in self.trained]
        self.trail[i].assign(tf.concat(flat, 0))
        self.average.update()

    def raw(self) -> list[Arrays]:
        """The trained weights at each update, and the final value of all others."""
        ends = np.cumsum([v.shape.num_elements() for v in self.trained])[:-1]
        rows = [np.split(row, ends) for row in self.trail.numpy()]
        final = values(self.model)
        paths = sorted(self.averaged)
        return [
            final | {p: part.reshape(final[p].shape).astype(final[p].dtype) for p, part in zip(paths, row, strict=True)}
            for row in rows
        ]


class Herd(keras.Model):
    """Trains all the zoo in one train_step, so that one compilation serves every test of fit."""

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self.members = tuple(members)
        self.at = tf.Variable(0)

    def call(self, x: Any) -> Any:
        return x

    def train_step(self, data: Any) -> dict[str, Any]:
        for member in self.members:
            member.step(self.at)
        self.at.assign_add(1)
        return {}


@pytest.fixture(scope="module", params=[False, True], ids=["fit", "fit under XLA"])
def herd(request: pytest.FixtureRequest) -> tuple[bool, dict[str, Member]]:
    members = [Member(name) for name in NAMES]
    model = Herd(members)
    model.compile(jit_compile=request.param, steps_per_execution=4)
    model.fit(np.zeros((STEPS, 1)), np.zeros((STEPS, 1)), batch_size=1, verbose=0)
    return request.param, {m.name: m for m in members}


@pytest.mark.parametrize("name", NAMES)
def test_update_in_train_step_is_the_numpy_kernel(herd: tuple[bool, dict[str, Member]], name: str) -> None:
    jit, members = herd
    m = members[name]
    raw = m.raw()
    expected = replay(m.average.rule, raw, m.start, m.averaged)
    assert any((raw[0][p] != raw[-1][p]).any() for p in m.averaged), "the training moved nothing"
    if jit:
        assert_close(m.average.values(), expected, m.averaged, STEPS, largest(raw))
    else:
        assert_same_bits(m.average.values(), expected)
    assert m.average.count == STEPS
