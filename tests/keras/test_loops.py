"""Who calls a model's functions while ``fit`` runs: other callbacks that evaluate or train, and loops of one's own."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest

import polyak.keras
from polyak.errors import ModelError

X = np.random.default_rng(0).normal(size=(32, 4)).astype("float32")
Y = X.sum(axis=1, keepdims=True)
STEPS, EPOCHS = 4, 3


def network() -> Any:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    return model


class Busy(keras.callbacks.Callback):
    """Uses the model at the end of each epoch."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.verb = verb
        self.found: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        if self.verb == "evaluate":
            self.found.append(self.model.evaluate(X, Y, verbose=0))
        elif self.verb == "predict":
            self.found.append(self.model.predict(X, verbose=0))
        else:
            self.model.train_on_batch(X[:8], Y[:8])


@pytest.mark.parametrize("first", [True, False])
@pytest.mark.parametrize("verb", ["evaluate", "predict", "train_on_batch"])
def test_another_callback_that_uses_the_model_takes_nothing_away(verb: str, first: bool) -> None:
    model, averaging, busy = network(), polyak.keras.Averaging("ema:0.9", evaluate="both"), Busy(verb)
    callbacks = [averaging, busy] if first else [busy, averaging]
    asked: Any = {"batch_size": 8, "epochs": EPOCHS, "verbose": 0, "validation_data": (X, Y)}
    history = model.fit(X, Y, **asked, callbacks=callbacks).history
    assert averaging.average.count == STEPS * EPOCHS
    names = ("loss", "val_loss", "val_average_loss")
    assert {name: len(values) for name, values in history.items()} == dict.fromkeys(names, EPOCHS)
    if verb == "evaluate":  # what it sees are the raw weights
        np.testing.assert_allclose(busy.found, history["val_loss"], rtol=1e-6)
    assert not {"evaluate", "train_function"} & {n for n, v in vars(model).items() if type(v).__name__ == "Stand"}


class OwnLoop(keras.Model):
    """A model with a fit of its own, as older programs have it."""

    def __init__(self, step: str) -> None:
        super().__init__()
        self.dense = keras.layers.Dense(1)
        self.step = step

    def call(self, inputs: Any) -> Any:
        return self.dense(inputs)

    def fit(self, callbacks: Any) -> None:
        if self.step == "made":
            self.make_train_function()
        listed = keras.callbacks.CallbackList(callbacks, model=self)
        listed.on_train_begin()
        for epoch in range(EPOCHS):
            listed.on_epoch_begin(epoch)
            listed.on_epoch_end(epoch, {})
        listed.on_train_end()


@pytest.mark.parametrize("step", ["none", "made"])
def test_a_loop_that_is_not_kerass_is_refused_and_not_passed_over_in_silence(step: str) -> None:
    model = OwnLoop(step)
    model(X)
    model.compile(keras.optimizers.SGD(0.02), "mse")
    with pytest.raises(ModelError, match="expected Keras' own loop") as error:
        model.fit([polyak.keras.Averaging("ema:0.9")])
    assert "update()" in str(error.value)
