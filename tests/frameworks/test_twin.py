"""``ema(x)`` of a tf.Module or a tf_keras model: the copy that it runs keeps up with the settings of the model."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import polyak

ROWS = np.ones((64, 2), np.float32)


class Scale(tf.Module):
    """A factor without a variable."""

    def __init__(self, by: float) -> None:
        super().__init__()
        self.by = by
        self._more = 1.0

    def __call__(self, x: Any) -> Any:
        return x * self.by * self._more


class Net(tf.Module):
    """A weight, a setting, and modules that hold settings alone."""

    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(2.0)
        self.k = 1.0
        self.scale = Scale(1.0)
        self.listed = [Scale(1.0)]

    def __call__(self, x: Any) -> Any:
        return self.listed[0](self.scale(self.w * x * self.k))


def test_settings_of_a_module_and_of_those_within_are_those_of_now() -> None:
    net = Net()
    ema = polyak.track(net, "ema:0.5,start=initial")
    net.w.assign(4.0)
    ema.update()
    assert float(ema(1.0)) == 3.0
    net.k, net.scale.by, net.scale._more, net.listed[0].by = 10.0, 2.0, 3.0, 5.0
    assert (float(ema(1.0)), float(net(1.0))) == (900.0, 1200.0)


def test_modules_that_came_or_went_are_those_of_now() -> None:
    net = Net()
    ema = polyak.track(net, "copy")
    assert float(ema(1.0)) == 2.0
    net.scale = Scale(7.0)
    assert float(ema(1.0)) == 14.0
    net.scale = Net()  # of another class
    net.scale.w = 3.0
    assert float(ema(1.0)) == float(net(1.0)) == 6.0


@pytest.mark.parametrize("make", ["sequential", "functional"])
def test_settings_of_legacy_layers_are_those_of_now(make: str) -> None:
    layers = tf_keras.layers
    inner = [layers.Dropout(0.9), layers.BatchNormalization(), layers.Dense(1)]
    inputs = tf_keras.Input((2,))
    x = inputs
    for layer in inner:
        x = layer(x)
    model = tf_keras.Model(inputs, x) if make == "functional" else tf_keras.Sequential([inputs, *inner])
    ema = polyak.track(model, "copy")
    assert np.std(ema(ROWS, training=True)) > 0
    inner[0].rate = 0.0
    inner[1].trainable = False
    np.testing.assert_array_equal(ema(ROWS, training=True), model(ROWS, training=True))
