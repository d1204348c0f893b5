"""A target network in tf.function: forward pass, soft update and copies, traced once; and of a tf.Module."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from tests.frameworks.zoo import assert_same_bits, values

import polyak
from polyak.averaging.kernel import lerp
from polyak.errors import UnbuiltModel


class Line(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable([[1.0], [2.0]])
        self.b = tf.Variable([0.5])
        self.steps = tf.Variable(0, trainable=False)

    def __call__(self, x: Any) -> tf.Tensor:
        return x @ self.w + self.b


@pytest.mark.parametrize("jit", [False, True])
def test_a_step_in_a_graph_trains_against_the_target_and_moves_it(jit: bool) -> None:
    online = Line()
    target = polyak.Target(online, tau=0.25)
    traces = []

    @tf.function(jit_compile=jit)
    def step(x: tf.Tensor) -> None:
        traces.append(x)
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((online(x) - target(x) - 1.0) ** 2)
        weights = [online.w, online.b]
        for weight, gradient in zip(weights, tape.gradient(loss, weights), strict=True):
            weight.assign_sub(0.1 * gradient)
        target.update()

    expected = {"w": online.w.numpy(), "b": online.b.numpy()}
    for n in range(5):
        step(tf.fill((4, 2), float(n)))
        expected = {path: lerp(expected[path], getattr(online, path).numpy(), 0.25) for path in expected}
    assert len(traces) == 1
    assert target.count == 5
    assert_same_bits({p: a for p, a in target.values().items() if p in expected}, expected)


def test_copies_at_an_interval_happen_in_the_graph() -> None:
    online = Line()
    target = polyak.Target(online, "copy,every=3")
    update = tf.function(target.update)
    for n in range(1, 8):
        online.b.assign([float(n)])
        update()
        assert target.values()["b"] == (0.5 if n < 3 else n // 3 * 3)


def test_a_tape_finds_no_way_from_the_target_to_the_model() -> None:
    online = Line()
    target = polyak.Target(online, tau=0.25)
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(target(tf.ones((1, 2))))
    assert tape.gradient(loss, [online.w, online.b]) == [None, None]
    assert not [v for v in target.shadows.values() if v.trainable]


def test_a_checkpoint_of_tensorflow_keeps_a_target(tmp_path: Any) -> None:
    online, other = Line(), Line()
    target, second = polyak.Target(online, tau=0.25), polyak.Target(other, tau=0.25)
    online.w.assign_add([[1.0], [1.0]])
    target.update()
    path = tf.train.Checkpoint(online=online, target=target).save(str(tmp_path / "run"))
    tf.train.Checkpoint(online=other, target=second).restore(path).assert_consumed()
    assert_same_bits(second.values(), target.values())
    assert second.count == 1


def test_hard_sync_copies_all_and_says_what() -> None:
    online = Line()
    target = polyak.Target(online, tau=0.25)
    online.w.assign_add([[1.0], [1.0]])
    target.update()
    receipt = target.hard_sync()
    assert {m.target for m in receipt.moved} == {"w", "b", "steps"}
    assert_same_bits(target.values(), values(online))
    assert target.count == 0
    assert np.array_equal(target(tf.ones((1, 2))), online(tf.ones((1, 2))))


def test_a_module_without_weights_is_refused() -> None:
    with pytest.raises((UnbuiltModel, polyak.errors.ModelError)):
        polyak.Target(tf.Module(), tau=0.25)
