"""A model or a rule that changes: what an average keeps, what begins anew, and what is refused with nothing changed."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import h5py
import keras
import numpy as np
import pytest
from keras import layers
from tests.keras.peers import adam, network

import polyak
from polyak.averaging.parts import Parts
from polyak.errors import NonFinite, RuleChanged, RuleError, UnbuiltModel, WeightsChanged
from polyak.keras import Averaging

COPY = "ema:0.9,start=copy"


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


@pytest.mark.parametrize("low", [-np.inf, np.finfo(np.float32).min])
def test_a_mask_of_the_lowest_numbers_is_followed_also_after_a_refresh(low: float) -> None:
    class Masked(layers.Layer):
        def build(self, shape: Any) -> None:
            self.mask = self.add_weight(shape=(3,), initializer="zeros", trainable=False, name="mask")
            self.mask.assign(np.full(3, low, np.float32))

        def call(self, x: Any) -> Any:
            return x

    model = keras.Sequential([keras.Input((3,)), Masked(name="masked"), layers.Dense(1, name="head")])
    ema = polyak.track(model, COPY)
    ema.update()
    model.add(layers.Dense(1, name="second"))
    ema.refresh()
    ema.update()
    assert (ema.count, ema.skipped) == (2, 0)
    assert (ema.values()["masked/mask"] == low).all()


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


def again(how: str, ema: Any) -> None:
    """Begin the average again from the weights of its model."""
    if how == "reset":
        ema.reset()
    elif how == "hard_sync":
        ema.hard_sync()
    else:
        polyak.transfer(polyak.snapshot(ema.followed()), ema, weights="raw")


@pytest.mark.parametrize("rule", ["mean", "ema:0.9,start=zero", {"first/*": "mean", "*": "ema:0.9,start=zero"}])
@pytest.mark.parametrize("how", ["reset", "hard_sync", "transfer"])
def test_what_came_later_is_not_late_any_more_where_the_average_begins_again(how: str, rule: Any) -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="first")])
    ema = polyak.track(model, rule)
    plain = ema.rule
    for name in ("second", "third"):
        ema.update()
        model.add(layers.Dense(2, name=name))
        ema.refresh()
    assert ema.rule != plain
    again(how, ema)
    fresh = polyak.track(model, rule)
    again(how, fresh)
    assert (ema.rule, ema.count) == (plain, 0)
    for value in (1.0, 5.0, 2.0):
        model.set_weights([np.full(w.shape, value, w.dtype) for w in model.get_weights()])
        ema.update()
        fresh.update()
    assert {p: v.tobytes() for p, v in ema.values().items()} == {p: v.tobytes() for p, v in fresh.values().items()}


def test_a_late_beginning_that_was_asked_for_stays_where_the_average_begins_again() -> None:
    model = keras.Sequential([keras.Input((3,)), layers.Dense(2, name="first")])
    ema = polyak.track(model, {"first/kernel": "mean,after=1", "*": "mean"})
    plain = ema.rule
    ema.update()
    model.add(layers.Dense(2, name="second"))
    ema.refresh()
    ema.reset()
    assert ema.rule == plain


class Partly(keras.Model):
    """Built before its layers are, as one whose ``build`` makes a weight; one layer is never called."""

    def __init__(self) -> None:
        super().__init__()
        self.head, self.spare = layers.Dense(1), layers.Dense(3)

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name="scale", shape=(), initializer="ones")

    def call(self, x: Any) -> Any:
        return self.head(x) * self.scale


def partly() -> Any:
    model = Partly()
    model.compile("sgd", "mse")
    model.build((None, 3))
    return model


@pytest.mark.parametrize("eagerly", [False, True])
def test_what_the_first_step_of_fit_builds_is_followed(eagerly: bool) -> None:
    model, x = partly(), np.ones((8, 3), "float32")
    model.run_eagerly = eagerly
    averaging = Averaging("ema:0.9", finish="average")
    model.fit(x, x[:, :1], 4, 2, verbose=0, callbacks=[averaging])
    assert list(averaging.average.values()) == ["scale", "head/kernel", "head/bias"]
    assert averaging.average.count == 4


def test_what_the_first_step_of_a_loop_builds_is_followed_and_a_late_start_is_said() -> None:
    model, x = partly(), np.ones((4, 3), "float32")
    copied, started = polyak.EMA(model, 0.9), polyak.EMA(model, 0.9, start="initial")
    model.train_on_batch(x, x[:, :1])
    copied.update()
    with pytest.warns(WeightsChanged, match="'head/kernel' and 1 more new, averaged from update 1 on"):
        started.update()
    for ema in (copied, started):
        assert list(ema.values()) == ["scale", "head/kernel", "head/bias"]
        assert ema.count == 1


@pytest.mark.skipif(keras.backend.backend() != "tensorflow", reason="a trace of TensorFlow")
def test_what_a_trace_builds_has_no_first_value_to_start_from() -> None:
    import tensorflow as tf

    model, x = partly(), np.ones((4, 3), "float32")
    started = polyak.EMA(model, 0.9, start="initial")

    @tf.function(autograph=False)
    def step() -> None:
        model(x)
        started.update()

    with pytest.raises(UnbuiltModel, match="starts at the initial weights; Partly is not built yet"):
        step()


def test_a_rest_that_could_not_be_followed_is_followed_later() -> None:
    model, x = partly(), np.ones((4, 3), "float32")
    ema = polyak.EMA(model, 0.9)
    model(x)
    kernel = model.head.kernel.numpy() if hasattr(model.head.kernel, "numpy") else np.asarray(model.head.kernel)
    model.head.kernel.assign(np.full_like(kernel, np.nan))
    with pytest.raises(NonFinite):
        ema.update()
    model.head.kernel.assign(kernel)
    ema.update()
    assert list(ema.values()) == ["scale", "head/kernel", "head/bias"]


def test_a_file_goes_into_an_average_of_a_model_that_was_completed_meanwhile(tmp_path: Any) -> None:
    model, x = partly(), np.ones((4, 3), "float32")
    model(x)
    model.average = polyak.EMA(model, 0.5)
    model.average.update()
    model.save_weights(tmp_path / "both.weights.h5")
    other = partly()
    other.average = polyak.EMA(other, 0.5)
    other(x)
    other.load_weights(tmp_path / "both.weights.h5")
    assert list(other.average.values()) == ["scale", "head/kernel", "head/bias"]
    np.testing.assert_array_equal(other.average.values()["head/kernel"], model.average.values()["head/kernel"])
    assert other.average.count == 1


def test_what_a_transfer_leaves_out_of_a_new_average_begins_late() -> None:
    """A new head under the count of the old body would take a thousand updates to forget its first values."""
    model = network(adam())
    ema = polyak.track(model, "ema:0.9,start=copy")
    for _ in range(100):
        ema.update()
    larger = network(adam())
    larger.add(layers.Dense(1, name="top"))
    new = polyak.track(larger, "ema:0.9,start=copy")
    with pytest.warns(WeightsChanged, match=r"weight 'top/kernel' and 1 more: left out .* took over 100 updates"):
        polyak.transfer(ema, new, exclude="top/*")
    assert (new.count, new.rule.rule_of("top/bias").after) == (100, 100)
    larger.layers[-1].bias.assign([5.0])
    new.update()
    assert new.values()["top/bias"].tolist() == [5.0]
    kept = new.values()["top/kernel"]
    polyak.transfer(ema, new, exclude="top/*")  # its head has an average of its own by now
    np.testing.assert_array_equal(new.values()["top/kernel"], kept)
    assert new.count == 100


def tracked(*more: layers.Layer) -> Any:
    """A model that holds its average."""
    model = network(adam())
    for layer in more:
        model.add(layer)
    model.average = polyak.EMA(model, 0.9)
    return model


def saved_late(path: Path) -> Any:
    """A model whose last layer began at update 21, and its file."""
    model = tracked()
    for _ in range(20):
        model.average.update()
    model.add(layers.Dense(1, name="top"))
    model.average.refresh()
    model.average.update()
    model.save_weights(path)
    return model


def test_what_began_late_goes_on_so_from_weights_that_keras_saved(tmp_path: Path) -> None:
    """The file says by which rule: one that counts the updates of the old body is too slow for a new head."""

    def gone_on(model: Any) -> Any:
        model.layers[-1].bias.assign([5.0])
        model.average.update()
        return model.average.values()["top/bias"].tolist()

    model = saved_late(tmp_path / "both.weights.h5")
    other = tracked(layers.Dense(1, name="top"))
    with warnings.catch_warnings():
        warnings.simplefilter("error", WeightsChanged)
        warnings.simplefilter("error", RuleChanged)
        other.load_weights(tmp_path / "both.weights.h5")
    assert gone_on(other) == gone_on(model)
    assert (other.average.rule, other.average.count) == (model.average.rule, 22)


def test_a_load_that_is_refused_leaves_the_rule_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "both.weights.h5"
    saved_late(path)
    with h5py.File(path, "r+") as file:
        found: list[str] = []
        file.visit(lambda name: found.append(name) if name.endswith("/counts") else None)
        file[found[0]][0] = -1
    other = tracked(layers.Dense(1, name="top"))
    with h5py.File(path) as file, pytest.raises(RuleError, match="expected counts from 0"):
        other.average.load_own_variables(file[found[0].removesuffix("/counts")])
    assert (str(other.average.rule), other.average.count) == ("ema:0.9", 0)
