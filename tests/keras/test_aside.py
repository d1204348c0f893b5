"""Variables in a layer that Keras 3 does not count among the weights: nobody averages them, and that is said."""

from __future__ import annotations

import warnings
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import NotAveraged, NotAWeight
from polyak.frameworks import framework_of
from polyak.keras import Averaging

X = np.ones((4, 3), np.float32)
ON_TORCH = keras.backend.backend() == "torch"


def foreign() -> Any:
    """A variable as the user makes one who knows the framework below Keras."""
    if ON_TORCH:
        import torch

        return torch.nn.Parameter(torch.ones(3))
    import tensorflow as tf

    return tf.Variable(tf.ones(3))


def holder() -> Any:
    """Something that holds one, and is no layer."""
    if ON_TORCH:
        import torch

        return torch.nn.Linear(3, 3)
    import tensorflow as tf

    made = tf.Module()
    made.scale = foreign()
    return made


KIND = "torch.nn.Parameter" if ON_TORCH else "tf.Variable"


class Shift(keras.layers.Layer):
    """A layer with a weight, and whatever else it is given."""

    def __init__(self, **held: Any) -> None:
        super().__init__()
        for name, value in held.items():
            setattr(self, name, value)

    def build(self, shape: Any) -> None:
        self.kernel = self.add_weight(shape=(shape[-1],), name="kernel")
        self.built = True

    def call(self, x: Any) -> Any:
        return x + self.kernel


def model(**held: Any) -> Any:
    return keras.Sequential([keras.Input((3,)), Shift(**held)])


def said(do: Any) -> list[warnings.WarningMessage]:
    with warnings.catch_warnings(record=True) as found:
        warnings.simplefilter("always")
        do()
    return [w for w in found if issubclass(w.category, NotAWeight)]


def test_a_variable_that_is_no_weight_is_said_where_the_average_is_made() -> None:
    made = model(scale=foreign())
    (warning,) = said(lambda: polyak.EMA(made, decay=0.9))
    assert warning.filename == __file__
    words = str(warning.message)
    assert f"'scale' of Shift '{made.layers[0].name}' is a {KIND}" in words
    assert "neither averaged nor handed over" in words
    assert "add_weight" in words


def test_in_lists_and_dictionaries_and_within_models() -> None:
    inner = model(table={"a": [foreign()]})
    outer = keras.Sequential([keras.Input((3,)), inner, Shift()])
    (warning,) = said(lambda: polyak.EMA(outer, decay=0.9))
    assert "'table/a/0' of Shift" in str(warning.message)


def test_what_holds_variables_is_said_once() -> None:
    (warning,) = said(lambda: polyak.EMA(model(inner=[holder()], other=foreign()), decay=0.9))
    assert "and 1 more" in str(warning.message)


def test_a_transfer_says_it_of_the_model_that_is_written() -> None:
    ema = polyak.EMA(model(), decay=0.9, start="initial")
    (warning,) = said(lambda: polyak.transfer(ema, model(scale=foreign())))
    assert "'scale' of Shift" in str(warning.message)


def test_a_model_that_is_built_later_says_it_then() -> None:
    made = keras.Sequential([Shift(scale=foreign())])
    averages: list[Any] = []
    assert not said(lambda: averages.append(polyak.EMA(made, decay=0.9)))
    made(X)
    assert len(said(averages[0].update)) == 1
    assert not said(averages[0].update)


def test_weights_say_nothing() -> None:
    held: list[Any] = [np.ones(3), "text", keras.Variable(np.ones(3)), keras.layers.Dense(2), keras.metrics.Mean()]
    for value in held:
        made = model(other=value)
        assert not said(lambda made=made: polyak.EMA(made, decay=0.9)), value
        assert not said(lambda made=made: polyak.transfer(polyak.EMA(made, decay=0.9), made)), value


def test_fit_says_it_once() -> None:
    made = model(scale=foreign())
    made.compile("sgd", "mse")
    averaging = Averaging("ema:0.9")
    found = said(lambda: made.fit(X, X, epochs=2, verbose=0, callbacks=[averaging]))
    assert len(found) == 1


@pytest.mark.skipif(not ON_TORCH, reason="modules of PyTorch are layers there alone")
def test_a_module_that_keras_wraps_is_a_weight() -> None:
    import torch

    wrapped = keras.layers.TorchModuleWrapper(torch.nn.Linear(3, 3))
    made = keras.Sequential([keras.Input((3,)), wrapped])
    made(X)
    assert wrapped.weights
    assert not framework_of(made).aside(made)


class Turning(keras.layers.Layer):
    """A layer that trains a complex weight."""

    def build(self, shape: Any) -> None:
        self.turn = self.add_weight(shape=(3,), dtype="complex64", initializer="ones", name="turn")
        self.scale = self.add_weight(shape=(3,), initializer="ones", name="scale")

    def call(self, x: Any) -> Any:
        return x * self.scale


def test_a_complex_weight_that_is_trained_is_said_to_be_copied() -> None:
    made = Turning(name="turning", autocast=False)
    made.build((None, 3))
    with pytest.warns(NotAveraged, match=r"'turn' is of complex numbers: it is copied at each update"):
        ema = polyak.EMA(made, decay=0.5, start="initial")
    made.turn.assign(made.turn * 3)
    made.scale.assign(made.scale * 3)
    ema.update()
    values = ema.values()
    assert (values["turn"].tolist(), values["scale"].tolist()) == ([3 + 0j] * 3, [2.0] * 3)


def test_a_complex_weight_that_is_meant_to_be_copied_is_not_spoken_of() -> None:
    made = Turning(autocast=False)
    made.build((None, 3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.EMA(made, decay=0.5, kinds={"turn": "counter"})
    made.turn.trainable = False
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.EMA(made, decay=0.5)
