"""Validation with both sets of weights: each pass sees all the data and what layers remember, and leaves no trace."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest

from polyak.errors import ModelError
from polyak.keras import Averaging

DICE = np.random.default_rng(0)
X = DICE.standard_normal((16, 5, 3)).astype("float32")
Y = X[:, -1, :1].copy()
LAYERS = {
    "simple": lambda: keras.layers.SimpleRNN(4, stateful=True),
    "lstm": lambda: keras.layers.LSTM(4, stateful=True),
    "both directions": lambda: keras.layers.Bidirectional(keras.layers.GRU(2, stateful=True)),
}
if keras.backend.backend() == "torch":
    LAYERS = {"simple": LAYERS["simple"]}  # Keras itself cannot train the others there


def model(kind: str) -> Any:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input(batch_shape=(4, 5, 3)), LAYERS[kind](), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.3), "mse")
    return made


def fitted(made: Any, *callbacks: Any) -> Any:
    return made.fit(
        X, Y, 4, 3, verbose=0, shuffle=False, validation_data=(X[:8], Y[:8]), callbacks=list(callbacks)
    ).history


def states(made: Any) -> list[bytes]:
    layers = [x for x in made._flatten_layers() if isinstance(x, keras.layers.RNN)]
    return [keras.ops.convert_to_numpy(s).tobytes() for x in layers for s in keras.tree.flatten(x.states)]


@pytest.mark.parametrize("kind", LAYERS)
def test_a_second_pass_changes_nothing_of_what_recurrent_layers_remember_for_training(kind: str) -> None:
    alone, averaged = model(kind), model(kind)
    plain = fitted(alone)
    both = fitted(averaged, Averaging("ema:0.5", evaluate="both"))
    assert {name: both[name] for name in plain} == plain
    assert all((a == b).all() for a, b in zip(alone.get_weights(), averaged.get_weights(), strict=True))
    assert states(alone) == states(averaged)


@pytest.mark.parametrize("kind", LAYERS)
def test_both_passes_begin_with_what_the_layers_remember_of_the_training(kind: str) -> None:
    """An average that copies is the raw weights: its pass must say what theirs says, to the last bit."""
    told = fitted(model(kind), Averaging("copy", evaluate="both"))
    assert told["val_average_loss"] == told["val_loss"]


def test_metrics_of_the_model_are_those_of_keras_own_pass() -> None:
    keras.utils.set_random_seed(3)
    made = keras.Sequential([keras.Input((5, 3)), keras.layers.Flatten(), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.1), "mse", metrics=["mae"])
    seen = []
    look = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: seen.append(made.get_metrics_result()))
    history = fitted(made, look, Averaging("mean", evaluate="both"))
    for name in ("loss", "mae"):
        assert [float(found[name]) for found in seen] == history[f"val_{name}"] != history[f"val_average_{name}"]


class Noise(keras.layers.Layer):
    """Noise in every pass, as in an autoencoder that draws from its code."""

    def __init__(self) -> None:
        super().__init__()
        self.seeds = keras.random.SeedGenerator(7)

    def call(self, x: Any) -> Any:
        return x + keras.random.normal(keras.ops.shape(x), seed=self.seeds)


def test_noise_that_is_drawn_in_a_second_pass_is_drawn_again() -> None:
    """A rule that leaves out all but a layer leaves out the seeds."""

    def noisy() -> Any:
        keras.utils.set_random_seed(3)
        made = keras.Sequential([keras.Input((5, 3)), Noise(), keras.layers.Flatten(), keras.layers.Dense(1, name="d")])
        made.compile(keras.optimizers.SGD(0.01), "mse")
        return made

    alone, averaged = noisy(), noisy()
    plain = fitted(alone)
    both = fitted(averaged, Averaging({"d/*": "copy", "*": None}, evaluate="both"))
    assert {name: both[name] for name in plain} == plain
    assert both["val_average_loss"] == both["val_loss"]
    assert all((a == b).all() for a, b in zip(alone.get_weights(), averaged.get_weights(), strict=True))


def test_a_generator_is_refused_before_anything_moves_where_it_would_be_read_twice() -> None:
    def once() -> Iterator[Any]:
        yield X[:4], Y[:4]
        yield X[4:8], Y[4:8]

    made = model("simple")
    before = made.get_weights()
    for data in (once(), (once(),)):
        with pytest.raises(ModelError, match="read twice, received a generator") as told:
            made.fit(X, Y, 4, verbose=0, validation_data=data, callbacks=[Averaging("copy", evaluate="both")])
        assert "tf.data.Dataset" in str(told.value)
    assert all((a == b).all() for a, b in zip(before, made.get_weights(), strict=True))
    for evaluate in ("raw", "average"):
        averaging = Averaging("copy", evaluate=evaluate)
        assert "val_loss" in made.fit(X, Y, 4, verbose=0, validation_data=once(), callbacks=[averaging]).history
