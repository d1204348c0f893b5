"""Averages kept now and then in ``fit``, and another made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

import polyak
from polyak.errors import ModelError
from polyak.keras import Averaging, Snapshots

X = np.random.default_rng(0).normal(size=(160, 3)).astype("float32")
Y = (X @ np.float32([[1.0], [-2.0], [0.5]])).astype("float32")
WANTED = "power:sigma_rel=0.08"


def small(**compiled: Any) -> keras.Model:
    keras.utils.set_random_seed(0)
    layers = keras.layers
    model = keras.Sequential([keras.Input((3,)), layers.Dense(4), layers.BatchNormalization(), layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.05, **compiled), "mse")
    return model


def widths() -> list[Averaging]:
    return [Averaging(f"power:sigma_rel={s}", name=f"width{s}") for s in ("0.05", "0.10")]


def counts(paths: list[Path]) -> list[int]:
    return sorted({int(p.stem.rpartition("-")[2]) for p in paths})


def test_a_width_that_did_not_run_is_made_after_fit(tmp_path: Path) -> None:
    model, kept, wanted = small(), widths(), Averaging(WANTED, name="wanted")
    snapshots = Snapshots(kept, 8, tmp_path)
    model.fit(X, Y, 16, 12, verbose=0, callbacks=[snapshots, *kept, wanted])
    assert counts(snapshots.paths) == list(range(8, 121, 8))
    made = polyak.synthesize(snapshots.paths, WANTED)
    assert made.error < 0.01
    ran = wanted.average.snapshot()
    for name in made:
        np.testing.assert_allclose(made[name], ran[name], atol=0.003)
    other = small()
    polyak.transfer(made, other)
    np.testing.assert_array_equal(other.get_weights()[0], made[next(iter(made))])


def test_files_of_keras_are_snapshots(tmp_path: Path) -> None:
    model, kept = small(), widths()
    snapshots = Snapshots(kept, 10, tmp_path)
    model.fit(X, Y, 16, 4, verbose=0, callbacks=[*kept, snapshots])
    converted = [path.with_suffix(".weights.h5") for path in snapshots.paths]
    for source, target in zip(snapshots.paths, converted, strict=True):
        polyak.save(source, target)
    made, plain = polyak.synthesize(converted, WANTED), polyak.synthesize(snapshots.paths, WANTED)
    assert made.error == plain.error
    assert sorted(made[n].tobytes() for n in made) == sorted(plain[n].tobytes() for n in plain)


def test_real_updates_are_counted_and_the_end_is_kept(tmp_path: Path) -> None:
    model, kept = small(gradient_accumulation_steps=2), widths()
    snapshots = Snapshots({"a": kept[0], "b": kept[1]}, 4, tmp_path)
    model.fit(X, Y, 16, 3, verbose=0, callbacks=[*kept, snapshots])
    assert kept[0].average.count == 15
    assert counts(snapshots.paths) == [4, 8, 12, 15]
    assert {p.name.partition("-")[0] for p in snapshots.paths} == {"a", "b"}


@pytest.mark.skipif(keras.backend.backend() == "torch", reason="Keras on PyTorch has no steps_per_execution")
def test_with_several_steps_an_execution_the_snapshot_is_at_its_end(tmp_path: Path) -> None:
    model, average = small(), Averaging("mean")
    model.compile("sgd", "mse", steps_per_execution=5)
    snapshots = Snapshots(average, 4, tmp_path)
    model.fit(X, Y, 16, 2, verbose=0, callbacks=[average, snapshots])
    assert counts(snapshots.paths) == [5, 10, 15, 20]


def test_a_second_fit_goes_on(tmp_path: Path) -> None:
    model, average = small(), Averaging("mean")
    snapshots = Snapshots(average, 7, tmp_path)
    for _ in range(2):
        model.fit(X, Y, 16, 1, verbose=0, callbacks=[average, snapshots])
    assert counts(snapshots.paths) == [7, 10, 14, 20]


def test_a_fit_that_goes_on_from_an_earlier_average_sets_later_files_aside(tmp_path: Path) -> None:
    model, average = small(), Averaging("mean")
    snapshots = Snapshots(average, 8, tmp_path)
    model.fit(X, Y, 16, 1, verbose=0, callbacks=[average, snapshots])
    held = polyak.snapshot(average.average)
    model.fit(X, Y, 16, 2, verbose=0, callbacks=[average, snapshots])
    assert counts(snapshots.paths) == [8, 10, 16, 24, 30]
    polyak.transfer(held, average.average)
    model.fit(X, Y, 16, 1, verbose=0, callbacks=[average, snapshots])
    assert counts(snapshots.paths) == [8, 10, 16, 20]
    abandoned = sorted(int(p.name.partition(".")[0].rpartition("-")[2]) for p in tmp_path.glob("*.abandoned"))
    assert abandoned == [16, 24, 30]


def test_an_average_that_moves_in_a_step_of_one_s_own_is_kept_too(tmp_path: Path) -> None:
    model = small()
    ema = polyak.EMA(model, 0.9)
    snapshots = polyak.Snapshots(ema, 2, tmp_path)
    for _ in range(5):
        model.set_weights([w * np.float32(0.9) for w in model.get_weights()])
        ema.update()
        snapshots.step()
    assert counts(snapshots.paths) == [2, 4]


def test_averages_of_one_name_are_refused(tmp_path: Path) -> None:
    model = small()
    twice = [polyak.EMA(model, 0.9), polyak.EMA(model, 0.9)]
    with pytest.raises(ModelError, match="expected averages of different rules"):
        model.fit(X, Y, 16, 1, verbose=0, callbacks=[Snapshots(twice, 2, tmp_path)])
