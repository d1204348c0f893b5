"""Recomputing the statistics of batch normalisation in tf_keras: the figures, and all that stays as it is."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
import tf_keras

import polyak
from polyak.errors import ModelError, NonFinite, UnbuiltModel

EPSILON = 1e-3
X = np.random.default_rng(0).normal(1.0, 2.0, size=(96, 5)).astype("float32")
BATCHES = [X[i : i + 32] for i in range(0, 96, 32)]
STATISTICS = (4, 5, 10, 11)  # in get_weights()


def trained() -> Any:
    """Two layers of batch normalisation with a dropout between them; weights that the statistics are not of."""
    layers = tf_keras.layers
    model = tf_keras.Sequential(
        [
            tf_keras.Input((5,)),
            layers.Dense(4),
            layers.BatchNormalization(epsilon=EPSILON),
            layers.Dropout(0.5),
            layers.Dense(3),
            layers.BatchNormalization(epsilon=EPSILON, momentum=0.7),
            layers.Dense(1),
        ]
    )
    random = np.random.default_rng(1)
    model.set_weights([w + np.abs(random.normal(size=w.shape)).astype(w.dtype) for w in model.get_weights()])
    return model


def bits(model: Any) -> list[bytes]:
    return [w.tobytes() for w in model.get_weights()]


def assert_recalibrated(weights: list[np.ndarray], batches: list[np.ndarray]) -> None:
    """Means over the batches of the moments that each layer of batch normalisation meets, in float64."""
    k1, b1, g1, o1, _, _, k2, b2, *_ = [w.astype("float64") for w in weights]
    rows = []
    for x in batches:
        h = x.astype("float64") @ k1 + b1
        z = ((h - h.mean(0)) / np.sqrt(h.var(0) + EPSILON) * g1 + o1) @ k2 + b2
        rows.append((h.mean(0), h.var(0), z.mean(0), z.var(0)))
    for i, expected in zip(STATISTICS, (np.mean([r[j] for r in rows], axis=0) for j in range(4)), strict=True):
        np.testing.assert_allclose(weights[i], expected, rtol=2e-6, atol=1e-6)


def assert_as_before(model: Any, before: list[bytes]) -> None:
    assert bits(model) == before
    assert [x.momentum for x in model.layers if "normal" in x.name] == [0.99, 0.7]
    assert all("call" not in vars(x) for x in model.layers)


@pytest.mark.parametrize("eagerly", [False, True])
def test_statistics_are_those_of_a_float64_pass_and_nothing_else_changes(eagerly: bool) -> None:
    model = trained()
    model.compile("sgd", "mse", run_eagerly=eagerly)
    before = bits(model)
    told: list[tuple[str, int, int]] = []
    receipt = polyak.recalibrate(model, X, watch=lambda *what: told.append(what))
    assert_recalibrated(model.get_weights(), BATCHES)
    assert [i for i, (a, b) in enumerate(zip(before, bits(model), strict=True)) if a != b] == list(STATISTICS)
    assert told == [("batches", i, 3) for i in range(3)]
    assert len(receipt.moved) == 4
    once = bits(model)
    polyak.recalibrate(model, tf.data.Dataset.from_tensor_slices((X, X[:, :1])).batch(32))
    assert_as_before(model, once)


def test_an_average_keeps_its_own_statistics_and_the_model_is_not_touched() -> None:
    model = trained()
    ema = polyak.EMA(model, 0.9)
    for _ in range(3):
        model.set_weights([w * np.float32(1.1) for w in model.get_weights()])
        ema.update()
    before = bits(model)
    polyak.recalibrate(ema, BATCHES)
    assert_as_before(model, before)
    assert ema.count == 3
    other = trained()
    polyak.transfer(ema, other)
    assert_recalibrated(other.get_weights(), BATCHES)
    with ema.applied():
        assert_recalibrated(model.get_weights(), BATCHES)
    assert bits(model) == before


def test_an_applied_average_is_recalibrated_for_as_long_as_it_is_applied() -> None:
    model = trained()
    ema = polyak.EMA(model, 0.9)
    model.set_weights([w * np.float32(1.1) for w in model.get_weights()])
    ema.update()
    raw, shadows = bits(model), {k: v.tobytes() for k, v in ema.values().items()}
    with ema.applied():
        polyak.recalibrate(model, X)
        assert_recalibrated(model.get_weights(), BATCHES)
    assert_as_before(model, raw)
    assert {k: v.tobytes() for k, v in ema.values().items()} == shadows


def test_layers_on_images_give_the_variance_that_they_give_in_training() -> None:
    """The fused kernel divides by n - 1: one step of training with momentum 0 is the oracle."""
    x = np.random.default_rng(2).normal(3.0, 2.0, (8, 4, 4, 3)).astype("float32")

    def made(momentum: float) -> Any:
        return tf_keras.Sequential([tf_keras.Input((4, 4, 3)), tf_keras.layers.BatchNormalization(momentum=momentum)])

    model, oracle = made(0.99), made(0.0)
    oracle(x, training=True)
    polyak.recalibrate(model, [x])
    np.testing.assert_allclose(model.get_weights()[3], x.astype("float64").reshape(-1, 3).var(0, ddof=1), rtol=1e-5)
    for mine, theirs in zip(model.get_weights(), oracle.get_weights(), strict=True):
        np.testing.assert_allclose(mine, theirs, rtol=1e-6)


def test_statistics_that_were_broken_are_mended() -> None:
    model = trained()
    weights = model.get_weights()
    weights[4] = np.full_like(weights[4], np.nan)
    model.set_weights(weights)
    polyak.recalibrate(model, X)
    assert_recalibrated(model.get_weights(), BATCHES)


def test_a_layer_that_runs_twice_counts_twice_and_a_frozen_one_keeps_its_statistics() -> None:
    inputs = tf_keras.Input((1,))
    shared, frozen = (tf_keras.layers.BatchNormalization(scale=False, center=False) for _ in range(2))
    frozen.trainable = False
    model = tf_keras.Model(inputs, [frozen(shared(inputs)), shared(inputs + 10.0)])
    polyak.recalibrate(model, np.float32([[1.0], [3.0]]))
    assert [v.numpy().tolist() for v in shared.weights] == [[7.0], [1.0]]
    assert [v.numpy().tolist() for v in frozen.weights] == [[0.0], [1.0]]


@pytest.mark.parametrize("options", [{}, {"virtual_batch_size": 4}])
def test_the_layer_of_tensorflow_1_is_one_too(options: dict[str, int]) -> None:
    """It is no kind of the later one."""
    from tf_keras.src.layers.normalization.batch_normalization_v1 import BatchNormalization

    first = BatchNormalization(**options)
    model = tf_keras.Sequential([tf_keras.Input((5,)), first, tf_keras.layers.BatchNormalization(scale=False)])
    polyak.recalibrate(model, [X[:32]])
    np.testing.assert_allclose(
        first.moving_mean.numpy().reshape(-1), X[:32].astype("float64").mean(0), rtol=1e-5, atol=1e-6
    )


class Block(tf_keras.layers.Layer):
    """A layer within a layer, called without a word about training."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = tf_keras.layers.BatchNormalization()

    def call(self, x: Any) -> Any:
        return self.inner(x)


class Subclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def call(self, x: Any) -> Any:
        return self.block(x)


def test_layers_within_layers_are_found_in_models_of_one_s_own() -> None:
    model = Subclassed()
    with pytest.raises(UnbuiltModel):
        polyak.recalibrate(model, [X])
    model(X)
    polyak.recalibrate(model, [X])
    np.testing.assert_allclose(model.block.inner.moving_mean.numpy(), X.astype("float64").mean(0), rtol=1e-5)


def failing() -> Iterator[np.ndarray]:
    yield X[:32]
    raise KeyError("the disk is gone")


@pytest.mark.parametrize(
    ("data", "steps", "error", "message"),
    [
        (failing(), None, KeyError, "the disk is gone"),
        ([], None, ModelError, "expected batches, received 0"),
        ([X], 3, ModelError, "expected 3 batches, received 1"),
        ([X * np.float32(np.nan)], None, NonFinite, "expected finite statistics, received NaN or infinity"),
    ],
)
def test_an_exception_on_the_way_leaves_everything_as_it_was(
    data: Any, steps: int | None, error: type[Exception], message: str
) -> None:
    model = trained()
    before = bits(model)
    with pytest.raises(error, match=message):
        polyak.recalibrate(model, data, steps)
    assert_as_before(model, before)
    assert np.isfinite(model(X).numpy()).all()


def test_models_without_the_layers_or_with_renormalising_ones_are_refused() -> None:
    plain = tf_keras.Sequential([tf_keras.Input((5,)), tf_keras.layers.Dense(1)])
    with pytest.raises(ModelError, match="expected a layer of batch normalisation to recalibrate, received none"):
        polyak.recalibrate(plain, X)
    renorm = tf_keras.Sequential([tf_keras.Input((5,)), tf_keras.layers.BatchNormalization(renorm=True)])
    with pytest.raises(ModelError, match=r"expected plain batch normalisation, received .* with renorm=True"):
        polyak.recalibrate(renorm, X)
    with pytest.raises(ModelError, match=r"expected a Keras model, received polyak_plain"):
        polyak.recalibrate(type("Plain", (tf.Module,), {"__module__": "polyak_plain"})(), X)


def test_several_inputs_come_by_their_names_or_in_tuples_and_one_array_for_them_is_refused() -> None:
    inputs = [tf_keras.Input((2,), name="first"), tf_keras.Input((3,), name="second")]
    x1, x2 = X[:32, :2], X[:32, 2:]
    for data in ({"first": x1, "second": x2}, [((x1, x2),)]):
        model = tf_keras.Model(inputs, tf_keras.layers.BatchNormalization()(tf_keras.layers.Concatenate()(inputs)))
        for whole in ([x1, x2], ([x1, x2], x1)):
            with pytest.raises(ModelError, match=r"hint: give the inputs alone, several of them as a dict"):
                polyak.recalibrate(model, whole)
        polyak.recalibrate(model, data)
        np.testing.assert_allclose(model.get_weights()[2], X[:32].astype("float64").mean(0), rtol=2e-6, atol=1e-6)
