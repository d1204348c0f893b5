"""Switch EMA, the schedules of SWA, and the evaluation point of ScheduleFreeAdamW, on every backend."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers

import polyak
from polyak.errors import ModelError, RuleError
from polyak.keras import Averaging, SWASchedule, SwitchEMA, schedule_free

X = np.random.RandomState(3).normal(size=(12, 3)).astype(np.float32)
Y = X @ np.array([[1.0], [-2.0], [0.5]], np.float32)
RULE = "ema:0.8,start=copy"


def network(optimizer: Any) -> Any:
    keras.utils.set_random_seed(3)
    model = keras.Sequential([keras.Input((3,)), layers.Dense(3, name="a"), layers.Dense(1, name="head")])
    model.compile(optimizer, "mse")
    return model


def train(model: Any, epochs: int, *callbacks: Any) -> None:
    model.fit(X, Y, batch_size=4, epochs=epochs, shuffle=False, verbose=0, callbacks=list(callbacks))


def gradient_step(weights: list[np.ndarray], batch: int, rate: float) -> list[np.ndarray]:
    """One step of plain gradient descent of the two layers, in float64."""
    x, y = X[4 * batch : 4 * batch + 4].astype(np.float64), Y[4 * batch : 4 * batch + 4].astype(np.float64)
    k1, b1, k2, b2 = weights
    hidden = x @ k1 + b1
    error = 2 * (hidden @ k2 + b2 - y) / len(x)
    back = error @ k2.T
    grads = [x.T @ back, back.sum(0), hidden.T @ error, error.sum(0)]
    return [w - rate * g for w, g in zip(weights, grads, strict=True)]


def replayed(start: list[np.ndarray], epochs: int, switch: Any, rate: float = 0.05) -> tuple[list[np.ndarray], ...]:
    """Weights and average after so many epochs of three steps, where ``switch(step, end of epoch)`` says when."""
    weights = average = [np.asarray(w, np.float64) for w in start]
    n = 0
    for _ in range(epochs):
        for batch in range(3):
            n += 1
            weights = gradient_step(weights, batch, rate)
            w = 1.0 if n == 1 else 0.2
            average = [a + w * (x - a) for a, x in zip(average, weights, strict=True)]
            if switch(n, batch == 2):
                weights = average
    return weights, average


@pytest.mark.parametrize(
    ("asked", "switch"),
    [
        ({}, lambda n, ends: ends),
        ({"epochs": 2}, lambda n, ends: ends and n % 6 == 0),
        ({"steps": 2}, lambda n, ends: n % 2 == 0),
    ],
    ids=["each epoch", "each second epoch", "each second step"],
)
@pytest.mark.filterwarnings("ignore::polyak.errors.ImmatureWarning")
def test_the_weights_become_the_average(asked: dict[str, int], switch: Any) -> None:
    model = network(keras.optimizers.SGD(0.05))
    start = model.get_weights()
    averaging = Averaging(RULE)
    train(model, 3, averaging, SwitchEMA(averaging, **asked))
    weights, average = replayed(start, 3, switch)
    assert averaging.average.count == 9
    for got, expected in zip(model.get_weights(), weights, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)
    for got, expected in zip(averaging.average.values().values(), average, strict=True):
        np.testing.assert_allclose(got, expected, rtol=2e-5, atol=2e-6)


def test_a_switch_needs_an_averaging_of_the_same_model() -> None:
    averaging = Averaging(RULE)
    with pytest.raises(ModelError, match=r"expected a model|follows this model"):
        train(network("sgd"), 1, SwitchEMA(averaging))
    averaging.set_model(network("sgd"))
    with pytest.raises(ModelError, match="follows this model"):
        train(network("sgd"), 1, SwitchEMA(averaging))


@pytest.mark.parametrize("asked", [{"epochs": 0}, {"steps": 0}, {"steps": 1.5}])
def test_no_interval_is_refused(asked: dict[str, Any]) -> None:
    with pytest.raises(RuleError, match="SwitchEMA: "):
        SwitchEMA(Averaging(RULE), **asked)


class Steps(keras.callbacks.Callback):
    """The weights after each step."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[list[np.ndarray]] = []

    def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        self.seen.append([np.array(w) for w in self.model.get_weights()])


@pytest.mark.filterwarnings("ignore::polyak.errors.ImmatureWarning")
def test_a_cyclic_schedule_and_its_rule_meet_at_the_end_of_each_cycle() -> None:
    schedule = SWASchedule(0.1, high=0.08, low=0.01, after=3, cycle=3)
    assert str(schedule.rule) == "mean,every=3,after=3"
    model, steps = network(keras.optimizers.SGD(schedule)), Steps()
    averaging = Averaging(schedule.rule)
    train(model, 4, steps, averaging)
    rates = [float(schedule(n)) for n in range(12)]
    assert rates == pytest.approx([0.1] * 3 + [0.08 - 0.07 * i / 3 for i in (1, 2, 3)] * 3)
    # The averaged weights are those of the steps with the lowest rate: 6, 9 and 12.
    for path, index in (("a/kernel", 0), ("head/bias", 3)):
        expected = np.mean([steps.seen[n - 1][index].astype(np.float64) for n in (6, 9, 12)], axis=0)
        np.testing.assert_allclose(averaging.average.values()[path], expected, rtol=2e-6, atol=1e-7)


def test_a_constant_schedule_counts_every_step_and_comes_back_from_its_config() -> None:
    schedule = SWASchedule(0.1, high=0.5, low=0.02, after=2)
    assert [round(float(schedule(n)), 6) for n in range(5)] == [0.1, 0.1, 0.02, 0.02, 0.02]
    assert str(schedule.rule) == "mean,after=2"
    again = keras.saving.deserialize_keras_object(keras.saving.serialize_keras_object(schedule))
    assert again.get_config() == schedule.get_config()
    with pytest.raises(RuleError, match="SWASchedule: low="):
        SWASchedule(0.1, 0.1, -1, 0)


@pytest.mark.parametrize(("steps", "beta", "warmup"), [(1, 0.9, 0), (9, 0.9, 0), (30, 0.7, 10)])
def test_the_schedule_free_point_is_the_equal_mean_of_all_z(
    steps: int, beta: float, warmup: int, tmp_path: Path
) -> None:
    """On every backend: each z is recorded while the model trains."""
    optimizer = keras.optimizers.ScheduleFreeAdamW(0.05, beta_1=beta, warmup_steps=warmup)
    model = network(optimizer)
    z: list[list[np.ndarray]] = []

    class Record(keras.callbacks.Callback):
        def on_train_batch_end(self, batch: int, logs: Any = None) -> None:
            if keras.backend.backend() == "jax":
                self.model.jax_state_sync()
            z.append([np.array(keras.ops.convert_to_numpy(m), np.float64) for m in optimizer._momentums])
            self.model.stop_training = len(z) >= steps

    model.fit(X, Y, batch_size=12, epochs=steps, shuffle=False, verbose=0, callbacks=[Record()])
    snap = schedule_free(model)
    assert len(z) == steps
    for i, path in enumerate(["a/kernel", "a/bias", "head/kernel", "head/bias"]):
        np.testing.assert_allclose(snap[path], np.mean([each[i] for each in z], axis=0), rtol=2e-5, atol=2e-6)
    other = network("sgd")
    assert polyak.transfer(snap, other).role == "average"
    polyak.save(snap, tmp_path / "x.safetensors")
    assert "ScheduleFreeAdamW" in polyak.open(tmp_path / "x.safetensors").manifest.evidence[0]


def test_each_weight_has_its_own_z_where_random_seeds_stand_among_the_weights() -> None:
    keras.utils.set_random_seed(3)
    optimizer = keras.optimizers.ScheduleFreeAdamW(0.05)
    same = [layers.Dense(3, use_bias=False, name=name) for name in "abc"]
    model = keras.Sequential([keras.Input((3,)), same[0], layers.Dropout(0.5), same[1], same[2]])
    model.compile(optimizer, "mse")
    model.fit(X, X, batch_size=12, epochs=1, verbose=0)
    snap = schedule_free(model)
    for layer, z in zip(same, optimizer._momentums, strict=True):  # after one step their mean
        np.testing.assert_allclose(snap[f"{layer.name}/kernel"], keras.ops.convert_to_numpy(z), rtol=1e-5, atol=1e-6)


def test_what_is_no_schedule_free_optimizer_is_refused() -> None:
    with pytest.raises(ModelError, match=r"expected keras\.optimizers\.ScheduleFreeAdamW, received SGD"):
        schedule_free(network("sgd"))
    with pytest.raises(ModelError, match="received one without variables"):
        schedule_free(network(keras.optimizers.ScheduleFreeAdamW()))
    without = network(keras.optimizers.ScheduleFreeAdamW(beta_1=0.0))
    without.fit(X, Y, verbose=0)
    with pytest.raises(ModelError, match=r"expected beta_1 above 0; the model holds no average at all"):
        schedule_free(without)
