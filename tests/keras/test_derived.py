"""Layers that were adapted to data keep constants made of their weights, which must follow a transfer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import ModelError, NonFinite

X = np.random.default_rng(0).normal(5.0, 3.0, (20, 3)).astype("float32")
Y = np.zeros((20, 2), "float32")


def model(adapted: bool) -> Any:
    norm = keras.layers.Normalization()
    made = keras.Sequential([keras.Input((3,)), norm, keras.layers.Dense(2)])
    if adapted:
        norm.adapt(X)
    made.compile("sgd", "mse")
    return made


def answers(made: Any) -> list[np.ndarray]:
    return [keras.ops.convert_to_numpy(made(X)), made.predict(X, verbose=0)]


@pytest.mark.parametrize("way", ["model", "average", "copy_to", "file"])
def test_a_model_that_was_adapted_answers_alike_after_a_transfer_compiled_or_not(way: str, tmp_path: Path) -> None:
    source, target = model(adapted=True), model(adapted=False)
    answers(target)
    ema = polyak.EMA(source, decay=0.5)
    for _ in range(9):
        ema.update()
    if way == "copy_to":
        ema.copy_to(target)
    else:
        polyak.save(source, tmp_path / "m.safetensors")
        polyak.transfer({"model": source, "average": ema, "file": tmp_path / "m.safetensors"}[way], target)
    for ours, theirs in zip(answers(target), answers(source), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)
    losses = [made.evaluate(X, Y, verbose=0) for made in (source, target)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def legacy(adapted: bool) -> Any:
    import tf_keras

    norm = tf_keras.layers.Normalization()
    made = tf_keras.Sequential([tf_keras.layers.InputLayer((3,)), norm, tf_keras.layers.Dense(2)])
    if adapted:
        norm.adapt(X)
    return made


def in_a_module(adapted: bool) -> Any:
    import tensorflow as tf

    module = tf.Module()
    module.parts = [model(adapted)]
    return module


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="modules and models of TensorFlow")
@pytest.mark.parametrize(("make", "model_of"), [(legacy, lambda x: x), (in_a_module, lambda x: x.parts[0])])
def test_other_models_of_tensorflow_answer_alike_after_a_transfer(make: Any, model_of: Any) -> None:
    source, target = make(True), make(False)
    ema, other = polyak.EMA(source, decay=0.5), polyak.EMA(target, decay=0.5)
    for one in (source, target):
        model_of(one).predict(X, verbose=0)
    with pytest.raises(ModelError, match="the statistics that the layer was adapted to"):
        polyak.transfer(ema, other)
    polyak.transfer(source, target)
    polyak.transfer(ema, other)
    for answer in (lambda x: x(X).numpy(), lambda x: x.predict(X, verbose=0)):
        ours, theirs = (answer(model_of(one)) for one in (target, source))
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_training_goes_on_with_what_was_transferred() -> None:
    source, target = model(adapted=True), model(adapted=False)
    target.fit(X, Y, verbose=0)
    polyak.transfer(source, target)
    losses = [made.fit(X, Y, verbose=0, shuffle=False, batch_size=20).history["loss"][0] for made in (source, target)]
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


@pytest.mark.parametrize("way", ["average", "values", "file"])
def test_an_average_takes_no_statistics_that_its_model_does_not_compute_with(way: str, tmp_path: Path) -> None:
    """The layer keeps constants of its own data, whatever the average holds of it."""
    source, target = model(adapted=True), model(adapted=False)
    ema, other = polyak.EMA(source, decay=0.5), polyak.EMA(target, decay=0.5)
    polyak.save(ema, tmp_path / "ema.safetensors")

    def hand_over() -> None:
        if way == "values":
            other.set_values(ema.values())
        else:
            polyak.transfer({"average": ema, "file": tmp_path / "ema.safetensors"}[way], other)

    before = {path: value.tobytes() for path, value in other.values().items()}
    with pytest.raises(ModelError, match="the statistics that the layer was adapted to") as told:
        hand_over()
    assert "into the model first" in str(told.value)
    assert {path: value.tobytes() for path, value in other.values().items()} == before
    polyak.transfer(source, target)
    hand_over()
    with other.applied():
        applied = answers(target)
    for ours, theirs in zip(
        [*applied, other.predict(X, verbose=0)], [*answers(source), answers(source)[1]], strict=True
    ):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_a_transfer_that_is_taken_back_takes_the_constants_back() -> None:
    source, target = model(adapted=True), model(adapted=False)
    before = answers(target)
    source.layers[-1].bias.assign([0.0, np.nan])
    with pytest.raises(NonFinite):
        polyak.transfer(source, target)
    for ours, theirs in zip(answers(target), before, strict=True):
        np.testing.assert_array_equal(ours, theirs)
