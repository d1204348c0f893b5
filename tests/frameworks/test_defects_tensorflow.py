"""K14, K16, K17: what TensorFlow's own tools do with Keras 3 models, and polyak in the same situation."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from keras import layers

import polyak
from polyak.errors import PolyakError, UnbuiltModel

SAMPLE = np.ones((1, 3), np.float32)


def still_fails(defect: str, fails: bool) -> None:
    assert fails, f"Keras or TensorFlow has mended {defect}: update FACTS and the docs"


class Stack(keras.Model):
    """Two layers in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [layers.Dense(3), layers.Dense(3)]

    def call(self, x: Any) -> Any:
        return self.blocks[1](self.blocks[0](x))


class Late(keras.Model):
    """Two layers in attributes; its weights come with its first call."""

    def __init__(self) -> None:
        super().__init__()
        self.one = layers.Dense(3)
        self.two = layers.Dense(3)

    def call(self, x: Any) -> Any:
        return self.two(self.one(x))


def built(cls: Any) -> Any:
    model = cls()
    model(SAMPLE)
    return model


def scrambled(model: Any) -> None:
    model.set_weights([w + 1 for w in model.get_weights()])


def test_k14_tensorflows_average_knows_no_variables_of_keras_3() -> None:
    average = tf.train.ExponentialMovingAverage(0.9)
    failed = False
    try:
        average.apply(built(Late).trainable_variables)
    except AttributeError:
        failed = True
    still_fails("K14", failed)


def test_k14_tensorflows_average_is_in_no_checkpoint() -> None:
    failed = False
    try:
        tf.train.Checkpoint(ema=tf.train.ExponentialMovingAverage(0.9))
    except ValueError:
        failed = True
    still_fails("K14", failed)


def test_k14_polyak_follows_variables_of_keras_3_and_is_in_a_checkpoint(tmp_path: Any) -> None:
    model = built(Late)
    ema = polyak.EMA(model, 0.9, start="copy")
    ema.update()
    scrambled(model)
    ema.update()
    path = tf.train.Checkpoint(ema=ema).write(str(tmp_path / "ckpt"))
    expected = ema.values()
    ema.reset()
    tf.train.Checkpoint(ema=ema).read(path).assert_consumed()
    assert ema.count == 2
    for name, value in ema.values().items():
        np.testing.assert_array_equal(value, expected[name])


def test_k16_keras_models_with_layers_in_lists_are_not_in_their_checkpoint(tmp_path: Any) -> None:
    model = built(Stack)
    before = model.get_weights()
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    scrambled(model)
    after = model.get_weights()
    status = tf.train.Checkpoint(model=model).read(path)
    status.assert_consumed()
    status.assert_existing_objects_matched()
    still_fails("K16", all(np.array_equal(a, b) for a, b in zip(model.get_weights(), after, strict=True)))
    assert not np.array_equal(model.get_weights()[0], before[0])


def test_k16_polyaks_average_brings_every_shadow_and_raw_weight_into_the_checkpoint(tmp_path: Any) -> None:
    model = built(Stack)
    ema = polyak.EMA(model, 0.9, start="copy")
    ema.update()
    before, averaged = model.get_weights(), ema.values()
    path = tf.train.Checkpoint(model=model, ema=ema).write(str(tmp_path / "ckpt"))
    scrambled(model)
    ema.update()
    tf.train.Checkpoint(model=model, ema=ema).read(path).assert_consumed()
    for held, expected in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(held, expected)
    for name, value in ema.values().items():
        np.testing.assert_array_equal(value, averaged[name])


def restored_too_early(tmp_path: Any) -> tuple[Any, Any]:
    model = built(Late)
    path = tf.train.Checkpoint(model=model).write(str(tmp_path / "ckpt"))
    late = Late()
    tf.train.Checkpoint(model=late).read(path)
    late(SAMPLE)
    return model, late


def test_k17_a_restore_before_the_weights_exist_leaves_the_first_kernel_random_and_double(tmp_path: Any) -> None:
    model, late = restored_too_early(tmp_path)
    still_fails("K17", len(late.weights) == 5)
    assert not np.array_equal(late.one.get_weights()[0], model.one.get_weights()[0])


def test_k17_polyak_refuses_a_model_that_was_restored_before_it_was_built(tmp_path: Any) -> None:
    model, late = restored_too_early(tmp_path)
    for attempt in (lambda: polyak.transfer(model, late), lambda: polyak.EMA(late, 0.9), lambda: polyak.snapshot(late)):
        with pytest.raises(PolyakError, match="exists twice") as caught:
            attempt()
        assert "build it first, then restore" in str(caught.value)


def test_k17_polyak_refuses_to_write_into_a_model_without_weights_or_builds_it_first() -> None:
    model, late = built(Late), Late()
    with pytest.raises(UnbuiltModel):
        polyak.transfer(model, late)
    polyak.transfer(model, late, sample=SAMPLE)
    for held, expected in zip(late.get_weights(), model.get_weights(), strict=True):
        np.testing.assert_array_equal(held, expected)
