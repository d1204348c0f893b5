"""The callback where users err, or Keras surprises: nothing is overwritten, mixed up or left standing in silence."""

from __future__ import annotations

import ast
import re
import types
import warnings
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import Applied, ModelError, WeightsChanged
from polyak.keras import Averaging, SwitchEMA

RULE = "ema:0.9,start=copy"
X = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
Y = X[:, :1].copy()


def model(optimizer: Any = None, seed: int = 0) -> Any:
    keras.utils.set_random_seed(seed)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.05) if optimizer is None else optimizer, "mse")
    return made


def fit(made: Any, *callbacks: Any, epochs: int = 1, **more: Any) -> dict[str, Any]:
    found: dict[str, Any] = made.fit(
        X, Y, 8, epochs, verbose=0, shuffle=False, callbacks=list(callbacks), **more
    ).history
    return found


def weights(made: Any) -> list[np.ndarray]:
    return [np.array(w) for w in made.get_weights()]


def same(one: list[np.ndarray], other: list[np.ndarray]) -> bool:
    return all(np.array_equal(a, b) for a, b in zip(one, other, strict=True))


@pytest.mark.parametrize("finish", ["raw", "average"])
def test_a_callback_follows_one_model(finish: Any) -> None:
    first, second, averaging = model(), model(seed=1), Averaging(RULE, finish=finish)
    fit(first, averaging)
    before, average = weights(second), averaging.average
    for use in (lambda: fit(second, averaging), lambda: second.predict(X, verbose=0, callbacks=[averaging])):
        with pytest.raises(ModelError, match=r"expected the model that .* follows, received another"):
            use()
    assert same(weights(second), before)
    assert averaging.average is average
    fit(first, averaging)
    assert averaging.average.count == 6


class Untrained(keras.Model):  # type: ignore[misc]
    """Its step is its own, and has no optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1)

    def call(self, inputs: Any) -> Any:
        return self.layer(inputs)

    def train_step(self, data: Any) -> dict[str, Any]:
        return {"loss": keras.ops.zeros(())}


@pytest.mark.skipif(keras.backend.backend() == "jax", reason="Keras on JAX itself needs a compiled optimizer")
def test_a_model_without_an_optimizer_is_refused() -> None:
    made = Untrained()
    made(X)
    made.compile(optimizer=None, loss="mse")
    before = weights(made)
    with pytest.raises(ModelError, match="expected an optimizer, whose updates the average follows, received none"):
        fit(made, Averaging(RULE))
    assert same(weights(made), before)


def test_an_average_of_a_part_of_the_model_is_sent_to_where_it_can_move() -> None:
    whole = model()
    part = whole.layers[0]
    with pytest.raises(ModelError, match="follows a part of it: call its update") as told:
        fit(whole, Averaging(polyak.track(part, RULE)))
    assert f'polyak.keras.Averaging({{"dense/*": "{RULE}", "*": None}})' in str(told.value)
    averaging = Averaging({"dense/*": RULE, "*": None})
    fit(whole, averaging)
    assert list(averaging.average.values()) == ["dense/kernel", "dense/bias"]


class Pair(keras.Model):
    """A model whose attributes are not named as the models in them."""

    def __init__(self) -> None:
        super().__init__()
        inputs = keras.Input((X.shape[1],))
        self.g = keras.Sequential([inputs, keras.layers.Dense(2), keras.layers.Dense(2)], name="generator")
        self.blocks = [keras.layers.Dense(1, name="d"), keras.layers.Dense(1, name="e")]

    def call(self, x: Any) -> Any:
        return self.blocks[0](self.g(x)) + self.blocks[1](x)


@pytest.mark.parametrize(("part", "glob"), [("g", "g/*"), ("block", "blocks/0/*")])
def test_the_rule_for_a_part_is_told_by_the_names_in_the_whole_model(part: str, glob: str) -> None:
    whole = Pair()
    whole.compile("sgd", "mse")
    whole(X[:1])
    average = polyak.track(whole.g if part == "g" else whole.blocks[0], RULE)
    with pytest.raises(ModelError, match="follows a part of it") as told:
        fit(whole, Averaging(average))
    said = re.search(r"polyak\.keras\.Averaging\((.*)\)", str(told.value))
    assert said is not None
    rules = ast.literal_eval(said[1])
    assert rules == {glob: RULE, "*": None}
    averaging = Averaging(rules)
    fit(whole, averaging)
    assert len(averaging.average.values()) == len(average.values())


@pytest.mark.parametrize("mode", ["auto", "min"])
def test_the_hint_for_early_stopping_by_the_average_is_one_that_keras_takes(mode: str) -> None:
    stop = keras.callbacks.EarlyStopping("val_average_loss", mode=mode, restore_best_weights=True)
    averaging = Averaging(RULE, evaluate="both", best="val_average_loss", finish="average")
    with pytest.raises(ModelError, match="restore_best_weights=False") as told:
        fit(model(), stop, averaging, validation_data=(X, Y))
    assert ('mode="min" or mode="max"' in str(told.value)) == (mode == "auto")
    fit(
        model(),
        keras.callbacks.EarlyStopping("val_average_loss", mode="min", restore_best_weights=False),
        Averaging(RULE, evaluate="both", best="val_average_loss", finish="average"),
        validation_data=(X, Y),
    )


def test_an_average_of_another_model_is_not_replaced_by_a_new_one() -> None:
    ema = polyak.track(model(), RULE)
    with pytest.raises(ModelError, match="received another"):
        fit(model(), Averaging(ema))


@pytest.mark.parametrize("finishing_first", [True, False])
@pytest.mark.parametrize("asked", [{"finish": "average"}, {"evaluate": "both", "best": "val_fin_loss"}])
def test_what_another_callback_puts_into_the_model_is_no_jump(finishing_first: bool, asked: dict[str, str]) -> None:
    made, fin, other = model(), Averaging(RULE, name="fin", **asked), Averaging("mean", name="other")  # type: ignore[arg-type]
    listed = (fin, other) if finishing_first else (other, fin)
    validated: dict[str, Any] = {"validation_split": 0.25}
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsChanged)
        for _ in range(3):
            fit(made, *listed, **validated)
    made.set_weights([w + 1 for w in weights(made)])
    with pytest.warns(WeightsChanged, match="of mean of .* have been changed since"):
        fit(made, *listed, **validated)


@pytest.mark.parametrize("stops_first", [True, False])
def test_that_early_stopping_left_the_average_behind_is_said_at_the_next_fit(stops_first: bool) -> None:
    """The largest loss is that of the first epoch: to its weights the model goes back."""
    made, averaging = model(keras.optimizers.SGD(0.05)), Averaging(RULE)
    stop = keras.callbacks.EarlyStopping("loss", mode="max", patience=1, restore_best_weights=True)
    fit(made, *((stop, averaging) if stops_first else (averaging, stop)), epochs=4)
    with pytest.warns(WeightsChanged, match="have been changed since the last update"):
        fit(made, averaging)


@pytest.mark.parametrize("how", ["set", "trained", "left"])
def test_a_model_that_finished_with_the_average_keeps_what_it_was_given_since(how: str) -> None:
    made, averaging = model(keras.optimizers.SGD(0.05)), Averaging(RULE, finish="average")
    fit(made, averaging)
    raw = averaging.raw
    if how == "set":
        made.set_weights([w + 1 for w in weights(made)])
    elif how == "trained":
        fit(made)
    expected = weights(made)
    begun: list[list[np.ndarray]] = []
    first = keras.callbacks.LambdaCallback(on_epoch_begin=lambda *_: begun.append(weights(made)))
    if how == "left":
        fit(made, averaging, first)
        assert raw is not None
        assert same(begun[0], [raw[path] for path in polyak.snapshot(made)])
    else:
        with pytest.warns(WeightsChanged, match="have been changed since"):
            fit(made, averaging, first)
        assert same(begun[0], expected)


class Own(keras.Model):
    """A model that holds its optimizer where Keras does not look."""

    def __init__(self, holder: Any) -> None:
        super().__init__()
        self.layer = keras.layers.Dense(1)
        self.holder = holder
        self.other = keras.optimizers.SGD(0.05)

    def call(self, x: Any) -> Any:
        return self.layer(x)


HOLDERS = {"list": lambda o: [o], "mapping": lambda o: {"main": {"weights": o}}, "hidden": lambda o: Hidden(o)}


class Hidden:
    def __init__(self, optimizer: Any) -> None:
        self.optimizer = optimizer


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a train_step of one's own in TensorFlow's terms")
@pytest.mark.parametrize("holder", HOLDERS)
def test_updates_of_an_optimizer_are_seen_or_missed_aloud(holder: str) -> None:
    import tensorflow as tf

    keras.utils.set_random_seed(0)
    optimizer = keras.optimizers.SGD(0.05)
    made = Own(HOLDERS[holder](optimizer))

    def train_step(self: Any, data: Any) -> dict[str, Any]:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((self(data[0]) - data[1]) ** 2)
        optimizer.apply_gradients(
            zip(tape.gradient(loss, self.trainable_variables), self.trainable_variables, strict=True)
        )
        return {"loss": loss}

    made.train_step = types.MethodType(train_step, made)
    made(X[:1])
    optimizer.build(made.trainable_variables)
    made.compile(keras.optimizers.SGD(0.0))
    averaging = Averaging(RULE, finish="average")
    if holder == "hidden":
        with pytest.raises(ModelError, match="changed the weights without one"):
            fit(made, averaging)
    else:
        fit(made, averaging)
        assert averaging.average.count == 3
    assert vars(made)["train_step"].__func__ is train_step


def test_a_value_that_is_no_number_is_never_the_best() -> None:
    values = iter([np.nan, 3.0, 1.0, 2.0, np.nan])
    score = keras.callbacks.LambdaCallback(on_epoch_end=lambda epoch, logs: logs.update(val_score=next(values)))
    averaging = Averaging(RULE, best="min val_score")
    fit(model(), score, averaging, epochs=5)
    assert averaging.best_epoch is not None
    assert (averaging.best_epoch.epoch, averaging.best_epoch.value) == (2, 1.0)


@pytest.mark.parametrize("often", [2, [2, 4]])
def test_the_best_is_chosen_among_the_epochs_that_are_validated(often: Any) -> None:
    averaging = Averaging(RULE, evaluate="both", best="val_average_loss")
    history = fit(model(), averaging, epochs=4, validation_data=(X, Y), validation_freq=often)
    assert len(history["val_average_loss"]) == 2
    assert averaging.best_epoch is not None
    assert averaging.best_epoch.epoch == (1, 3)[int(np.argmin(history["val_average_loss"]))]
    with pytest.raises(ModelError, match="expected it among the metrics"):
        fit(model(), Averaging(RULE, evaluate="both", best="val_average_loss"), epochs=2)


def test_two_that_restore_their_best_are_refused() -> None:
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", restore_best_weights=True)
    averaging = Averaging(RULE, evaluate="both", best="val_average_loss")
    for listed in ((stop, averaging), (averaging, stop)):
        with pytest.raises(ModelError, match=r"EarlyStopping beside polyak\.keras\.Averaging"):
            fit(model(), *listed, validation_data=(X, Y))


def several(**asked: Any) -> Any:
    chosen = keras.optimizers.SGD(0.05, **asked)
    return keras.optimizers.MultiOptimizer(keras.optimizers.OptimizerMap(chosen, {}))


def test_an_optimizer_of_several_with_an_average_of_its_own_is_refused() -> None:
    with pytest.raises(ModelError, match=r"SGD\(use_ema=True\) beside"):
        fit(model(several(use_ema=True)), Averaging(RULE))


def test_an_optimizer_of_several_counts_real_updates() -> None:
    made, averaging = model(several(gradient_accumulation_steps=3)), Averaging(RULE)
    fit(made, averaging, epochs=2)
    assert averaging.average.count == 2


def test_a_fit_while_the_average_is_applied_is_refused_before_anything_moves() -> None:
    made, averaging = model(), Averaging(RULE)
    fit(made, averaging)
    before, step = weights(made), int(made.optimizer.iterations)
    with averaging.average.applied(), pytest.raises(Applied, match="average the averaged weights"):
        fit(made, averaging)
    assert same(weights(made), before)
    assert (averaging.average.count, int(made.optimizer.iterations)) == (3, step)


def test_metrics_of_the_model_are_not_overwritten_by_the_averages() -> None:
    keras.utils.set_random_seed(0)
    given = keras.Input((4,))
    outputs = [keras.layers.Dense(1, name=name)(given) for name in ("a", "average")]
    made = keras.Model(given, outputs)
    made.compile("sgd", ["mse", "mse"])
    with pytest.raises(ModelError, match="'average_loss', which is one of the model's"):
        made.fit(X, [Y, Y], 8, 1, verbose=0, validation_data=(X, [Y, Y]), callbacks=[Averaging(RULE, evaluate="both")])


def test_an_average_that_never_moved_is_not_written_over_the_model() -> None:
    made = model()
    before = weights(made)
    fit(made, Averaging("ema:0.9,start=zero", finish="average"), epochs=0)
    assert same(weights(made), before)


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras executes one step at a time on PyTorch")
def test_switches_are_counted_in_steps_of_training() -> None:
    made = model()
    made.compile(keras.optimizers.SGD(0.05), "mse", steps_per_execution=3)
    averaging, switches = Averaging(RULE), []
    switch = SwitchEMA(averaging, steps=4)
    switch._switch = lambda: switches.append(averaging.average.count)
    fit(made, averaging, switch, epochs=4)
    assert switches == [6, 9, 12]


def test_a_step_that_is_only_accumulated_may_change_weights_by_itself() -> None:
    """Spectral normalisation writes its kernel in each call."""
    layer = keras.layers.SpectralNormalization(keras.layers.Dense(1))
    model = keras.Sequential([keras.Input((4,)), layer])
    model.compile(keras.optimizers.SGD(0.1, gradient_accumulation_steps=4), "mse")
    averaging = Averaging("ema:0.9")
    model.fit(np.ones((8, 4)), np.ones((8, 1)), 4, 2, verbose=0, callbacks=[averaging])
    assert averaging.average.count == 1


def test_fit_of_tf_keras_is_told_what_to_use_instead() -> None:
    legacy = pytest.importorskip("tf_keras")
    made = legacy.Sequential([legacy.layers.Input((4,)), legacy.layers.Dense(1)])
    made.compile("sgd", "mse")
    before = weights(made)
    with pytest.raises(ModelError, match="a model of Keras 3, received one of tf_keras"):
        made.fit(X, Y, verbose=0, callbacks=[Averaging(RULE)])
    assert same(weights(made), before)
