"""The life of a real run: what changes in the middle, late starts, narrow numbers, and weights that are no floats."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.keras import peers
from tests.keras.peers import BACKEND, adam, network, train

import polyak
from polyak.averaging.parts import Parts
from polyak.errors import BegunLate, PolyakWarning, RuleError, WeightsChanged
from polyak.keras import Averaging

COPY = "ema:0.9,start=copy"
Step = dict[str, np.ndarray]


class Steps(keras.callbacks.Callback):
    """Each real update's weights by their paths, wide, and which of them are trainable."""

    def __init__(self) -> None:
        super().__init__()
        self.steps: list[Step] = []
        self._seen = 0

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        snap = polyak.snapshot(self.model)
        now = int(keras.ops.convert_to_numpy(self.model.optimizer.iterations))
        if now != self._seen:
            self.steps.append({path: np.asarray(snap[path]).astype(np.float64) for path in snap})
        self._seen = now


def weights_of(text: str, n: int) -> float:
    """The weight of the newest value at an update, in float64."""
    return float(polyak.parse(text).weight(n))


def oracle(steps: list[Step], path: str, rule: str = COPY) -> np.ndarray:
    """The average of one weight in float64, from the first step in which it is there."""
    values = [s[path] for s in steps if path in s]
    average = values[0]
    for n, value in enumerate(values, 1):
        w = weights_of(rule, n)
        average = (1 - w) * average + w * value
    return average


def assert_follows(average: Any, steps: list[Step], rule: str = COPY) -> None:
    values = average.values()
    for w in average.target.weights:
        expected = oracle(steps, w.path, rule) if w.kind.value == "trainable" else steps[-1][w.path]
        np.testing.assert_allclose(values[w.path].astype(np.float64), expected, rtol=3e-6, atol=3e-7, err_msg=w.path)


def recompiled(model: Any, *, eager: bool = True) -> Any:
    """With an optimizer for the weights that are there now."""
    model.compile(adam(), "mse", run_eagerly=eager, jit_compile=not eager and BACKEND == "jax")
    return model


@pytest.fixture
def quietly() -> Iterator[None]:
    """A test in which polyak has nothing to say."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", PolyakWarning)
        warnings.filterwarnings("ignore", category=polyak.errors.ImmatureWarning)
        yield


@pytest.mark.usefixtures("quietly")
def test_layers_are_frozen_and_unfrozen_in_the_middle() -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    for frozen in (False, True, False):
        model.layers[0].trainable = not frozen
        train(recompiled(model, eager=not frozen), 3, averaging, record)
        record._seen = 0
    assert averaging.average.count == 9
    assert str(averaging.average.rule) == COPY
    assert_follows(averaging.average, record.steps)
    assert np.array_equal(record.steps[2]["a/kernel"], record.steps[5]["a/kernel"])


@pytest.mark.parametrize("eager", [True, False], ids=["eager", "compiled"])
def test_low_rank_adapters_are_enabled_in_the_middle(eager: bool) -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    train(model, 3, averaging, record)
    model.layers[0].enable_lora(2)
    record._seen = 0
    with pytest.warns(WeightsChanged, match=r"'a/lora_kernel_[ab]' and 1 more new, averaged from update 4 on") as said:
        train(recompiled(model, eager=eager), 3, averaging, record)
    assert len([w for w in said if w.category is WeightsChanged]) == 1
    ema = averaging.average
    assert ema.count == 6
    assert set(ema.values()) == set(record.steps[-1])
    assert_follows(ema, record.steps)
    # The adapters' first average is their value after their first step, and their share of it is that of three updates.
    assert isinstance(ema.rule, Parts)
    assert ema.rule.rule_of("a/lora_kernel_a").immaturity(6) == pytest.approx(0.9**2)
    assert ema.rule.rule_of("b/kernel").immaturity(6) == pytest.approx(0.9**5)
    assert ema.immaturity == pytest.approx(0.9**2)


def test_a_head_is_added_in_the_middle() -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    train(model, 3, averaging, record)
    model.add(layers.Dense(1, name="second"))
    record._seen = 0
    with pytest.warns(WeightsChanged, match=r"'second/\w+' and 1 more new, averaged from update 4 on"):
        train(recompiled(model), 2, averaging, record)
    assert averaging.average.count == 5
    assert_follows(averaging.average, record.steps)


def test_a_head_is_exchanged_in_the_middle() -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    train(model, 3, averaging, record)
    model.pop()
    model.add(layers.Dense(1, name="head"))
    record._seen = 0
    with pytest.warns(WeightsChanged, match="'head/kernel' and 1 more gone, with what was averaged of them"):
        train(recompiled(model), 2, averaging, record)
    ema = averaging.average
    np.testing.assert_allclose(
        ema.values()["head/kernel"], oracle(record.steps[3:], "head/kernel"), rtol=3e-6, atol=3e-7
    )
    np.testing.assert_allclose(ema.values()["b/kernel"], oracle(record.steps, "b/kernel"), rtol=3e-6, atol=3e-7)


class ChangeRule(keras.callbacks.Callback):
    """Another rule at the end of an epoch."""

    def __init__(self, averaging: Averaging, epoch: int, rule: str) -> None:
        super().__init__()
        self.given = (averaging, epoch, rule)

    def on_epoch_end(self, epoch: int, logs: Any = None) -> None:
        averaging, at, rule = self.given
        if epoch == at:
            averaging.average.change_rule(rule)


def changed_oracle(steps: list[Step], path: str, rules: list[str]) -> np.ndarray:
    """A rule for each update, which counts all updates."""
    average = steps[0][path]
    for n, (step, rule) in enumerate(zip(steps, rules, strict=True), 1):
        w = weights_of(rule, n)
        average = (1 - w) * average + w * step[path]
    return average


@pytest.mark.parametrize("compiled", [False, True], ids=["eager", "compiled"])
@pytest.mark.parametrize("later", ["ema:0.99,start=copy", "mean"])
def test_the_rule_is_changed_in_the_middle_of_fit(later: str, compiled: bool) -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    model.compile(adam(), "mse", run_eagerly=not compiled, jit_compile=compiled and BACKEND == "jax")
    train(model, 6, ChangeRule(averaging, 2, later), averaging, record)
    ema = averaging.average
    assert (ema.count, str(ema.rule)) == (6, f"{COPY} until 3 then {later}")
    assert ema.immaturity == pytest.approx(0.9**2 * polyak.parse(later).kept(4, 6))
    for path in ("a/kernel", "head/bias"):
        expected = changed_oracle(record.steps, path, [COPY] * 3 + [later] * 3)
        np.testing.assert_allclose(ema.values()[path], expected, rtol=3e-6, atol=3e-7)


def test_the_rule_is_changed_between_two_fits() -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    train(model, 3, averaging, record)
    averaging.average.change_rule("ema:0.99,start=copy")
    train(model, 3, averaging, record)
    expected = changed_oracle(record.steps, "b/kernel", [COPY] * 3 + ["ema:0.99,start=copy"] * 3)
    np.testing.assert_allclose(averaging.average.values()["b/kernel"], expected, rtol=3e-6, atol=3e-7)
    assert averaging.average.count == 6


def test_a_changed_rule_leaves_values_and_counts_and_is_in_the_file(tmp_path: Any) -> None:
    model = network(adam())
    ema = polyak.track(model, COPY)
    ema.update()
    before = ema.values()
    ema.change_rule("ema:0.99,start=copy")
    assert (ema.count, ema.skipped) == (1, 0)
    assert {p: v.tobytes() for p, v in ema.values().items()} == {p: v.tobytes() for p, v in before.items()}
    polyak.save(ema, tmp_path / "a.safetensors")
    state = polyak.open(tmp_path / "a.safetensors").state
    assert state is not None
    assert state.rule == polyak.parse(f"{COPY} until 1 then ema:0.99,start=copy").to_json()


def test_before_the_first_update_another_rule_starts_as_it_would_have() -> None:
    ema = polyak.track(network(adam()), COPY)
    ema.change_rule("ema:0.9,start=zero")
    assert not any(value.any() for value in ema.values().values())


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"a/*": None, "*": COPY}, r"weight 'a/kernel': the present rule follows it, the new rule .* leaves it out"),
        ({"x/*": COPY, "*": COPY}, r"glob 'x/\*' matches no weight"),
        ("ema:0.1", "would forget 90% of the average"),
    ],
)
def test_a_rule_that_cannot_follow_is_refused_and_changes_nothing(rule: Any, message: str) -> None:
    ema = polyak.track(network(adam()), COPY)
    with pytest.raises(RuleError, match=message):
        ema.change_rule(rule)
    assert str(ema.rule) == COPY


def test_no_rule_is_changed_while_the_average_is_applied() -> None:
    ema = polyak.track(network(adam()), COPY)
    with ema.applied(), pytest.raises(polyak.errors.Applied):
        ema.change_rule("mean")


@pytest.mark.usefixtures("quietly")
def test_averaging_starts_late() -> None:
    model, averaging, record = network(adam()), Averaging(f"{COPY},after=3"), Steps()
    train(model, 3, averaging, record)
    np.testing.assert_array_equal(averaging.average.values()["a/kernel"], record.steps[-1]["a/kernel"])
    assert averaging.average.immaturity == 1.0
    train(model, 3, averaging, record)
    assert averaging.average.count == 6
    assert_follows(averaging.average, record.steps, f"{COPY},after=3")
    assert averaging.average.immaturity == pytest.approx(0.9**2)


def test_an_average_is_begun_on_a_file_that_has_none(tmp_path: Any) -> None:
    model = network(adam())
    train(model, 2)
    model.save(tmp_path / "old.keras")
    again = keras.models.load_model(tmp_path / "old.keras")
    averaging, record = Averaging(COPY), Steps()
    record._seen = 2
    with pytest.warns(BegunLate, match=r"start=copy of Sequential .* the optimizer has made 2 updates"):
        train(again, 3, averaging, record)
    assert averaging.average.count == 3
    assert_follows(averaging.average, record.steps)


def test_an_average_that_goes_on_or_was_made_for_it_is_not_late() -> None:
    model = network(adam())
    first = Averaging(COPY)
    with warnings.catch_warnings():
        warnings.simplefilter("error", BegunLate)
        train(model, 2, first)
        train(model, 2, first)
        train(model, 2, Averaging(first.average))
        train(model, 2, Averaging(polyak.track(model, "mean")))
        first.average.reset()
        train(model, 2, first)
    with pytest.warns(BegunLate, match="10 updates") as said:
        train(model, 2, Averaging(first.average), Averaging(COPY, name="anew"))
    assert [each.filename for each in said if each.category is BegunLate] == [peers.__file__]  # where fit is called


@pytest.fixture(params=["mixed_bfloat16", "mixed_float16", "bfloat16"])
def policy(request: Any) -> Iterator[str]:
    keras.config.set_dtype_policy(request.param)
    yield request.param
    keras.config.set_dtype_policy("float32")


def test_narrow_numbers_have_an_average_in_float32(policy: str) -> None:
    model, averaging, record = network(adam()), Averaging(COPY), Steps()
    if policy == "mixed_float16":
        # So large a scale that the first steps overflow: Keras skips them, and they are no updates.
        model = network(keras.optimizers.LossScaleOptimizer(adam(), initial_scale=2.0**22))
    train(model, 12, averaging, record)
    ema = averaging.average
    real = int(keras.ops.convert_to_numpy(model.optimizer.iterations))
    assert ema.count == real == len(record.steps)
    assert real < 12 if policy == "mixed_float16" else real == 12
    assert {w.dtype for w in ema.target.weights} == {"float32"}
    assert {v.dtype for v in model.weights} == {"bfloat16" if policy == "bfloat16" else "float32"}
    assert_follows(ema, record.steps)


def test_a_quantised_model_has_copies_of_its_integers() -> None:
    model = network(adam())
    ema = polyak.track(model, COPY)
    ema.update()
    before = ema.values()
    model.quantize("int8")
    said = ema.refresh()
    assert re.search(r"'a/kernel(_scale)?' and \d more new, averaged from update 2 on", said)
    assert "gone, with what was averaged of them" in said
    ema.update()
    snap, values = polyak.snapshot(model), ema.values()
    assert values["a/kernel"].dtype == np.int8
    np.testing.assert_array_equal(values["a/kernel"], snap["a/kernel"])
    np.testing.assert_array_equal(values["a/kernel_scale"], snap["a/kernel_scale"])
    np.testing.assert_array_equal(values["a/bias"], before["a/bias"])
    kinds = {w.path: w.kind.value for w in ema.target.weights}
    assert (kinds["a/kernel"], kinds["a/kernel_scale"], kinds["a/bias"]) == ("counter", "statistic", "trainable")
    assert ema.count == 2


def test_integer_weights_are_copied_and_not_averaged() -> None:
    normalization = layers.Normalization()
    normalization.adapt(np.random.RandomState(0).normal(size=(16, 3)).astype(np.float32))

    class Counting(layers.Layer):
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="seen")

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((3,)), normalization, Counting(name="counting"), layers.Dense(1)])
    ema = polyak.track(model, COPY)
    for n in (3, 7):
        model.get_layer("counting").seen.assign(n)
        ema.update()
    assert ema.values()["counting/seen"] == 7
    assert ema.values()["counting/seen"].dtype == np.int32


def test_what_a_file_leaves_out_of_a_changed_model_is_said(tmp_path: Path) -> None:
    """Weights that came after the average began, and that nobody told it of. Rules that leave weights out say so."""
    model = network(adam())
    ema = polyak.EMA(model, 0.9)
    part = polyak.track(model, {"a/*": "ema:0.9", "*": None})
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for average in (ema, part):
            polyak.save(average, tmp_path / "a.safetensors", weights="both")
    model.layers[-1].enable_lora(2)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.save(part, tmp_path / "a.safetensors")  # it would not follow them
    ema.refresh()
    model.layers[0].enable_lora(2)
    missing = r"weight '.*a/lora_kernel_[ab]' and 1 more: new in the model, .*; what is saved is without"
    for weights in ("raw", "average", "both"):
        with pytest.warns(WeightsChanged, match=missing):
            polyak.save(ema, tmp_path / "a.safetensors", weights)
    with polyak.Saver() as background, pytest.warns(WeightsChanged, match=missing):
        background.save(ema, tmp_path / "a.safetensors")
    with pytest.warns(WeightsChanged, match=missing):
        polyak.convert(ema, tmp_path / "a.npz")
    with pytest.warns(WeightsChanged, match=missing):
        polyak.transfer(ema, tmp_path / "a.safetensors")
    ema.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        polyak.save(ema, tmp_path / "a.safetensors")
