"""Variables of TensorFlow that may take values of several shapes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf

import polyak
from polyak.errors import ModelError

SHAPES = pytest.mark.parametrize("shape", [None, [None]], ids=["of any rank", "of any length"])


def module(shape: Any, values: list[float]) -> tf.Module:
    made = tf.Module()
    made.known = tf.Variable(values, shape=tf.TensorShape(shape), name="known")
    made.kernel = tf.Variable([[1.0]], name="kernel")
    return made


@SHAPES
def test_they_are_saved_and_transferred_as_they_are_now(shape: Any, tmp_path: Path) -> None:
    source, target = module(shape, [1.0, 2.0, 3.0]), module(shape, [0.0, 0.0, 0.0])
    polyak.save(source, tmp_path / "m.safetensors")
    assert polyak.open(tmp_path / "m.safetensors").manifest.weights[-1].weight.shape == (3,)
    polyak.transfer(source, target)
    np.testing.assert_array_equal(target.known.numpy(), [1.0, 2.0, 3.0])


@SHAPES
def test_an_average_refuses_them_unless_they_are_left_out(shape: Any) -> None:
    made = module(shape, [1.0, 2.0])
    with pytest.raises(ModelError, match=r"weight 'known': expected one shape .*\n.*\"known\": None"):
        polyak.track(made, "ema:0.9")
    average = polyak.track(made, {"known": None, "*": "ema:0.9"})
    made.known.assign([1.0, 2.0, 3.0])
    average.update()
    assert average.count == 1


def test_in_a_function_their_shape_is_unknown() -> None:
    made = module(None, [1.0])

    @tf.function(autograph=False)
    def step() -> None:
        polyak.track(made, {"known": None, "*": "ema:0.9"})

    with pytest.raises(ModelError, match="weight 'known': expected a shape, received one that is unknown while"):
        step()
