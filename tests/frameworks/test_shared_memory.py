"""After a transfer variables of TensorFlow share memory; whichever is written first, in any way, leaves the other."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tests.frameworks.zoo import assert_same_bits, values

import polyak
from polyak.frameworks.hand_over import model_target
from polyak.frameworks.tensorflow_target import Variables
from polyak.memory import LARGE

ROWS = LARGE // 64  # a megabyte in all


class Table(tf.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        numbers = np.random.default_rng(seed)
        self.rows = tf.Variable(numbers.normal(size=(ROWS, 16)), dtype=tf.float32)
        self.half = tf.Variable(numbers.normal(size=(ROWS, 2)), dtype=tf.bfloat16)
        self.bias = tf.Variable(numbers.normal(size=3), dtype=tf.float32)


def _within(jit: bool, write: Callable[[Any], object]) -> Callable[[Any], object]:
    def call(variable: Any) -> None:
        def step() -> None:
            write(variable)

        tf.function(step, jit_compile=jit, autograph=False)()

    return call


def _added(variable: Any) -> object:
    return variable.assign_add(tf.ones_like(variable))


def _replaced(variable: Any) -> object:
    return variable.assign(tf.zeros_like(variable))


def _one_row(variable: Any) -> object:
    return variable.scatter_update(tf.IndexedSlices(tf.ones_like(variable[:1]), [0]))


def _sliced(variable: Any) -> object:
    return variable[1:2].assign(tf.ones_like(variable[1:2]))


def _by_row(variable: Any) -> object:
    return variable.scatter_nd_add([[0]], tf.ones_like(variable[:1]))


def _trained(optimizer: Callable[[], Any]) -> Callable[[Any], object]:
    def write(variable: Any) -> object:
        known = keras.Variable(tf.zeros_like(variable), dtype=variable.dtype.name)
        known._value = variable  # the optimizer writes into the variable itself
        optimizer().apply([tf.ones_like(variable)], [known])
        return None

    return write


def _sparsely(variable: Any) -> object:
    raw = tf.raw_ops
    return raw.ResourceSparseApplyAdagradV2(
        var=variable.handle,
        accum=tf.Variable(tf.ones_like(variable)).handle,
        lr=tf.constant(0.1, variable.dtype),
        epsilon=tf.constant(0.1, variable.dtype),
        grad=tf.ones_like(variable[:1]),
        indices=[0],
    )


WAYS: dict[str, Callable[[Any], object]] = {
    "assign_add": _added,
    "assign_add in a graph": _within(False, _added),
    "assign_add under XLA": _within(True, _added),
    "assign": _replaced,
    "assign under XLA": _within(True, _replaced),
    "scatter_update": _one_row,
    "scatter_update in a graph": _within(False, _one_row),
    "scatter_update under XLA": _within(True, _one_row),
    "scatter_nd_add": _by_row,
    "a slice": _sliced,
    "a slice in a graph": _within(False, _sliced),
    "Adam": _trained(lambda: keras.optimizers.Adam(0.1, beta_2=0.9)),
    "SGD with momentum": _trained(lambda: keras.optimizers.SGD(0.1, momentum=0.9)),
    "sparse Adagrad": _sparsely,
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("written", ["source", "target"])
def test_a_write_on_one_side_leaves_the_other(way: str, written: str) -> None:
    models = {"source": Table(0), "target": Table(1)}
    polyak.transfer(models["source"], models["target"])
    before = values(models["source"])
    assert_same_bits(values(models["target"]), before)
    (other,) = set(models) - {written}
    for variable in models[written].variables:
        WAYS[way](variable)
    assert_same_bits(values(models[other]), before)
    changed = values(models[written])
    assert all(changed[path].tobytes() != before[path].tobytes() for path in before)


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_an_update_of_the_average_leaves_the_model_that_was_given_it(mode: str) -> None:
    trained, other = Table(0), Table(1)
    ema = polyak.EMA(trained, 0.5)
    polyak.transfer(ema, other)
    given = values(other)
    for variable in trained.variables:
        variable.assign(tf.ones_like(variable))
    {"eager": ema.update, "graph": tf.function(ema.update), "xla": tf.function(ema.update, jit_compile=True)}[mode]()
    assert_same_bits(values(other), given)
    assert not np.array_equal(ema.values()["rows"], given["rows"])


def test_whole_tensors_are_shared_and_parts_are_not() -> None:
    source, target = Table(0), Table(1)
    polyak.transfer(source, target)
    one, other = (_seen(model) for model in (source, target))
    for path in ("rows", "half", "bias"):
        assert one.view(path).ctypes.data == other.view(path).ctypes.data
    part = one.view("rows")[:5]
    other.variables["part"] = tf.Variable(tf.zeros((5, 16)))
    other.write("part", part)
    assert other.view("part").ctypes.data != part.ctypes.data
    assert np.array_equal(other.variables["part"], part)


def test_a_transfer_that_fails_late_leaves_both(monkeypatch: pytest.MonkeyPatch) -> None:
    source, target = Table(0), Table(1)
    before, kept = values(source), values(target)
    monkeypatch.setattr(import_module("polyak.transfer.commit"), "_verify", _fail)
    with pytest.raises(MemoryError):
        polyak.transfer(source, target)
    assert_same_bits(values(target), kept)
    _added(target.rows)
    assert_same_bits(values(source), before)


def _fail(*_: Any) -> None:
    raise MemoryError


def _seen(model: Any) -> Variables:
    seen = model_target(model)
    assert isinstance(seen, Variables)
    return seen
