"""What an average refuses, whatever it follows; afterwards it is as it was."""

from __future__ import annotations

import copy
import pickle
import threading
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import Applied, ModelError, NonFinite, RuleError, UnbuiltModel, WeightsChanged
from polyak.manifest import State
from polyak.snapshot import Snapshot

tf = pytest.importorskip("tensorflow")

APPLIED = "the average is applied to the model"


class Empty(tf.keras.Model):
    """Has no weights before it is called."""


def average() -> Any:
    module = tf.Module()
    module.w, module.v = tf.Variable([1.0, 2.0]), tf.Variable([3.0])
    ema = polyak.EMA(module, 0.5, start="copy")
    ema.update()
    return ema


def state_of(ema: Any) -> tuple[Any, ...]:
    return {path: value.tobytes() for path, value in ema.values().items()}, str(ema.rule), ema.count, ema.skipped


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_average_of_a_module_is_no_thing_to_copy(copied: Callable[[Any], Any]) -> None:
    with pytest.raises(ModelError, match=r"ema:0.5,start=copy of Module cannot be copied"):
        copied(average())


@pytest.mark.parametrize(
    "act",
    [
        lambda ema: ema.reset(),
        lambda ema: ema.refresh(),
        lambda ema: ema.change_rule("mean"),
    ],
    ids=["reset", "refresh", "change_rule"],
)
def test_what_changes_an_average_waits_for_the_moment_of_another_thread(act: Callable[[Any], Any]) -> None:
    ema = average()
    thread = threading.Thread(target=act, args=(ema,))
    with ema.moment():
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join(60)
    assert not thread.is_alive()


def normalised(mean: float) -> Any:
    """A model whose first layer keeps constants of the data that it was adapted to."""
    layer = tf.keras.layers.Normalization()
    layer.adapt(np.random.default_rng(0).normal(mean, 1.0, (50, 2)).astype(np.float32))
    return tf.keras.Sequential([tf.keras.Input((2,)), layer, tf.keras.layers.Dense(1)])


def test_statistics_that_a_layer_would_not_compute_with_are_refused() -> None:
    ema = polyak.EMA(normalised(0.0), 0.5)
    before = {path: value.tobytes() for path, value in ema.values().items()}
    with pytest.raises(ModelError, match="expected the statistics that the layer was adapted to, received others"):
        polyak.transfer(polyak.EMA(normalised(3.0), 0.5), ema)
    assert {path: value.tobytes() for path, value in ema.values().items()} == before
    polyak.transfer(polyak.EMA(normalised(0.0), 0.5), ema)


def test_an_average_that_is_applied_takes_no_values_over() -> None:
    ema, other = average(), average()
    other.update()
    before = {path: value.tobytes() for path, value in ema.values().items()}
    with (
        ema.applied(),
        pytest.raises(Applied, match="is applied to its model, which would keep the values from before"),
    ):
        polyak.transfer(other, ema)
    assert {path: value.tobytes() for path, value in ema.values().items()} == before


@pytest.mark.parametrize("counts", [(2**62 + 1, 0), (5, 2**62 + 1)])
def test_counts_that_cannot_go_on_are_not_taken_over(counts: tuple[int, int]) -> None:
    ema = average()
    before = state_of(ema)
    values = {"w": np.zeros(2, np.float32), "v": np.zeros(1, np.float32)}
    source = Snapshot.from_arrays(values, "average", State({"rule": "mean"}, *counts))
    with pytest.raises(RuleError, match=r"expected counts from 0 to 2\*\*62"):
        polyak.transfer(source, ema)
    assert state_of(ema) == before


@pytest.mark.parametrize(
    ("rule", "message"),
    [
        ({"v": None, "*": "ema:0.5,start=copy"}, "weight 'v': the present rule follows it, the new rule .* leaves it"),
        ({"x": "mean", "*": "ema:0.5,start=copy"}, "glob 'x' matches no weight"),
    ],
)
def test_a_rule_for_other_weights_is_refused(rule: Any, message: str) -> None:
    ema = average()
    before = state_of(ema)
    with pytest.raises(RuleError, match=message):
        ema.change_rule(rule)
    assert state_of(ema) == before


def test_a_rule_that_a_function_of_ones_own_contains_stays() -> None:
    ema = average()
    tf.function(ema.update)()
    before = state_of(ema)
    with pytest.raises(RuleError, match=r"expected the rule ema:0\.5,start=copy, which a traced"):
        ema.change_rule("mean")
    assert state_of(ema) == before


def test_no_average_begins_again_from_numbers_that_are_not_finite() -> None:
    ema = average()
    before = state_of(ema)
    ema.followed().w.assign([np.nan, 1.0])
    with pytest.raises(NonFinite, match="weight 'w': expected finite values to start an average from"):
        ema.reset()
    assert state_of(ema) == before


def grown(ema: Any, path: Path) -> None:
    ema.followed().later = tf.Variable([4.0])
    ema.refresh()


def checkpointed(ema: Any, path: Path) -> None:
    tf.train.Checkpoint(ema=ema, model=ema.followed()).write(str(path / "ckpt"))


@pytest.mark.parametrize(
    ("do", "message"),
    [
        (lambda ema, path: ema.change_rule("mean"), APPLIED),
        (lambda ema, path: ema.reset(), APPLIED),
        (grown, APPLIED),
        (checkpointed, "this file would hold averaged values as raw weights"),
    ],
)
def test_what_has_no_place_while_an_average_is_applied_is_refused(
    do: Callable[[Any, Path], None], message: str, tmp_path: Path
) -> None:
    ema = average()
    before = state_of(ema)
    with ema.applied(), pytest.raises(Applied, match=message):
        do(ema, tmp_path)
    assert state_of(ema) == before
    assert list(tmp_path.iterdir()) == []


@pytest.mark.filterwarnings("ignore::polyak.errors.NonFiniteWarning")
def test_patience_with_weights_that_are_not_finite_has_an_end() -> None:
    ema = average()
    ema.patience = 2
    before = ema.values()
    ema.followed().w.assign([np.nan, 0.0])
    ema.update()
    ema.update()
    with pytest.raises(NonFinite, match="weight 'w' is not finite: expected at most 2 updates"):
        ema.update()
    assert {path: value.tolist() for path, value in ema.values().items()} == {
        path: value.tolist() for path, value in before.items()
    }


def test_weights_that_came_later_are_noticed() -> None:
    ema = average()
    ema.followed().late = tf.Variable([1.0])
    with pytest.raises(ModelError, match="weight 'late' was created after the average"), ema.applied():
        raise AssertionError("the block began")


def test_a_rule_that_remembers_the_first_weights_needs_them() -> None:
    with pytest.raises(UnbuiltModel, match="starts at the initial weights; Empty is not built yet"):
        polyak.EMA(Empty(), 0.9, start="initial")
    assert polyak.EMA(Empty(), 0.9, start="copy").count == 0


def test_a_refresh_says_that_a_function_traced_before_follows_the_old_weights() -> None:
    ema = average()
    step = tf.function(ema.update)
    step()
    ema.followed().late = tf.Variable([1.0])
    with pytest.warns(WeightsChanged, match=r"make that tf\.function anew"):
        assert "'late' new" in ema.refresh()
    ema.followed().late.assign([5.0])
    tf.function(ema.update)()
    assert (ema.values()["late"].tolist(), ema.count) == ([5.0], 3)


@pytest.mark.filterwarnings("error::polyak.errors.WeightsChanged")
def test_where_that_warning_is_an_error_nothing_is_changed() -> None:
    ema = average()
    tf.function(ema.update)()
    before = state_of(ema)
    ema.followed().late = tf.Variable([1.0])
    with pytest.raises(WeightsChanged):
        ema.refresh()
    assert state_of(ema) == before


def test_a_refresh_without_functions_of_one_s_own_warns_of_none() -> None:
    """What polyak traces itself it makes anew."""
    ema = average()
    ema.followed().late = tf.Variable([1.0])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.refresh()
        ema.update()
    assert ema.count == 2


def test_a_traced_update_keeps_the_late_rule_where_the_average_begins_again_and_says_so() -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0])
    ema = polyak.track(module, "mean")
    ema.update()
    module.v = tf.Variable([2.0])
    ema.refresh()
    tf.function(ema.update)()
    late = ema.rule
    with pytest.warns(
        WeightsChanged, match=r"what came by refresh\(\) begins late also now, by the rule that a tf.func"
    ):
        ema.reset()
    assert (ema.rule, ema.count) == (late, 0)


class Lazy(tf.Module):
    """A module with one variable from the beginning; it makes the other when it is called."""

    def __init__(self):
        super().__init__()
        self.scale = tf.Variable([1.0])
        self.w = None

    def __call__(self, x):
        if self.w is None:
            self.w = tf.Variable([2.0])
        return x * self.scale * self.w


LEFT_OUT = r"weight 'w': new in the model, not followed by .* ema\.refresh\(\)"


@pytest.mark.parametrize("how", ["eager", "traced", "several"])
def test_variables_that_a_module_has_made_since_are_told_at_the_first_update(how):
    module = Lazy()
    ema = polyak.Averages(module, {"a": "ema:0.5", "b": "mean"}) if how == "several" else polyak.EMA(module, 0.5)
    module(tf.ones((1,)))
    update = tf.function(ema.update) if how == "traced" else ema.update
    with pytest.warns(WeightsChanged, match=LEFT_OUT) as told:
        update()
    assert len(told) == (2 if how == "several" else 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        update()


def test_variables_that_are_not_followed_are_told_where_tensorflow_saves_the_average(tmp_path):
    module = Lazy()
    ema = polyak.EMA(module, 0.5)
    ema.update()
    module(tf.ones((1,)))
    checkpoint = tf.train.Checkpoint(module=module, ema=ema)
    with pytest.warns(WeightsChanged, match=LEFT_OUT):
        checkpoint.save(str(tmp_path / "a"))
    ema.refresh()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.save(str(tmp_path / "a"))
