"""The life of a real run: what changes in the middle, late starts, narrow numbers, and weights that are no floats."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterator
from typing import Any

import keras
import numpy as np
import pytest
from keras import layers
from tests.keras.peers import BACKEND, adam, network, train

import polyak
from polyak.averaging.parts import Parts
from polyak.errors import PolyakWarning, RuleError, WeightsChanged
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
    train(again, 3, averaging, record)
    assert averaging.average.count == 3
    assert_follows(averaging.average, record.steps)


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


def broken(model: Any) -> None:
    """One weight of a run that has diverged."""
    model.layers[0].kernel.assign(np.full((3, 3), np.nan, np.float32))


def changed(ema: Any) -> None:
    ema.change_rule("ema:0.99,start=copy")


def taken_over(ema: Any) -> None:
    other = polyak.track(network(adam()), "ema:0.99,start=copy")
    other.update()
    polyak.transfer(other, ema)


def grown(ema: Any) -> None:
    ema.followed().add(layers.Dense(1, name="second"))
    ema.refresh()


@pytest.mark.filterwarnings("ignore::polyak.errors.NonFiniteWarning")
@pytest.mark.parametrize("then", [changed, taken_over, grown])
def test_the_guard_of_a_weight_stays_whatever_happens_while_it_is_not_finite(then: Any) -> None:
    model = network(adam())
    ema = polyak.track(model, COPY)
    ema.update()
    broken(model)
    then(ema)
    count, before = ema.count, ema.values()
    ema.update()
    assert (ema.count, ema.skipped) == (count, 1)
    assert {p: v.tobytes() for p, v in ema.values().items()} == {p: v.tobytes() for p, v in before.items()}


def test_a_mask_of_minus_infinity_is_followed_also_after_a_refresh() -> None:
    class Masked(layers.Layer):
        def build(self, shape: Any) -> None:
            self.mask = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="mask")
            self.mask.assign(np.full(3, -np.inf, np.float32))

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((3,)), Masked(name="masked"), layers.Dense(1, name="head")])
    ema = polyak.track(model, COPY)
    ema.update()
    model.add(layers.Dense(1, name="second"))
    ema.refresh()
    ema.update()
    assert (ema.count, ema.skipped) == (2, 0)
    assert np.isneginf(ema.values()["masked/mask"]).all()


def state_of(ema: Any) -> tuple[Any, ...]:
    return {p: v.tobytes() for p, v in ema.values().items()}, ema.rule, ema.count, ema.skipped


def test_a_refresh_that_is_refused_changes_nothing_and_may_be_tried_again() -> None:
    model = network(adam())
    ema = polyak.track(model, COPY)
    for _ in range(3):
        ema.update()
    before = state_of(ema)
    second = layers.Dense(1, name="second")
    model.add(second)
    second.kernel.assign(np.full((1, 1), np.nan, np.float32))
    for _ in range(2):
        with pytest.raises(polyak.errors.NonFinite, match="weight 'second/kernel': expected finite values"):
            ema.refresh()
        assert state_of(ema) == before
    second.kernel.assign(np.full((1, 1), 2.0, np.float32))
    assert "averaged from update 4 on" in ema.refresh()
    ema.update()
    assert isinstance(ema.rule, Parts)
    assert str(ema.rule.rule_of("second/kernel")) == f"{COPY},after=3"
    assert (ema.count, ema.values()["second/kernel"].tolist()) == (4, [[2.0]])


def test_a_rule_that_leaves_all_out_is_refused() -> None:
    with pytest.raises(RuleError, match="expected a rule for at least one weight, received one that leaves out all 6"):
        polyak.track(network(adam()), {"*": None})


def test_all_that_was_followed_may_be_replaced() -> None:
    model = network(adam())
    ema = polyak.track(model, {"head/*": "copy", "*": COPY})
    ema.update()
    for _ in range(3):
        model.pop()
    model.add(layers.Dense(1, name="other"))
    assert "'other/kernel' and 1 more new" in ema.refresh()
    ema.update()
    assert (set(ema.values()), ema.count) == ({"other/kernel", "other/bias"}, 2)


def test_another_rule_that_cannot_start_changes_nothing() -> None:
    model = network(adam())
    ema = polyak.track(model, "ema:0.9,start=zero")
    before = state_of(ema)
    broken(model)
    with pytest.raises(polyak.errors.NonFinite, match="weight 'a/kernel': expected finite values"):
        ema.change_rule("mean")
    assert state_of(ema) == before


def exchanged(model: Any, name: str) -> None:
    """The last layer, in the place of which a new one has this name."""
    model.pop()
    model.add(layers.Dense(1, name=name))


@pytest.mark.parametrize("others", [{"*": COPY}, {"a/*": COPY, "b/*": COPY}])
def test_a_layer_that_is_exchanged_has_the_rule_that_its_path_was_given(others: dict[str, str]) -> None:
    model = network(adam())
    ema = polyak.track(model, {"head/kernel": None, "head/bias": "mean", **others})
    for count in (1, 2):
        ema.update()
        exchanged(model, "head")
        said = ema.refresh()
        assert f"'head/bias' new, averaged from update {count + 1}" in said
        assert "'head/kernel' new and left out by the rule" in said
        assert "head/kernel" not in ema.values()
        assert isinstance(ema.rule, Parts)
        assert str(ema.rule.rule_of("head/bias")) == f"mean,after={count}"


@pytest.mark.parametrize(
    ("rule", "later", "expected"),
    [
        (COPY, {"head/*": "copy", "*": "mean"}, "mean,after=8"),
        ({"head/*": "copy", "*": COPY}, "mean", "mean,after=8"),
        ({"head/*": "copy", "a/*": COPY, "b/*": COPY}, "mean", "mean,after=8"),
        ({"head/*": "copy", "*": COPY}, {"a/*": COPY, "*": "mean"}, "mean,after=8"),
        (COPY, "ema:0.99,start=copy", "ema:0.99,start=copy,after=8"),
        (COPY, "mean,after=4", "mean,after=8"),
    ],
)
def test_a_layer_that_is_added_after_a_change_begins_with_the_present_rule(
    rule: Any, later: Any, expected: str
) -> None:
    model = network(adam())
    ema = polyak.track(model, rule)
    for n in range(8):
        if n == 4:
            ema.change_rule(later)
        ema.update()
    model.add(layers.Dense(1, name="second"))
    ema.refresh()
    ema.update()
    assert isinstance(ema.rule, Parts)
    assert str(ema.rule.rule_of("second/kernel")) == expected
    assert str(ema.rule.rule_of("a/kernel")).startswith(COPY)
    exchanged(model, "second")
    ema.refresh()
    assert str(ema.rule.rule_of("second/kernel")) == expected.replace("8", "9")


def test_what_came_later_is_followed_as_the_refusal_says() -> None:
    model = network(adam())
    ema = polyak.track(model, COPY)
    model.add(layers.Dense(1, name="second"))
    with pytest.raises(polyak.errors.ModelError, match=r"'second/kernel' was created after") as refused, ema.applied():
        raise AssertionError("the block began")
    assert "ema.refresh()" in str(refused.value)


def test_a_rule_that_leaves_out_what_is_followed_is_not_taken_over() -> None:
    model = network(adam())
    old, new = polyak.track(model, {"head/*": None, "*": "mean"}), polyak.track(model, COPY)
    old.update()
    before = state_of(new)
    with pytest.raises(RuleError, match=r"weight 'head/kernel': .* follows it, the rule .* leaves it out"):
        polyak.transfer(old, new, exclude="head/*")
    assert state_of(new) == before


def test_what_is_left_out_stays_so_whatever_rule_is_taken_over() -> None:
    model = network(adam())
    old = polyak.track(model, "mean")
    for _ in range(5):
        old.update()
    rule = {"head/*": None, "*": "ema:0.99,start=copy"}
    with pytest.raises(RuleError, match="leaves it out") as refused:
        old.change_rule(rule)
    assert "polyak.transfer(ema, new, exclude=...) what is left out; new.change_rule(rule)" in str(refused.value)
    new = polyak.track(model, rule)
    polyak.transfer(old, new, exclude="head/*")
    assert str(new.rule) == "{head/kernel: left out, head/bias: left out, *: mean}"
    new.change_rule(rule)
    model.add(layers.Dense(1, name="second"))
    new.refresh()
    assert (set(old.values()) | {"second/kernel", "second/bias"}) - set(new.values()) == {"head/kernel", "head/bias"}
    assert isinstance(new.rule, Parts)
    assert str(new.rule.rule_of("b/kernel")) == "mean until 5 then ema:0.99,start=copy"
    assert str(new.rule.rule_of("second/kernel")) == "ema:0.99,start=copy,after=5"
