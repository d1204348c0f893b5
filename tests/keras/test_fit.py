"""polyak.keras.Averaging in Keras' own loops, on every backend."""

from __future__ import annotations

import csv
import tempfile
import warnings
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.keras.zoo import (
    BACKEND,
    WIDTH,
    OwnTrainStep,
    as_weights,
    assert_same_bits,
    averaged,
    replay,
    values,
    vectors,
)

import polyak
from polyak.errors import BegunLate, ImmatureWarning, ModelError
from polyak.keras import Averaging, Snapshots

BATCH, STEPS = 4, 6
RULE = "ema:0.7,start=copy"


def data(steps: int = STEPS) -> tuple[Any, Any]:
    x = np.random.default_rng(1).normal(size=(BATCH * steps, WIDTH)).astype(np.float32)
    return x, (x[:, :2] * 2).astype(np.float32)


def network(dtype: str | None = None) -> Any:
    return keras.Sequential(
        [keras.Input((WIDTH,)), layers.Dense(3, dtype=dtype), layers.BatchNormalization(), layers.Dense(2, dtype=dtype)]
    )


def compiled(**asked: Any) -> Any:
    """Always from the same numbers."""
    keras.utils.set_random_seed(3)
    model = network()
    model.compile(**{"optimizer": keras.optimizers.SGD(0.05), "loss": "mse", **asked})
    return model


def fit(model: Any, *callbacks: Any, epochs: int = 1, **asked: Any) -> Any:
    x, y = data()
    given = {"batch_size": BATCH, "epochs": epochs, "shuffle": False, "verbose": 0, **asked}
    return model.fit(x, y, callbacks=list(callbacks), **given).history


def validated(model: Any, *callbacks: Any, epochs: int = 1, **asked: Any) -> Any:
    return fit(model, *callbacks, epochs=epochs, validation_data=data(2), **asked)


def synced(model: Any) -> Any:
    """On JAX fit keeps the weights out of the model's variables between two steps; Keras can bring them back."""
    if BACKEND == "jax" and getattr(model, "_jax_state", None):
        model.jax_state_sync()
    return model


class Record(keras.callbacks.Callback):
    """The weights after each step that changed any of those that are trained: the updates that were real."""

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.start = self.last = values(model)
        self.raw: list[Any] = []
        self.paths = averaged(model)

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        now = values(synced(self.model))
        if any((now[path] != self.last[path]).any() for path in self.paths):
            self.raw.append(now)
        self.last = now

    def average(self, rule: Any) -> Any:
        return replay(rule, self.start, self.raw, self.paths)


def assert_followed(averaging: Any, record: Record) -> None:
    assert averaging.average.count == len(record.raw)
    assert_same_bits(averaging.average.values(), record.average(averaging.rule))


# How it moves


def _accumulating() -> Any:
    return compiled(optimizer=keras.optimizers.SGD(0.05, gradient_accumulation_steps=3))


def _overflowing() -> Any:
    """In float16 a scaled gradient overflows at first; each time the step is skipped and the scale is halved."""
    keras.utils.set_random_seed(3)
    model = network("mixed_float16")
    optimizer = keras.optimizers.LossScaleOptimizer(keras.optimizers.SGD(0.05), initial_scale=2.0**20)
    model.compile(optimizer, "mse")
    return model


def _own_step() -> Any:
    keras.utils.set_random_seed(3)
    model = OwnTrainStep()
    model.build((None, WIDTH))
    model(vectors())
    model.compile(keras.optimizers.SGD(0.05))
    return model


UPDATES = {
    "sgd": (compiled, 2 * STEPS),
    "adam with a schedule": (
        lambda: compiled(optimizer=keras.optimizers.Adam(keras.optimizers.schedules.ExponentialDecay(0.05, 2, 0.5))),
        2 * STEPS,
    ),
    "gradient accumulation": (_accumulating, 2 * STEPS // 3),
    "skipped steps": (_overflowing, None),
    "run eagerly": (lambda: compiled(run_eagerly=True), 2 * STEPS),
}


@pytest.mark.parametrize("case", UPDATES)
def test_the_average_moves_once_for_each_real_update_as_the_numpy_kernel(case: str) -> None:
    make, count = UPDATES[case]
    model = make()
    record, averaging = Record(model), Averaging(RULE)
    fit(model, record, averaging, epochs=2)
    assert_followed(averaging, record)
    if count is None:
        assert 0 < len(record.raw) < 2 * STEPS
    else:
        assert len(record.raw) == count


def test_a_train_step_of_its_own_is_followed() -> None:
    model = _own_step()
    x = vectors(BATCH * STEPS)
    record, averaging = Record(model), Averaging(RULE)
    model.fit(x, x, BATCH, 1, shuffle=False, verbose=0, callbacks=[averaging, record])
    assert len(record.raw) == STEPS
    assert_followed(averaging, record)


class Autoencoder(keras.Model):
    """As in Keras' examples: its step calls the models in it, and nothing calls the model itself."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((WIDTH,)), layers.Dense(2), layers.BatchNormalization()])
        self.decoder = keras.Sequential([keras.Input((2,)), layers.Dense(WIDTH)])

    def train_step(self, data: Any) -> Any:
        import tensorflow as tf

        x = data[0]
        with tf.GradientTape() as tape:
            loss = keras.ops.mean((x - self.decoder(self.encoder(x, training=True))) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras refuses to fit such a model elsewhere")
def test_a_model_that_is_never_called_itself_is_followed() -> None:
    model = Autoencoder()
    model.compile(keras.optimizers.SGD(0.05))
    record, averaging = Record(model), Averaging(RULE)
    fit(model, averaging, record, epochs=2)
    assert not model.built
    assert averaging.average.count == len(record.raw) == 2 * STEPS
    assert_followed(averaging, record)


class Compiled(Autoencoder):
    """As a GAN whose discriminator is compiled by itself: its step uses the inner optimizer more often than its own."""

    def __init__(self) -> None:
        super().__init__()
        self.decoder.compile(keras.optimizers.SGD(0.05))

    def train_step(self, data: Any) -> Any:
        x, part = data[0], self.decoder.trainable_variables
        if BACKEND == "torch":
            loss = keras.ops.mean((x - self.decoder(self.encoder(x))) ** 2)
            self.zero_grad()
            loss.backward()
            self.decoder.optimizer.apply([v.value.grad for v in part], part)
            return {"loss": loss}
        import tensorflow as tf

        with tf.GradientTape() as tape:
            loss = keras.ops.mean((x - self.decoder(self.encoder(x))) ** 2)
        self.decoder.optimizer.apply(tape.gradient(loss, part), part)
        return {"loss": loss}

    def call(self, x: Any) -> Any:
        return self.decoder(self.encoder(x))


@pytest.mark.skipif(BACKEND == "jax", reason="on JAX a step is given the variables of one optimizer")
def test_updates_of_an_optimizer_of_a_model_within_are_counted() -> None:
    model = Compiled()
    model.compile(keras.optimizers.SGD(0.05))
    model(vectors(2))
    record, averaging = Record(model), Averaging(RULE)
    fit(model, averaging, record, epochs=2)
    assert averaging.average.count == len(record.raw) == 2 * STEPS
    assert_followed(averaging, record)


def test_of_a_model_within_that_was_trained_before_nothing_is_late() -> None:
    inner = keras.Sequential([keras.Input((WIDTH,)), layers.Dense(2)])
    inner.compile(keras.optimizers.SGD(0.05, use_ema=True))
    inner.optimizer.iterations.assign(7)
    model = keras.Sequential([keras.Input((WIDTH,)), inner, layers.Dense(2)])
    model.compile("sgd", "mse")
    with warnings.catch_warnings():
        warnings.simplefilter("error", BegunLate)
        fit(model, averaging := Averaging(RULE))
    assert averaging.average.count == STEPS


@pytest.mark.skipif(BACKEND == "torch", reason="Keras has no steps_per_execution on PyTorch")
def test_many_steps_in_one_call_move_the_average_as_often() -> None:
    one, many = compiled(), compiled(steps_per_execution=4)
    averages = [Averaging(RULE), Averaging(RULE)]
    for model, averaging in zip((one, many), averages, strict=True):
        fit(model, averaging, epochs=2)
        assert averaging.average.count == 2 * STEPS
    assert_same_bits(values(many), values(one))
    assert_same_bits(averages[1].average.values(), averages[0].average.values())


@pytest.mark.parametrize("execution", [1] if BACKEND == "torch" else [1, 4])
def test_a_stream_whose_length_nobody_knows_is_followed_to_its_end(execution: int) -> None:
    """On TensorFlow the optimizer counts a step more: that in which the data turn out to be at their end."""
    model, averaging = compiled(steps_per_execution=execution), Averaging(RULE)
    x, y = data()
    batches = ((x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, len(x), BATCH))
    model.fit(batches, verbose=0, callbacks=[averaging])
    assert averaging.average.count == STEPS


@pytest.mark.skipif(BACKEND == "torch", reason="PyTorch compiles with a compiler of C++")
def test_a_step_that_is_compiled_as_a_whole_is_followed() -> None:
    """XLA may round once where NumPy rounds twice, in the training as well: a few units in the last place a step."""
    model, plain = compiled(jit_compile=True), compiled()
    averaging, twin = Averaging(RULE), Averaging(RULE)
    fit(model, averaging)
    fit(plain, twin)
    assert averaging.average.count == STEPS
    for path, value in twin.average.values().items():
        np.testing.assert_allclose(averaging.average.values()[path], value, rtol=1e-5, atol=1e-6)


@pytest.mark.skipif(BACKEND != "jax", reason="a compiler of JAX")
@pytest.mark.parametrize("asked", [{"run_eagerly": True}, {"jit_compile": False}], ids=["eagerly", "uncompiled"])
def test_a_step_that_is_not_compiled_compiles_nothing_anew(asked: Any, caplog: pytest.LogCaptureFixture) -> None:
    import jax

    model = keras.Sequential([keras.Input((WIDTH,)), layers.Dense(1025), layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.05), "mse", **asked)
    first = keras.callbacks.LambdaCallback(on_train_batch_end=lambda step, logs: step or caplog.clear())
    averaging = Averaging(RULE)
    with jax.log_compiles():
        fit(model, averaging, first)
    assert [r.message for r in caplog.records if "ompil" in r.message] == []
    assert averaging.average.count == STEPS


def test_training_is_what_it_is_without_the_callback() -> None:
    model, twin = compiled(), compiled()
    history = validated(model, Averaging(RULE, evaluate="both"), epochs=2)
    plain = validated(twin, epochs=2)
    assert {name: history[name] for name in plain} == plain
    assert_same_bits(values(model), values(twin))


def test_one_callback_goes_on_through_several_fits() -> None:
    model, whole = compiled(), compiled()
    averaging, twin = Averaging(RULE), Averaging(RULE)
    for _ in range(3):
        fit(model, averaging)
    fit(whole, twin, epochs=3)
    assert averaging.average.count == 3 * STEPS
    assert_same_bits(averaging.average.values(), twin.average.values())


def test_an_average_of_the_model_may_be_given() -> None:
    model = compiled()
    ema = polyak.EMA(model, decay=0.5)
    averaging = Averaging(ema)
    fit(model, averaging)
    assert averaging.average is ema
    assert ema.count == STEPS


def test_several_callbacks_that_want_the_same_are_refused() -> None:
    asked: tuple[tuple[dict[str, Any], dict[str, Any], str], ...] = (
        ({}, {}, "of one name"),
        ({"evaluate": "average"}, {"evaluate": "average", "name": "other"}, 'with evaluate="average"'),
        ({"finish": "average"}, {"best": "val_loss", "name": "other"}, 'with finish="average" or best='),
    )
    for first, second, words in asked:
        with pytest.raises(ModelError, match=f"Averaging {words}: expected one in the list, received several"):
            fit(compiled(), Averaging(RULE, **first), Averaging(RULE, **second))


def test_an_average_that_two_callbacks_would_move_is_refused() -> None:
    model = compiled()
    ema, before = polyak.EMA(model, decay=0.5), values(model)
    with pytest.raises(ModelError, match="'a' and 'b': expected an average for each, received one for both"):
        fit(model, Averaging(ema, name="a"), Averaging(ema, name="b"))
    assert ema.count == 0
    assert_same_bits(values(model), before)


def test_two_callbacks_of_different_names_stand_beside_each_other() -> None:
    model = compiled()
    record = Record(model)
    fast, slow = Averaging(RULE, evaluate="both", name="fast"), Averaging("mean", evaluate="both", name="slow")
    history = validated(model, record, fast, slow, epochs=2)
    for each in (fast, slow):
        assert_followed(each, record)
        with each.average.applied():
            assert history[f"val_{each.name}_loss"][-1] == pytest.approx(_loss(model), rel=1e-6)
    assert history["val_loss"][-1] == pytest.approx(_loss(model), rel=1e-6)


@pytest.mark.parametrize("file", ["a.keras", "a.weights.h5"])
def test_in_a_file_averages_have_the_names_of_their_callbacks(tmp_path: Path, file: str) -> None:
    model, other = compiled(), compiled()
    fast, slow = Averaging(RULE, name="fast"), Averaging("mean", name="slow")
    fit(model, fast, slow)
    (model.save if file.endswith(".keras") else model.save_weights)(tmp_path / file)
    assert {"raw", "average:fast", "average:slow"} <= set(polyak.open(tmp_path / file).roles)
    polyak.transfer(tmp_path / file, other, weights="average:slow")
    assert_same_bits(values(other), slow.average.values())


def test_training_that_is_stopped_keeps_what_was_averaged() -> None:
    class Stop(keras.callbacks.Callback):
        def on_train_batch_end(self, step: int, logs: Any = None) -> None:
            self.model.stop_training = step == 1

    for order in (1, -1):
        model = compiled()
        record, averaging = Record(model), Averaging(RULE)
        history = fit(model, *[record, averaging, Stop()][::order], epochs=3)
        assert len(history["loss"]) <= 1 or len(record.raw) < 3 * STEPS
        assert_followed(averaging, record)
        assert_same_bits(values(model), record.raw[-1])


# What is evaluated


def _loss(model: Any) -> float:
    x, y = data(2)
    return float(model.evaluate(x, y, verbose=0))


def test_both_are_in_the_logs_of_an_epoch() -> None:
    model = compiled(metrics=["mae"])
    averaging = Averaging(RULE, evaluate="both")
    history = validated(model, averaging, epochs=2)
    assert set(history) == {"loss", "mae", "val_loss", "val_mae", "val_average_loss", "val_average_mae"}
    x, y = data(2)
    raw = model.evaluate(x, y, verbose=0)
    with averaging.average.applied():
        average = model.evaluate(x, y, verbose=0)
    last = [history[name][-1] for name in ("val_loss", "val_mae", "val_average_loss", "val_average_mae")]
    np.testing.assert_allclose(last, [*raw, *average], rtol=1e-6)
    assert raw != average


@pytest.mark.parametrize("evaluate", ["raw", "average"])
def test_one_set_is_validated_where_one_is_asked_for(evaluate: Any) -> None:
    model = compiled()
    averaging = Averaging(RULE, evaluate=evaluate)
    history = validated(model, averaging)
    assert set(history) == {"loss", "val_loss"}
    losses = {"raw": _loss(model)}
    with averaging.average.applied():
        losses["average"] = _loss(model)
    assert history["val_loss"][-1] == pytest.approx(losses[evaluate], rel=1e-6)
    assert losses["raw"] != pytest.approx(losses["average"], rel=1e-4)


def test_evaluate_and_predict_use_the_average_with_the_callback_and_not_without_it() -> None:
    model = compiled()
    averaging = Averaging(RULE, evaluate="average")
    fit(model, averaging)
    raw, average = values(model), averaging.average.values()
    x, y = data(2)
    plain = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    with averaging.average.applied():
        expected = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    found = model.evaluate(x, y, verbose=0, callbacks=[averaging]), model.predict(x, verbose=0, callbacks=[averaging])
    assert found[0] == pytest.approx(expected[0], rel=1e-6)
    np.testing.assert_allclose(found[1], expected[1], rtol=1e-6)
    again = model.evaluate(x, y, verbose=0), model.predict(x, verbose=0)
    assert again[0] == plain[0] != expected[0]
    np.testing.assert_array_equal(again[1], plain[1])
    assert_same_bits(values(model), raw)
    assert_same_bits(averaging.average.values(), average)


def test_a_predict_of_ones_own_that_runs_raw_weights_is_refused() -> None:
    class Own(keras.Sequential):
        def predict(self, x: Any, callbacks: Any = None) -> Any:
            listed = keras.callbacks.CallbackList(callbacks, model=self)
            listed.on_predict_begin()
            found = self(x)
            listed.on_predict_end()
            return found

    model, averaging = Own(network().layers), Averaging(RULE, evaluate="average")
    model.compile(keras.optimizers.SGD(0.05), "mse")
    fit(model, averaging)
    with pytest.raises(ModelError, match=r"predict_function: expected this version of Keras .* to run the average"):
        model.predict(data(1)[0], callbacks=[averaging])


def test_evaluate_with_both_is_refused() -> None:
    model = compiled()
    averaging = Averaging(RULE, evaluate="both")
    fit(model, averaging)
    with pytest.raises(ModelError, match="expected one set of weights, received two"):
        model.evaluate(*data(2), verbose=0, callbacks=[averaging])
    assert np.isfinite(_loss(model))


# What the model holds at the end


def test_fit_ends_with_the_raw_weights_unless_the_average_is_asked_for() -> None:
    raw, average = compiled(), compiled()
    keeps, hands_over = Averaging(RULE), Averaging(RULE, finish="average")
    fit(raw, keeps)
    fit(average, hands_over)
    assert keeps.raw is None
    assert_same_bits(dict(hands_over.raw or {}), values(raw))
    assert_same_bits(values(average), as_weights(keeps.average, raw))
    fit(raw, keeps)
    fit(average, hands_over)
    assert_same_bits(dict(hands_over.raw or {}), values(raw))
    assert hands_over.average.count == 2 * STEPS


def test_an_immature_average_is_said_so() -> None:
    with pytest.warns(ImmatureWarning, match=r"after 6 updates 99\.4% of the average still is the value it started"):
        fit(compiled(), Averaging("ema:0.999,start=initial"))


class Epochs(keras.callbacks.Callback):
    """Both sets at each epoch's end, for which every backend has the weights in the variables."""

    def __init__(self, averaging: Any) -> None:
        super().__init__()
        self.averaging = averaging
        self.seen: list[Any] = []

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        self.seen.append((values(self.model), self.averaging.average.values()))


@pytest.mark.parametrize("best", ["val_average_loss", "max val_loss", "min val_average_mae"])
def test_the_best_epoch_of_a_role_is_kept(best: str) -> None:
    """A learning rate at which the loss goes up and down."""
    model = compiled(optimizer=keras.optimizers.SGD(0.4), metrics=["mae"])
    averaging = Averaging(RULE, evaluate="both", best=best)
    epochs = Epochs(averaging)
    history = validated(model, averaging, epochs, epochs=4)
    word, metric = best.split() if " " in best else ("min", best)
    found = history[metric]
    at = int(np.argmax(found) if word == "max" else np.argmin(found))
    assert averaging.best_epoch is not None
    assert (averaging.best_epoch.epoch, averaging.best_epoch.value) == (at, found[at])
    raw, average = epochs.seen[at]
    assert_same_bits(values(model), raw)
    assert_same_bits(averaging.average.values(), average)
    assert averaging.average.count == (at + 1) * STEPS


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_other_averages_go_back_to_the_best_epoch_with_the_weights_that_they_follow(order: Any, tmp_path: Path) -> None:
    model = compiled()
    chooses, other = Averaging(RULE, evaluate="both", best="max val_loss"), Averaging("mean", name="other")
    snapshots, epochs = Snapshots([chooses, other], every=STEPS, folder=tmp_path), Epochs(other)
    listed: list[Any] = [chooses, other, snapshots]
    history = validated(model, *[listed[i] for i in order], epochs, epochs=3)
    assert int(np.argmax(history["val_loss"])) == 0
    assert [averaging.average.count for averaging in (chooses, other)] == [STEPS, STEPS]
    for found, expected in zip((values(model), other.average.values()), epochs.seen[0], strict=True):
        assert_same_bits(found, expected)
    validated(model, *[listed[i] for i in order])
    assert other.average.count == 2 * STEPS


def test_a_metric_that_is_not_there_is_said_so() -> None:
    with pytest.raises(ModelError, match="best='val_average_loss': expected it among the metrics of an epoch"):
        validated(compiled(), Averaging(RULE, best="val_average_loss"))
    with pytest.raises(ModelError, match="whose name says which values are better"):
        Averaging(RULE, best="val_score")


# Beside Keras' own callbacks


def _stock(folder: Path) -> dict[str, Any]:
    own = keras.callbacks
    return {
        "weights": own.ModelCheckpoint(folder / "{epoch}.weights.h5", save_weights_only=True),
        "model": own.ModelCheckpoint(folder / "{epoch}.keras"),
        "stop": own.EarlyStopping(monitor="val_average_loss", mode="min", patience=9),
        "restore": own.EarlyStopping(monitor="val_loss", patience=9, restore_best_weights=False),
        "rate": own.ReduceLROnPlateau(monitor="val_average_loss", mode="min", factor=0.5, patience=0, min_delta=1e9),
        "csv": own.CSVLogger(folder / "log.csv"),
        "backup": own.BackupAndRestore(folder / "backup", delete_checkpoint=False),
    }


@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_stock_callbacks_see_both_sets_in_any_order(first: bool, tmp_path: Path) -> None:
    model = compiled()
    averaging, stock = Averaging(RULE, evaluate="both"), _stock(tmp_path)
    epochs = Epochs(averaging)
    order = [averaging, *stock.values()] if first else [*list(stock.values())[::-1], averaging]
    history = validated(model, *order, epochs, epochs=3)
    assert len(history["loss"]) == 3
    with (tmp_path / "log.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [float(row["val_average_loss"]) for row in rows] == pytest.approx(history["val_average_loss"])
    assert float(keras.ops.convert_to_numpy(model.optimizer.learning_rate)) == pytest.approx(0.05 / 4, rel=1e-5)
    assert stock["stop"].best == pytest.approx(min(history["val_average_loss"]))
    for n, (raw, average) in enumerate(epochs.seen, 1):
        for name in (f"{n}.weights.h5", f"{n}.keras"):
            _assert_holds_both(tmp_path / name, raw, average)


def _assert_holds_both(path: Path, raw: Any, average: Any) -> None:
    """polyak finds both sets, and plain Keras loads the raw one."""
    assert polyak.open(path).roles[:2] == ("raw", "average"), path
    for role, expected in (("raw", raw), ("average", average)):
        model = network()
        polyak.transfer(path, model, weights=role)
        assert_same_bits(values(model), expected)
    if path.suffix == ".keras":
        model = keras.saving.load_model(path)
    else:
        model = network()
        model.load_weights(path)
    assert_same_bits(values(model), raw)


def test_a_run_goes_on_from_a_backup_with_its_average(tmp_path: Path) -> None:
    class Crash(keras.callbacks.Callback):
        def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
            if epoch == 2:
                raise RuntimeError("power cut")

    whole, twin = compiled(), Averaging(RULE)
    fit(whole, twin, epochs=4)
    for first in (True, False):
        folder = tmp_path / str(first)

        def callbacks(*more: Any, folder: Path = folder, first: bool = first) -> tuple[Any, list[Any]]:
            averaging, backup = Averaging(RULE), keras.callbacks.BackupAndRestore(folder)
            return averaging, [*more, *((averaging, backup) if first else (backup, averaging))]

        with pytest.raises(RuntimeError, match="power cut"):
            fit(compiled(), *callbacks(Crash())[1], epochs=4)
        model = compiled()
        averaging, both = callbacks()
        history = fit(model, *both, epochs=4)
        assert len(history["loss"]) == 2
        assert averaging.average.count == 4 * STEPS
        assert_same_bits(values(model), values(whole))
        assert_same_bits(averaging.average.values(), twin.average.values())


@pytest.mark.skipif(BACKEND != "tensorflow", reason="Keras' TensorBoard callback writes with TensorFlow")
def test_tensorboard_sees_both(tmp_path: Path) -> None:
    from tensorflow.python.summary.summary_iterator import summary_iterator

    board = keras.callbacks.TensorBoard(tmp_path, write_graph=False)
    validated(compiled(), board, Averaging(RULE, evaluate="both"))
    tags = {
        v.tag
        for path in tmp_path.rglob("events*")
        for event in summary_iterator(str(path))
        for v in event.summary.value
    }
    assert any("average_loss" in tag for tag in tags)
    assert "epoch_loss" in tags


REFUSED = {
    "SwapEMAWeights": lambda: (keras.callbacks.SwapEMAWeights(), {}),
    "OrbaxCheckpoint": lambda: (keras.callbacks.OrbaxCheckpoint(tempfile.mkdtemp()), {}),
    "EarlyStopping": lambda: (
        keras.callbacks.EarlyStopping(monitor="val_average_loss", restore_best_weights=True),
        {"evaluate": "both"},
    ),
    "EarlyStopping over the average": lambda: (
        keras.callbacks.EarlyStopping(monitor="loss", restore_best_weights=True),
        {"finish": "average"},
    ),
    "ModelCheckpoint": lambda: (
        keras.callbacks.ModelCheckpoint("x.keras", monitor="val_loss", save_best_only=True),
        {"evaluate": "average"},
    ),
    "ModelCheckpoint of a legacy file": lambda: (keras.callbacks.ModelCheckpoint("x.h5"), {}),
}


@pytest.mark.parametrize("case", REFUSED)
@pytest.mark.parametrize("first", [True, False], ids=["first", "last"])
def test_what_would_mix_up_the_sets_is_refused_at_the_start(case: str, first: bool) -> None:
    other, asked = REFUSED[case]()
    model, averaging = compiled(), Averaging(RULE, **asked)
    before = values(model)
    with pytest.raises(ModelError, match=rf"{case.split()[0]} beside polyak\.keras\.Averaging") as error:
        validated(model, *((averaging, other) if first else (other, averaging)))
    assert error.value.hint
    assert_same_bits(values(model), before)


def test_early_stopping_by_a_metric_of_the_raw_weights_may_restore_them() -> None:
    model = compiled(optimizer=keras.optimizers.SGD(0.4))
    stop = keras.callbacks.EarlyStopping(monitor="val_loss", patience=9, restore_best_weights=True)
    averaging = Averaging(RULE, evaluate="both")
    epochs = Epochs(averaging)
    history = validated(model, stop, averaging, epochs, epochs=4)
    raw, _ = epochs.seen[int(np.argmin(history["val_loss"]))]
    trained = averaged(model)
    assert_same_bits(*({p: v for p, v in found.items() if p in trained} for found in (values(model), raw)))


def test_the_optimizers_own_average_beside_is_refused() -> None:
    model = compiled(optimizer=keras.optimizers.SGD(0.05, use_ema=True))
    with pytest.raises(ModelError, match=r"SGD\(use_ema=True\) beside polyak\.keras\.Averaging: two averages") as error:
        fit(model, Averaging(RULE))
    assert "polyak.adopt(model.optimizer)" in str(error.value.hint)


def test_a_wrong_word_is_refused() -> None:
    for asked in ({"evaluate": "ema"}, {"finish": "both"}):
        with pytest.raises(ModelError, match="expected one of 'raw', 'average'"):
            Averaging(RULE, **asked)
    for name in ("", None, 3):
        with pytest.raises(ModelError, match=f"name={name!r}: expected a word"):
            Averaging(RULE, name=name)  # type: ignore[arg-type]
    with pytest.raises(ModelError, match="expected a model, received none so far"):
        Averaging(RULE).average  # noqa: B018


# As data


@pytest.mark.parametrize("rule", [RULE, "mean,after=3", {"dense/*": None, "*": "ema:0.9"}])
def test_the_callback_is_data(rule: Any) -> None:
    averaging = Averaging(rule, evaluate="both", finish="average", best="val_loss", name="teacher")
    twins = (
        Averaging.from_config(averaging.get_config()),
        keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(averaging)),
    )
    for twin in twins:
        assert twin.get_config() == averaging.get_config()
        assert twin.rule == averaging.rule


# Whatever stops a run


HOOKS = (
    "train_begin",
    "epoch_begin",
    "train_batch_begin",
    "train_batch_end",
    "test_begin",
    "test_batch_begin",
    "test_batch_end",
    "test_end",
    "epoch_end",
    "train_end",
)


class Bomb(keras.callbacks.Callback):
    """Raises in one hook, where that is called for the n-th time."""

    def __init__(self, hook: str, n: int, error: type[BaseException]) -> None:
        super().__init__()
        left = [n]

        def explode(*args: Any, **kwargs: Any) -> None:
            left[0] -= 1
            if left[0] == 0:
                raise error

        setattr(self, f"on_{hook}", explode)


class Fuse(keras.utils.PyDataset):
    """Batches, one of which cannot be had."""

    def __init__(self, at: int) -> None:
        super().__init__()
        self._at, self._data = at, data()

    def __len__(self) -> int:
        return STEPS

    def __getitem__(self, i: int) -> Any:
        if i == self._at:
            raise RuntimeError("a bad file")
        x, y = self._data
        return x[i * BATCH : (i + 1) * BATCH], y[i * BATCH : (i + 1) * BATCH]


@cache
def _twins() -> tuple[Any, Any]:
    """Two equal models, which all these tests use: each must leave them plain and equal."""
    return compiled(), compiled()


def _assert_plain_and_equal(model: Any, twin: Any, averaging: Any, record: Record) -> None:
    assert_same_bits(values(synced(model)), values(synced(twin)))
    if averaging._average is not None:
        assert_followed(averaging, record)
    count = len(record.raw)
    assert [_loss(model)] == [_loss(twin)]
    x, _ = data(2)
    np.testing.assert_array_equal(model.predict(x, verbose=0), twin.predict(x, verbose=0))
    assert fit(model) == fit(twin)
    assert_same_bits(values(model), values(twin))
    if averaging._average is not None:
        assert averaging.average.count == count
        assert not averaging.average.in_use


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
@pytest.mark.parametrize("hook", HOOKS)
def test_an_exception_in_any_hook_leaves_raw_weights_and_a_whole_average(hook: str, error: type[BaseException]) -> None:
    """Beside it a twin runs into the same exception without polyak. "both" has two passes of validation an epoch."""
    model, twin = _twins()
    first = error is ValueError
    n = 2 if first and hook not in ("train_begin", "train_end") else 1
    record, averaging = Record(model), Averaging(RULE, evaluate="average" if first else "both")
    order = (record, averaging, Bomb(hook, n, error)) if first else (record, Bomb(hook, n, error), averaging)
    with pytest.raises(error):
        validated(model, *order, epochs=2)
    with pytest.raises(error):
        validated(twin, Record(twin), Bomb(hook, n, error), epochs=2)
    _assert_plain_and_equal(model, twin, averaging, record)


@pytest.mark.parametrize("at", [0, 1, STEPS - 1])
def test_data_that_cannot_be_had_leave_raw_weights_and_a_whole_average(at: int) -> None:
    model, twin = _twins()
    record, averaging = Record(model), Averaging(RULE, evaluate="both")
    runs = [(model, [record, averaging]), (twin, [Record(twin)])]
    # On JAX Keras itself loses the weights if the first batch cannot be had; they should be those of an untouched twin.
    for each, callbacks in runs[: 1 if BACKEND == "jax" and at == 0 else 2]:
        with pytest.raises(Exception, match="a bad file"):
            each.fit(Fuse(at), epochs=2, shuffle=False, verbose=0, callbacks=callbacks, validation_data=data(2))
    _assert_plain_and_equal(model, twin, averaging, record)


@pytest.mark.parametrize("verb", ["evaluate", "predict"])
def test_an_exception_in_evaluate_or_predict_leaves_raw_weights(verb: str) -> None:
    model, twin = _twins()
    averaging = Averaging(RULE, evaluate="average")
    record = Record(model)
    fit(model, averaging, record)
    fit(twin, Record(twin))
    prefix = "test" if verb == "evaluate" else "predict"
    x, y = data(2)
    given = (x, y) if verb == "evaluate" else (x,)
    for hook in (f"{prefix}_begin", f"{prefix}_batch_begin", f"{prefix}_batch_end", f"{prefix}_end"):
        for each, callbacks in (
            (model, [averaging, Bomb(hook, 1, KeyboardInterrupt)]),
            (twin, [Bomb(hook, 1, KeyboardInterrupt)]),
        ):
            with pytest.raises(KeyboardInterrupt):
                getattr(each, verb)(*given, batch_size=BATCH, verbose=0, callbacks=callbacks)
            synced(each)
    _assert_plain_and_equal(model, twin, averaging, record)
