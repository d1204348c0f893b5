"""A model that ``fit`` has finished with its average: where its raw weights are, and what a restart is told."""

from __future__ import annotations

import gc
import warnings
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import assert_same_bits

import polyak
from polyak.errors import ModelError, WeightsChanged
from polyak.keras import Averaging

RULE = "ema:0.9,start=copy"
X = np.random.default_rng(0).standard_normal((24, 4)).astype(np.float32)
Y = X[:, :1].copy()


def model() -> Any:
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    made = keras.Sequential([keras.Input((4,)), *layers])
    made.compile(keras.optimizers.SGD(0.05), "mse")
    return made


def fit(made: Any, *callbacks: Any) -> list[str]:
    """What is said meanwhile."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always", WeightsChanged)
        made.fit(X, Y, 8, 2, verbose=0, shuffle=False, callbacks=list(callbacks))
    return [str(w.message) for w in caught if issubclass(w.category, WeightsChanged)]


def finished() -> tuple[Any, Averaging]:
    made, averaging = model(), Averaging(RULE, finish="average")
    fit(made, averaging)
    return made, averaging


def test_a_file_of_both_sets_has_the_raw_weights_that_fit_has_put_aside(tmp_path: Path) -> None:
    plain = model()
    fit(plain)
    made, averaging = finished()
    polyak.save(averaging.average, tmp_path / "both.safetensors", weights="both")
    held = polyak.open(tmp_path / "both.safetensors")
    assert_same_bits(held.select(role="raw"), polyak.snapshot(plain))
    assert_same_bits(held.select(role="average"), averaging.average.values())
    assert_same_bits(polyak.snapshot(averaging.average, "raw"), polyak.snapshot(plain))
    assert_same_bits(polyak.snapshot(made), polyak.snapshot(averaging.average))
    with polyak.Saver() as saver:
        saver.save(averaging.average, tmp_path / "beside.safetensors", weights="both")
    assert_same_bits(polyak.open(tmp_path / "beside.safetensors").select(role="raw"), polyak.snapshot(plain))


def finished_beside() -> tuple[Any, Averaging, Any, Any]:
    """A model that holds one average, its callback, and averages of the whole model and of its last layer."""
    made, averaging, other = model(), Averaging(RULE, finish="average"), Averaging("mean", name="mean")
    part = polyak.EMA(made.layers[-1], decay=0.9)
    fit(made, averaging, other)
    return made, averaging, other.average, part


def test_raw_weights_are_the_same_beside_every_average_of_the_model(tmp_path: Path) -> None:
    plain, again = model(), model()
    fit(plain)
    _, averaging, other, part = finished_beside()
    for average in (averaging.average, other):
        polyak.save(average, tmp_path / "both.safetensors", weights="both")
        assert_same_bits(polyak.open(tmp_path / "both.safetensors").select(role="raw"), polyak.snapshot(plain))
    assert_same_bits(polyak.snapshot(part, "raw"), polyak.snapshot(plain.layers[-1]))
    polyak.transfer(other, again, weights="raw")
    assert_same_bits(polyak.snapshot(again), polyak.snapshot(plain))

    of_nobody = finished_beside()[2:]
    gc.collect()
    for average in of_nobody:
        with pytest.raises(ModelError, match="the callback is gone"):
            polyak.snapshot(average, "raw")


def test_raw_weights_that_nobody_has_kept_are_not_made_up(tmp_path: Path) -> None:
    made, averaging = finished()
    average = averaging.average
    del averaging
    gc.collect()
    for ask in ("both", "raw"):
        with pytest.raises(ModelError, match="the callback is gone") as told:
            polyak.save(average, tmp_path / "both.safetensors", weights=ask)
        assert 'weights="average"' in str(told.value)
    assert not list(tmp_path.iterdir())
    polyak.save(average, tmp_path / "average.safetensors", weights="average")
    fit(made, Averaging(average))
    polyak.save(average, tmp_path / "both.safetensors", weights="both")
    assert_same_bits(polyak.open(tmp_path / "both.safetensors").select(role="raw"), polyak.snapshot(made))


def test_a_model_that_was_written_since_holds_its_raw_weights_again(tmp_path: Path) -> None:
    made, averaging = finished()
    made.train_on_batch(X[:8], Y[:8])
    polyak.save(averaging.average, tmp_path / "both.safetensors", weights="both")
    assert_same_bits(polyak.open(tmp_path / "both.safetensors").select(role="raw"), polyak.snapshot(made))


def test_a_fit_that_finishes_so_again_goes_on_from_the_raw_weights_in_silence(tmp_path: Path) -> None:
    plain = model()
    fit(plain)
    fit(plain)
    made, averaging = finished()
    assert fit(made, averaging) == []
    assert_same_bits(polyak.snapshot(averaging.average, "raw"), polyak.snapshot(plain))


@pytest.mark.parametrize("anew", [True, False])
def test_a_fit_that_goes_on_from_the_average_of_another_callback_says_whose_it_is(anew: bool) -> None:
    made, averaging, other = model(), Averaging(RULE, finish="average"), Averaging("mean", name="mean")
    fit(made, averaging, other)
    said = fit(made, Averaging(other.average) if anew else other)
    assert len(said) == 1
    assert f"the raw weights of {averaging.average.label}" in said[0]
    assert "reset" not in said[0]


def restarted(path: Path) -> tuple[Any, Any]:
    made = keras.models.load_model(path)
    average = polyak.track(made, RULE)
    polyak.transfer(path, average, weights="average")
    return made, average


def test_a_restart_from_a_file_without_raw_weights_is_told(tmp_path: Path) -> None:
    """Keras' own file of a model that holds its average has that average twice."""
    made, averaging = finished()
    made.save(tmp_path / "run.keras")
    polyak.save(averaging.average, tmp_path / "both.safetensors", weights="both")
    other, average = restarted(tmp_path / "run.keras")
    said = fit(other, Averaging(average))
    assert len(said) == 1
    assert 'polyak.transfer(path, model, weights="raw")' in said[0]

    other, average = restarted(tmp_path / "run.keras")
    polyak.transfer(tmp_path / "both.safetensors", other, weights="raw")
    assert fit(other, Averaging(average, finish="average")) == []
    fit(made, averaging)
    assert_same_bits(average.values(), averaging.average.values())


def test_a_restart_from_a_file_that_was_written_during_fit_is_told_nothing(tmp_path: Path) -> None:
    made = model()
    averaging = Averaging(RULE, finish="average")
    fit(made, keras.callbacks.ModelCheckpoint(tmp_path / "run.keras"), averaging)
    other, average = restarted(tmp_path / "run.keras")
    assert fit(other, Averaging(average, finish="average")) == []
    fit(made, averaging)
    assert_same_bits(average.values(), averaging.average.values())


@pytest.mark.parametrize("rule", ["copy", "ema:0.9,after=100", "mean,every=100"])
def test_an_average_that_is_a_copy_by_its_rule_is_no_surprise(rule: str) -> None:
    made = model()
    first = Averaging(rule)
    fit(made, first)
    assert fit(made, Averaging(first.average)) == []


def test_a_model_that_holds_its_average_is_saved_and_handed_over_as_such(tmp_path: Path) -> None:
    made, averaging = finished()
    path = tmp_path / "held.safetensors"
    polyak.save(made, path)
    held = polyak.open(path)
    assert (held.roles, held.state.count) == (("average",), averaging.average.count)
    with pytest.raises(polyak.errors.AmbiguousRole, match="'raw'"):
        polyak.save(made, path, weights="raw")
    assert "average weights" in str(polyak.transfer(made, model()))
    first = made.trainable_variables[0]
    first.assign(first.value + 1.0)  # it goes its own way from here on
    polyak.save(made, path)
    assert polyak.open(path).roles == ("raw",)
