"""A model's own functions of Keras' trainer: the callback goes through them, or refuses them at the start."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import ModelError
from polyak.keras import Averaging

BACKEND = keras.backend.backend()
RULE = "ema:0.9,start=copy"
X = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
Y = X[:, :1].copy()


class Plain(keras.Model):
    """A model whose functions note that they were made or called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1)
        self.noted: set[str] = set()

    def call(self, x: Any) -> Any:
        return self.layer(x)

    def noting(self, word: str, made: Any) -> Any:
        """A function that notes the word and calls what Keras has made."""

        def function(*args: Any) -> Any:
            self.noted.add(word)
            return made(*args)

        return function


class Through(Plain):
    """Makes Keras' function and calls it from one of its own."""

    def make_train_function(self, force: bool = False) -> Any:
        if self.train_function is not None and not force:
            return self.train_function
        super().make_train_function(force)
        self.train_function = self.noting("train", self.train_function)
        return self.train_function


class Unforced(Through):
    """Knows no ``force``, as code that was written for Keras' fit alone."""

    def make_train_function(self) -> Any:
        return super().make_train_function()


class Around(Plain):
    """Goes around ``train_step``."""

    def make_train_function(self, force: bool = False) -> Any:
        theirs, self.train_step = self.train_step, self.my_step
        try:
            super().make_train_function(True)
        finally:
            self.train_step = theirs

    def my_step(self, *args: Any) -> Any:
        return type(self).train_step(self, *args)


class Others(Plain):
    """Has the other loops of its own, each through Keras'."""

    def fit(self, *args: Any, **kwargs: Any) -> Any:
        self.noted.add("fit")
        return super().fit(*args, **kwargs)

    def evaluate(self, *args: Any, **kwargs: Any) -> Any:
        self.noted.add("evaluate")
        found = super().evaluate(*args, **kwargs)
        return {**found, "twice": 2 * found["loss"]} if kwargs.get("return_dict") else found

    def train_on_batch(self, *args: Any, **kwargs: Any) -> Any:
        self.noted.add("train_on_batch")
        return super().train_on_batch(*args, **kwargs)

    def make_test_function(self, force: bool = False) -> Any:
        if self.test_function is not None and not force:
            return self.test_function
        super().make_test_function(force)
        self.test_function = self.noting("test", self.test_function)
        return self.test_function


def compiled(made: Any) -> Any:
    keras.utils.set_random_seed(0)
    made(X[:1])
    made.compile(keras.optimizers.SGD(0.05), "mse")
    return made


class Steps(keras.callbacks.Callback):
    """The weights after each step, wide."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if BACKEND == "jax":
            self.model.jax_state_sync()
        self.steps.append([np.array(w, np.float64) for w in self.model.get_weights()])

    def average(self) -> list[np.ndarray]:
        average = self.steps[0]
        for step in self.steps[1:]:
            average = [0.9 * a + 0.1 * w for a, w in zip(average, step, strict=True)]
        return average


def fit(made: Any, *callbacks: Any, **more: Any) -> Any:
    return made.fit(X, Y, 8, 2, verbose=0, shuffle=False, callbacks=list(callbacks), **more).history


class Within(keras.callbacks.Callback):
    """Something done once, within the first epoch."""

    def __init__(self, act: Callable[[], Any]) -> None:
        super().__init__()
        self.act = act

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if self.act is not None and batch == 0:
            self.act = self.act()


def assert_averaged(averaging: Averaging, steps: Steps) -> None:
    assert averaging.average.count == len(steps.steps) == 6
    for found, expected in zip(averaging.average.values().values(), steps.average(), strict=True):
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", [Through, Unforced])
def test_a_train_function_of_ones_own_is_gone_through_or_refused(kind: Any) -> None:
    made, averaging, steps = compiled(kind()), Averaging(RULE), Steps()
    before = [np.array(w) for w in made.get_weights()]
    if BACKEND == "jax":
        with pytest.raises(ModelError, match=rf"{kind.__name__}: expected Keras' own make_train_function") as error:
            fit(made, averaging, steps)
        assert "train_step" in str(error.value)
        assert all(np.array_equal(a, b) for a, b in zip(made.get_weights(), before, strict=True))
        assert not steps.steps
    else:
        fit(made, averaging, steps)
        assert made.noted == {"train"}
        assert_averaged(averaging, steps)


def test_a_train_function_that_goes_around_the_train_step_is_no_silence() -> None:
    made, averaging, steps = compiled(Around()), Averaging(RULE), Steps()
    if BACKEND == "torch":
        fit(made, averaging, steps)
        assert_averaged(averaging, steps)
    else:
        with pytest.raises(ModelError, match="make_train_function"):
            fit(made, averaging, steps)
        assert len(steps.steps) == 0


def test_a_train_function_that_was_set_is_called_or_refused() -> None:
    made, averaging, steps = compiled(Plain()), Averaging(RULE), Steps()
    made.make_train_function()
    keras_own, called = made.train_function, []

    def function(*args: Any) -> Any:
        called.append(1)
        return keras_own(*args)

    made.train_function = function
    if BACKEND == "torch":
        fit(made, averaging, steps)
        assert len(called) == 6
        assert_averaged(averaging, steps)
    else:
        with pytest.raises(ModelError, match="expected the train_function that Keras makes, received one that was set"):
            fit(made, averaging, steps)
        fit(made)
        assert len(called) == 6


def test_a_fit_that_was_broken_off_takes_nothing_from_the_next_callback() -> None:
    made = compiled(Plain())

    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("broken off")

    with pytest.raises(RuntimeError, match="broken off"):
        fit(made, Averaging(RULE), keras.callbacks.LambdaCallback(on_train_batch_begin=broken))
    averaging, steps = Averaging(RULE), Steps()
    fit(made, averaging, steps)
    assert_averaged(averaging, steps)


def test_the_other_loops_of_ones_own_are_gone_through() -> None:
    made, averaging, steps = compiled(Others()), Averaging(RULE, evaluate="both"), Steps()
    history = fit(made, averaging, steps, validation_data=(X, Y))
    assert made.noted == {"fit", "evaluate", "test"}
    assert_averaged(averaging, steps)
    with averaging.average.applied():
        loss = float(np.mean((made.predict(X, verbose=0) - Y) ** 2))
    assert history["val_average_loss"][-1] == pytest.approx(loss, rel=1e-5)
    assert history["val_average_twice"][-1] == pytest.approx(2 * loss, rel=1e-5)
    made.train_on_batch(X, Y)
    assert averaging.average.count == 6


def test_evaluate_and_predict_with_the_average_go_through_functions_of_ones_own() -> None:
    made, averaging = compiled(Others()), Averaging(RULE, evaluate="average")
    fit(made, averaging)
    made.noted.clear()
    found = made.evaluate(X, Y, verbose=0, callbacks=[averaging])
    assert made.noted == {"evaluate", "test"}
    expected = compiled(Plain())
    polyak.transfer(averaging.average, expected)
    assert found == pytest.approx(expected.evaluate(X, Y, verbose=0), rel=1e-6)


@pytest.mark.parametrize("first", [False, True], ids=["behind", "before"])
def test_a_train_function_that_is_made_anew_within_an_epoch_is_followed(first: bool) -> None:
    made, averaging, steps = compiled(Plain()), Averaging(RULE), Steps()
    anew = Within(lambda: made.make_train_function(force=True))
    fit(made, *([anew, averaging] if first else [averaging, anew]), steps)
    assert_averaged(averaging, steps)


def test_a_rule_that_is_changed_within_an_epoch_holds_from_the_next_batch() -> None:
    made, averaging, steps = compiled(Plain()), Averaging(RULE), Steps()
    fit(made, averaging, Within(lambda: averaging.average.change_rule("ema:0.5,start=copy")), steps)
    for at, found in enumerate(averaging.average.values().values()):
        expected = steps.steps[0][at]
        for step in steps.steps[1:]:
            expected = 0.5 * expected + 0.5 * step[at]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)
