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
def test_an_average_follows_them_while_they_stay_as_they_are(shape: Any) -> None:
    made = module(shape, [1.0, 2.0])
    average = polyak.track(made, "ema:0.5,start=initial")
    made.known.assign([3.0, 4.0])
    made.kernel.assign([[2.0]])
    average.update()
    np.testing.assert_array_equal(average.values()["known"], [2.0, 3.0])
    assert "2 weights averaged" in repr(average)
    made.known.assign([3.0, 4.0, 5.0])
    made.kernel.assign([[9.0]])
    with pytest.raises(ModelError, match=r"weight 'known': expected the shape \(2,\) .*, received \(3,\)\n.*None"):
        average.update()
    assert average.count == 1
    np.testing.assert_array_equal(average.values()["kernel"], [[1.5]])


def test_one_that_is_left_out_may_change() -> None:
    made = module([None], [1.0, 2.0])
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


@pytest.mark.parametrize("compiled", [False, True], ids=["plainly", "by XLA"])
@pytest.mark.parametrize("now", [[7.0], [3.0, 4.0, 5.0]], ids=["shorter", "longer"])
def test_a_traced_update_moves_nothing_where_one_has_another_shape_now(now: list[float], compiled: bool) -> None:
    made = module(None, [1.0, 2.0])
    average = polyak.track(made, "ema:0.5,start=initial")
    update = tf.function(average.update, jit_compile=compiled)
    made.known.assign([3.0, 4.0])
    made.kernel.assign([[2.0]])
    update()
    made.known.assign(now)
    made.kernel.assign([[9.0]])
    with pytest.raises(tf.errors.InvalidArgumentError, match=r"(?s)expected shape \[2\].*known_has_the_shape_of_its"):
        update()
    assert average.count == 1
    assert average.values()["kernel"].tolist() == [[1.5]]
    assert average.values()["known"].tolist() == [2.0, 3.0]
