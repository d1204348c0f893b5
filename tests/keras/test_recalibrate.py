"""Recomputing the statistics of batch normalisation: the figures, and all that stays as it is."""

from __future__ import annotations

import threading
from collections.abc import Callable
from types import MappingProxyType
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import Applied, ModelError, NonFinite, UnbuiltModel
from polyak.keras import Averaging

EPSILON = 1e-3
X = np.random.default_rng(0).normal(1.0, 2.0, size=(96, 5)).astype("float32")
Y = X[:, :1]


def normalising() -> keras.Model:
    """Two layers of batch normalisation with a dropout between them: only the former are to run as in training."""
    layers = keras.layers
    model = keras.Sequential(
        [
            keras.Input((5,)),
            layers.Dense(4),
            layers.BatchNormalization(epsilon=EPSILON),
            layers.Dropout(0.5),
            layers.Dense(3),
            layers.BatchNormalization(epsilon=EPSILON, momentum=0.7),
            layers.Dense(1),
        ]
    )
    model.compile(keras.optimizers.SGD(0.05), "mse")
    return model


def bits(model: keras.Model) -> list[bytes]:
    return [w.tobytes() for w in model.get_weights()]


def float64_pass(weights: list[np.ndarray], batches: list[np.ndarray]) -> list[np.ndarray]:
    """Means over the batches of the moments that each layer of batch normalisation meets."""
    k1, b1, g1, o1, _, _, k2, b2, *_ = [w.astype("float64") for w in weights]
    rows = []
    for x in batches:
        h = x.astype("float64") @ k1 + b1
        m1, v1 = h.mean(0), h.var(0)
        z = ((h - m1) / np.sqrt(v1 + EPSILON) * g1 + o1) @ k2 + b2
        rows.append((m1, v1, z.mean(0), z.var(0)))
    return [np.mean([row[i] for row in rows], axis=0) for i in range(4)]


STATISTICS = (4, 5, 10, 11)  # in get_weights()


def assert_recalibrated(weights: list[np.ndarray], batches: list[np.ndarray]) -> None:
    for i, expected in zip(STATISTICS, float64_pass(weights, batches), strict=True):
        np.testing.assert_allclose(weights[i], expected, rtol=2e-6, atol=1e-6)


def trained() -> keras.Model:
    """A model with weights that its statistics are not of."""
    model, random = normalising(), np.random.default_rng(1)
    model.set_weights([w + np.abs(random.normal(size=w.shape)).astype(w.dtype) for w in model.get_weights()])
    return model


def moved(model: keras.Model) -> None:
    """Another step of training, as far as an average can tell."""
    model.set_weights([w * np.float32(1.1) for w in model.get_weights()])


def test_statistics_are_those_of_a_float64_pass_and_nothing_else_changes() -> None:
    model = trained()
    before, momenta = bits(model), [x.momentum for x in model.layers if "normal" in x.name]
    told: list[tuple[str, int, int]] = []
    receipt = polyak.recalibrate(model, X, watch=lambda *what: told.append(what))
    assert_recalibrated(model.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])
    after = bits(model)
    changed = [i for i, (a, b) in enumerate(zip(before, after, strict=True)) if a != b]
    assert changed == list(STATISTICS)
    assert [x.momentum for x in model.layers if "normal" in x.name] == momenta
    assert told == [("batches", i, 3) for i in range(3)]
    assert len(receipt.moved) == 4
    assert all("call" not in vars(x) for x in model.layers)


def test_a_second_pass_gives_the_same_bits() -> None:
    model = trained()
    polyak.recalibrate(model, X)
    once = bits(model)
    polyak.recalibrate(model, X)
    assert bits(model) == once


class Rows(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 4

    def __getitem__(self, i: int) -> tuple[np.ndarray, np.ndarray]:
        return X[24 * i : 24 * (i + 1)], Y[24 * i : 24 * (i + 1)]


BATCHES = [X[24 * i : 24 * (i + 1)] for i in range(4)]


@pytest.mark.parametrize("sort", ["inputs", "pairs", "generator", "dataset", "steps"])
def test_batches_come_from_whatever_fit_takes(sort: str) -> None:
    model = trained()
    pairs = [(b, b[:, :1]) for b in BATCHES]
    data = {
        "inputs": BATCHES,
        "pairs": pairs,
        "generator": (pair for pair in pairs),
        "dataset": Rows(),
        "steps": (BATCHES[i % 4] for i in range(10**6)),
    }[sort]
    polyak.recalibrate(model, data, steps=4 if sort == "steps" else None)
    assert_recalibrated(model.get_weights(), BATCHES)


def test_an_applied_average_is_recalibrated_for_as_long_as_it_is_applied() -> None:
    model = trained()
    ema = polyak.EMA(model, 0.9)
    moved(model)
    ema.update()
    raw, shadows = bits(model), {k: v.tobytes() for k, v in ema.values().items()}
    with ema.applied():
        polyak.recalibrate(model, X)
        assert_recalibrated(model.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])
    assert bits(model) == raw
    assert {k: v.tobytes() for k, v in ema.values().items()} == shadows


def test_the_shadows_of_an_applied_average_are_left_alone_before_any_data_is_read() -> None:
    model, taken = trained(), list[int]()
    ema = polyak.EMA(model, 0.9)
    before = {k: v.tobytes() for k, v in ema.values().items()}
    with ema.applied():
        with pytest.raises(Applied):
            polyak.recalibrate(ema, (taken.append(1) or x for x in BATCHES), steps=2)  # type: ignore[func-returns-value]
        assert not taken
    assert {k: v.tobytes() for k, v in ema.values().items()} == before


class Skips(keras.Model):
    """It has a layer of batch normalisation, built, and never calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.norm = keras.layers.Dense(2), keras.layers.BatchNormalization()
        self.norm.build((None, 5))

    def call(self, x: Any) -> Any:
        return self.head(x)


def test_a_layer_that_no_batch_reaches_and_a_model_without_weights_are_told() -> None:
    model = Skips()
    with pytest.raises(UnbuiltModel, match="expected a built model, received one without weights yet"):
        polyak.recalibrate(model, X)
    model(X)
    with pytest.raises(ModelError, match="expected a layer of batch normalisation to run on the batches, none did"):
        polyak.recalibrate(model, X)


def test_an_average_keeps_its_own_statistics_in_its_shadows() -> None:
    model = trained()
    ema = polyak.EMA(model, 0.9)
    for _ in range(3):
        moved(model)
        ema.update()
    raw, count = bits(model), ema.count
    polyak.recalibrate(ema, X)
    assert bits(model) == raw
    assert ema.count == count
    other = normalising()
    polyak.transfer(ema, other)
    assert_recalibrated(other.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])
    assert [w.tobytes() for i, w in enumerate(other.get_weights()) if i in STATISTICS] != [
        b for i, b in enumerate(raw) if i in STATISTICS
    ]
    ema.update()
    np.testing.assert_array_equal(ema.values()[next(p for p in ema.values() if "moving" in p)], model.get_weights()[4])


def test_an_average_is_recalibrated_between_two_steps_of_fit() -> None:
    model, averaging, twin = trained(), Averaging("ema:0.9"), normalising()
    found: list[dict[str, np.ndarray]] = []

    def between(step: int, logs: object) -> None:
        if step == 1:
            averaging.average.copy_to(twin)
            polyak.recalibrate(averaging.average, X, steps=2)
            found.append(averaging.average.values())

    callbacks = [averaging, keras.callbacks.LambdaCallback(on_train_batch_end=between)]
    model.fit(X, Y, 32, verbose=0, shuffle=False, callbacks=callbacks)
    polyak.recalibrate(twin, X, steps=2)
    for path, value in polyak.snapshot(twin).items():
        np.testing.assert_array_equal(found[0][path], value, err_msg=path)
    assert averaging.average.count == 3


def test_the_callback_offers_it() -> None:
    model = normalising()
    averaging = Averaging("ema:0.9", finish="average")
    model.fit(X, Y, 16, 2, verbose=0, callbacks=[averaging])
    told: list[tuple[str, int, int]] = []
    averaging.recalibrate(X, watch=lambda *what: told.append(what))
    assert told == [("batches", i, 3) for i in range(3)]
    assert_recalibrated(model.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])
    other = normalising()
    polyak.transfer(averaging.average, other)
    assert bits(other) == bits(model)


def test_the_callback_leaves_a_raw_model_alone() -> None:
    model = normalising()
    averaging = Averaging("ema:0.9")
    model.fit(X, Y, 16, 2, verbose=0, callbacks=[averaging])
    raw = bits(model)
    averaging.recalibrate(X)
    assert bits(model) == raw


def test_a_call_of_the_user_s_own_stays_on_its_layer() -> None:
    model, calls = trained(), []
    layer, other = (x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    plain = layer.call

    def own(*args: Any, **asked: Any) -> Any:
        calls.append(1)
        return plain(*args, **asked)

    layer.call = own
    polyak.recalibrate(model, X)
    assert calls
    assert vars(layer)["call"] is own
    assert "call" not in vars(other)


def test_a_layer_that_runs_twice_counts_twice() -> None:
    inputs = keras.Input((1,))
    shared = keras.layers.BatchNormalization(scale=False, center=False)
    model = keras.Model(inputs, [shared(inputs), shared(inputs + 10.0)])
    polyak.recalibrate(model, np.float32([[1.0], [3.0]]))
    mean, variance = model.get_weights()
    assert (mean.tolist(), variance.tolist()) == ([7.0], [1.0])


def test_frozen_layers_keep_their_statistics() -> None:
    model = trained()
    first = next(x for x in model.layers if isinstance(x, keras.layers.BatchNormalization))
    first.trainable = False
    before = [w.tobytes() for w in first.get_weights()]
    receipt = polyak.recalibrate(model, X)
    assert [w.tobytes() for w in first.get_weights()] == before
    assert len(receipt.moved) == 2


class Failing(keras.utils.PyDataset):
    def __len__(self) -> int:
        return 3

    def __getitem__(self, i: int) -> np.ndarray:
        if i == 2:
            raise KeyError("the disk is gone")
        return X[:24]


def test_an_exception_on_the_way_leaves_everything_as_it_was() -> None:
    model = trained()
    before = bits(model)
    with pytest.raises(KeyError, match="the disk is gone"):
        polyak.recalibrate(model, Failing())
    assert bits(model) == before
    assert [x.momentum for x in model.layers if "normal" in x.name] == [0.99, 0.7]
    assert all("call" not in vars(x) for x in model.layers)
    assert np.isfinite(model.predict(X, verbose=0)).all()


@pytest.mark.parametrize(
    ("data", "steps", "error", "message"),
    [
        ([], None, ModelError, "expected batches, received 0"),
        ([X], 3, ModelError, "expected 3 batches, received 1"),
        ((X, X), None, ModelError, "received a tuple of 2 parts, such as x and y"),
        ([X], 0, ModelError, "steps=0: expected a number of batches, at least 1"),
        ([X * np.float32(np.nan)], None, NonFinite, "expected finite statistics, received NaN or infinity"),
    ],
)
def test_what_gives_no_statistics_is_refused_and_nothing_is_written(
    data: list[np.ndarray], steps: int | None, error: type[Exception], message: str
) -> None:
    model = trained()
    before = bits(model)
    with pytest.raises(error, match=message):
        polyak.recalibrate(model, data, steps)
    assert bits(model) == before


INPUTS = (X[:, :2], X[:, 2:])
NAMED = dict(zip(("first", "second"), INPUTS, strict=True))


def of_two() -> keras.Model:
    """A model of two inputs, whose statistics are those of both beside each other."""
    inputs = [keras.Input((2,), name="first"), keras.Input((3,), name="second")]
    return keras.Model(inputs, keras.layers.BatchNormalization()(keras.layers.Concatenate()(inputs)))


def assert_of_both(model: keras.Model, batches: list[np.ndarray]) -> None:
    found = [np.asarray(v) for v in model.layers[-1].non_trainable_variables]
    for value, moment in zip(found, (np.mean, np.var), strict=True):
        expected = np.mean([moment(b.astype("float64"), axis=0) for b in batches], axis=0)
        np.testing.assert_allclose(value, expected, rtol=2e-6, atol=1e-6)


ROUTES: dict[str, Any] = {
    "a batch that is a tuple": lambda: [(INPUTS,)],
    "a batch that is a list": lambda: [(list(INPUTS),)],
    "a batch with targets": lambda: [(INPUTS, Y)],
    "a batch by name": lambda: [NAMED],
    "a generator": lambda: ((INPUTS,) for _ in range(1)),
    "whole, by name": lambda: NAMED,
    "a mapping that is no dict": lambda: MappingProxyType(NAMED),
}


@pytest.mark.parametrize("route", ROUTES)
def test_several_inputs_come_by_their_names_or_in_tuples_within_batches(route: str) -> None:
    model = of_two()
    polyak.recalibrate(model, ROUTES[route]())
    whole = route in ("whole, by name", "a mapping that is no dict")
    assert_of_both(model, [X[i : i + 32] for i in range(0, 96, 32)] if whole else [X])


HINT = (
    "give the inputs alone, several of them as a dict by their names; or a list or a generator of batches, "
    "[((x1, x2),)] where a batch has several inputs"
)


@pytest.mark.parametrize(
    "data",
    [(NAMED, NAMED), (NAMED, Y), (NAMED, {"a": Y, "b": Y}), (list(INPUTS), Y), (INPUTS, [Y, Y]), INPUTS, (X, Y, Y)],
    ids=["dicts", "dict and array", "dicts of other names", "list", "tuple and list", "inputs", "with weights"],
)
@pytest.mark.parametrize("made", [of_two, normalising])
def test_a_tuple_as_fit_takes_it_is_refused(made: Callable[[], keras.Model], data: tuple[Any, ...]) -> None:
    model = made()
    before = bits(model)
    with pytest.raises(ModelError) as caught:
        polyak.recalibrate(model, data)
    received = f"received a tuple of {len(data)} parts, such as x and y"
    assert str(caught.value) == f"expected inputs, or batches of them, {received}\nhint: {HINT}"
    assert bits(model) == before


@pytest.mark.parametrize("data", [list(INPUTS), [INPUTS], X], ids=["inputs", "batch", "array"])
@pytest.mark.parametrize("of_average", [False, True])
def test_one_array_for_several_inputs_is_refused(data: Any, *, of_average: bool) -> None:
    model = of_two()
    before = bits(model)
    with pytest.raises(ModelError) as caught:
        polyak.recalibrate(polyak.EMA(model, 0.9) if of_average else model, data)
    assert str(caught.value) == f"a batch: expected 2 inputs, received one array\nhint: {HINT}"
    assert bits(model) == before


@pytest.mark.parametrize("inputs", [7, [7, 7]])
def test_what_a_model_of_one_s_own_calls_inputs_is_not_counted(inputs: object) -> None:
    model = Subclassed()
    model.inputs = inputs
    model(X)
    polyak.recalibrate(model, [X])
    np.testing.assert_allclose(np.asarray(model.block.inner.moving_mean), X.astype("float64").mean(0), rtol=1e-5)


def test_statistics_that_were_broken_are_mended() -> None:
    model = trained()
    weights = model.get_weights()
    weights[4] = np.full_like(weights[4], np.nan)
    model.set_weights(weights)
    polyak.recalibrate(model, X)
    assert_recalibrated(model.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])


def test_models_without_the_layers_are_refused() -> None:
    plain = keras.Sequential([keras.Input((5,)), keras.layers.Dense(1)])
    with pytest.raises(ModelError, match="expected a layer of batch normalisation to recalibrate, received none"):
        polyak.recalibrate(plain, X)
    frozen = normalising()
    frozen.trainable = False
    with pytest.raises(ModelError, match="received none, of 2 that it has all are frozen"):
        polyak.recalibrate(frozen, X)
    with pytest.raises(ModelError, match=r"expected a Keras model, received builtins\.int"):
        polyak.recalibrate(1, X)


class Block(keras.layers.Layer):
    """A layer within a layer, which no model lists, called without a word about training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = keras.layers.BatchNormalization()

    def build(self, shape: tuple[int | None, ...]) -> None:
        self.inner.build(shape)

    def call(self, x: object) -> object:
        return self.inner(x)


class Subclassed(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()
        self.head = keras.layers.Dense(1)

    def call(self, x: object) -> object:
        return self.head(self.block(x))


def test_layers_within_layers_are_found_in_models_of_one_s_own() -> None:
    model = Subclassed()
    model(X)
    polyak.recalibrate(model, [X])
    np.testing.assert_allclose(np.asarray(model.block.inner.moving_mean), X.astype("float64").mean(0), rtol=1e-5)


def test_mixed_precision_keeps_its_statistics_in_float32() -> None:
    keras.config.set_dtype_policy("mixed_bfloat16")
    try:
        model = normalising()
    finally:
        keras.config.set_dtype_policy("float32")
    polyak.recalibrate(model, X)
    assert {str(model.get_weights()[i].dtype) for i in STATISTICS} == {"float32"}
    expected = float64_pass(model.get_weights(), [X[i : i + 32] for i in range(0, 96, 32)])
    np.testing.assert_allclose(model.get_weights()[4], expected[0], atol=0.05)


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="TensorFlow's own datasets")
def test_endless_datasets_need_steps() -> None:
    import tensorflow as tf

    model = trained()
    data = tf.data.Dataset.from_tensor_slices((X, Y)).batch(24).repeat()
    with pytest.raises(ModelError, match="expected data that end, received an endless dataset"):
        polyak.recalibrate(model, data)
    polyak.recalibrate(model, data, steps=4)
    assert_recalibrated(model.get_weights(), BATCHES)


def test_it_works_on_a_model_that_the_average_was_transferred_to() -> None:
    ema, other = polyak.EMA(trained(), 0.9), normalising()
    polyak.transfer(ema, other)
    weights = bits(other)
    polyak.recalibrate(other, iter(BATCHES))
    assert_recalibrated(other.get_weights(), BATCHES)
    assert [b for i, b in enumerate(bits(other)) if i not in STATISTICS] == [
        b for i, b in enumerate(weights) if i not in STATISTICS
    ]


def test_a_loader_of_pytorch_gives_batches() -> None:
    torch = pytest.importorskip("torch")
    model, rows = trained(), torch.utils.data.TensorDataset(torch.tensor(X), torch.tensor(Y))
    polyak.recalibrate(model, torch.utils.data.DataLoader(rows, batch_size=24))
    assert_recalibrated(model.get_weights(), BATCHES)


def test_statistics_are_not_written_within_another_threads_step() -> None:
    ema = polyak.EMA(normalising(), decay=0.9)
    polyak.recalibrate(ema, [X[:48]])  # traces and compiles
    before = {path: value.tobytes() for path, value in ema.values().items()}
    worker = threading.Thread(target=polyak.recalibrate, args=(ema, [X[48:]]))
    with ema.moment():
        worker.start()
        worker.join(2.0)
        assert {path: value.tobytes() for path, value in ema.values().items()} == before
    worker.join()
    assert {path: value.tobytes() for path, value in ema.values().items()} != before
