"""Who calls a model's functions while ``fit`` runs: other callbacks that evaluate or train, and loops of one's own."""

from __future__ import annotations

import gc
import weakref
from typing import Any

import keras
import numpy as np
import pytest

import polyak.keras
from polyak.errors import BegunLate, ModelError

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


@pytest.mark.parametrize("steps", [1, 3])
def test_a_loop_of_ones_own_that_calls_the_hooks_of_batches_is_refused(steps: int) -> None:
    """It trains by ``train_on_batch``, and the average would stand still."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    model.train_on_batch(X, Y)
    listed = keras.callbacks.CallbackList([polyak.keras.Averaging("ema:0.9")], model=model)
    trained = []

    def train() -> None:
        listed.on_train_begin()
        for step in range(steps):
            listed.on_train_batch_begin(step)
            trained.append(model.train_on_batch(X, Y))
            listed.on_train_batch_end(step)
        listed.on_train_end()

    with pytest.warns(BegunLate), pytest.raises(ModelError, match="expected Keras' own loop"):
        train()
    assert len(trained) == 1
    assert isinstance(model.train_on_batch(X, Y), (float, np.floating, np.ndarray))


def test_a_callback_that_another_one_calls_is_told_to_be_put_into_the_list() -> None:
    class Group(keras.callbacks.Callback):
        def __init__(self, *members: Any) -> None:
            super().__init__()
            self.members = members

        def set_model(self, model: Any) -> None:
            super().set_model(model)
            for member in self.members:
                member.set_model(model)

        def on_train_begin(self, logs: Any = None) -> None:
            for member in self.members:
                member.on_train_begin(logs)

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.02), "mse")
    for others in ((), (polyak.keras.Averaging("ema:0.9", name="listed"),)):
        with pytest.raises(ModelError, match=r"put polyak\.keras\.Averaging itself into fit"):
            model.fit(X, Y, verbose=0, callbacks=[Group(polyak.keras.Averaging("ema:0.5")), *others])


class Looks(keras.callbacks.Callback):
    """Uses one of several averages in the middle of fit."""

    def __init__(self, verb: str, chosen: list[Any]) -> None:
        super().__init__()
        self.use = verb
        self.chosen = chosen

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.predict(X, verbose=0, callbacks=self.chosen)
        self.model.evaluate(X, Y, verbose=0, callbacks=self.chosen)

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if batch == 1 and self.use == "batches":
            self.on_epoch_end(0)


@pytest.mark.parametrize("chosen", [0, 1])
@pytest.mark.parametrize("when", ["epochs", "batches"])
def test_all_averages_move_on_where_another_callback_evaluates_with_one_of_them(when: str, chosen: int) -> None:
    def counted(*others: Any) -> list[Any]:
        averagings = [
            polyak.keras.Averaging("ema:0.9,start=copy", name="slow", evaluate="average"),
            polyak.keras.Averaging("mean", name="mean"),
        ]
        between = [other(averagings) for other in others]
        callbacks = [averagings[0], *between, averagings[1]]
        network().fit(X, Y, 8, EPOCHS, verbose=0, shuffle=False, callbacks=callbacks)
        return [a.average for a in averagings]

    moved = counted(lambda averagings: Looks(when, [averagings[chosen]]))
    for found, expected in zip(moved, counted(), strict=True):
        assert found.count == STEPS * EPOCHS
        for path, value in expected.values().items():
            np.testing.assert_array_equal(found.values()[path], value)


class Trains(keras.callbacks.Callback):
    """Trains in the middle of fit."""

    def __init__(self, with_callback: Any) -> None:
        super().__init__()
        self.with_callback = with_callback

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.model.fit(X, Y, 8, verbose=0, callbacks=[self.with_callback()])


def test_a_fit_within_a_fit_has_a_callback_of_its_own() -> None:
    model, averaging = network(), polyak.keras.Averaging("ema:0.9,start=copy")
    same = Trains(lambda: averaging)
    with pytest.raises(ModelError, match="expected one fit at a time, received one within another") as error:
        model.fit(X, Y, 8, EPOCHS, verbose=0, callbacks=[averaging, same])
    assert averaging.average.count == STEPS
    assert "a callback of its own that moves the same average: polyak.keras.Averaging(averaging.average)" in str(
        error.value.hint
    )
    own = Trains(lambda: polyak.keras.Averaging(averaging.average))
    callbacks = keras.callbacks.CallbackList([averaging, own], model=model)
    model.fit(X, Y, 8, EPOCHS, verbose=0, callbacks=callbacks)
    assert averaging.average.count == STEPS + 2 * STEPS * EPOCHS


@pytest.mark.parametrize("first", [True, False])
def test_an_average_may_be_begun_anew_in_the_middle_of_fit(first: bool) -> None:
    averaging = polyak.keras.Averaging("ema:0.9,start=copy")
    anew = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: averaging.average.reset())
    network().fit(X, Y, 8, EPOCHS, verbose=0, callbacks=[anew, averaging] if first else [averaging, anew])
    assert averaging.average.count == 0


@pytest.mark.parametrize("first", [True, False])
def test_a_train_function_that_is_made_anew_between_two_epochs_moves_the_average_too(first: bool) -> None:
    model, averaging = network(), polyak.keras.Averaging("ema:0.9")
    anew = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: model.make_train_function(force=True))
    callbacks = [anew, averaging] if first else [averaging, anew]
    model.fit(X, Y, 8, EPOCHS, verbose=0, callbacks=callbacks)
    assert averaging.average.count == STEPS * EPOCHS


def test_a_model_that_its_first_step_builds_is_followed() -> None:
    model, averaging = keras.Sequential([keras.layers.Dense(1)]), polyak.keras.Averaging("mean", evaluate="both")
    model.compile(keras.optimizers.SGD(0.02), "mse")
    held: list[Any] = []
    record = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: held.append(weights(record)))
    model.fit(X, Y, 8, EPOCHS, verbose=0, callbacks=[averaging, record], validation_data=(X, Y))
    assert averaging.average.count == STEPS * EPOCHS
    for found, values in zip(averaging.average.values().values(), zip(*held, strict=True), strict=True):
        np.testing.assert_allclose(found, np.mean(values, axis=0), rtol=1e-5)


def weights(callback: Any) -> list[Any]:
    """What the model of a callback holds; between two steps on JAX it is asked by way of the callback."""
    return [np.array(w, np.float64) for w in callback.model.get_weights()]


def test_fit_keeps_nothing_alive_that_its_caller_lets_go() -> None:
    class Dataset:
        """What a caller has beside the model."""

    def trained(callbacks_of_fit: list[Any]) -> bool:
        beside = Dataset()
        kept = weakref.ref(beside)
        network().fit(X, Y, 8, 1, verbose=0, callbacks=callbacks_of_fit)
        del beside
        gc.collect()
        return kept() is None

    assert trained([polyak.keras.Averaging("ema:0.9")])
