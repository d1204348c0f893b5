"""Several averages that move together, and averages in float64, with the same bits on every backend."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import BACKEND, ZOO, assert_same_bits, averaged, replay, scramble, values, vectors

import polyak
from polyak.averaging.kernel import lerp
from polyak.errors import Applied, ModelError, NonFiniteWarning, RuleError

RULES = {
    "copy": "copy",
    "debiased": "ema:0.9,start=debiased",
    "slow": "ema:0.999",
    "mean": "mean",
    "seldom": "ema:0.5,start=copy,every=2,after=2",
    "parts": {"*kernel": "ema:0.9,start=initial", "*": None},
}


def several(model: Any) -> polyak.Averages:
    return polyak.Averages(model, RULES)


def traced(update: Callable[[], None]) -> Callable[[], None]:
    """The update in a tf.function of the user's own, where there is TensorFlow."""
    if BACKEND != "tensorflow":
        pytest.skip("tf.function is TensorFlow's")
    import tensorflow as tf

    return tf.function(update)


@pytest.mark.parametrize("how", [lambda update: update, traced], ids=["eager", "tf.function"])
@pytest.mark.parametrize("name", ["sequential", "pure_bfloat16", "partly_frozen"])
def test_averages_that_move_together_have_the_bits_of_each_for_itself(name: str, how: Any) -> None:
    model = ZOO[name].built()
    together = several(model)
    alone = {key: polyak.track(model, rule) for key, rule in RULES.items()}
    update = how(together.update)
    for seed in range(6):
        scramble(model, seed)
        update()
        for average in alone.values():
            average.update()
    for key, average in together.items():
        assert_same_bits(average.values(), alone[key].values())
        assert (average.count, average.skipped) == (6, 0)


@pytest.mark.parametrize("how", [lambda update: update, traced], ids=["eager", "tf.function"])
def test_large_tensors_have_the_bits_of_numpy(how: Any) -> None:
    """Large ones move by blocks in PyTorch and in one fused program in TensorFlow, and not at all while all rest."""
    model = keras.Sequential([keras.Input((600,)), keras.layers.Dense(1800), keras.layers.Dense(3)])
    rules = {"mean": "mean", "slow": "ema:0.99,start=initial", "seldom": "ema:0.9,start=initial,every=2"}
    together = polyak.Averages(model, rules)
    seldom = polyak.track(model, "copy,every=3")
    update = how(lambda: (together.update(), seldom.update())[0])
    start, raw = values(model), []
    for seed in range(4):
        scramble(model, seed)
        raw.append(values(model))
        update()
    assert_same_bits(seldom.values(), {**raw[2]})
    for average in together.values():
        assert_same_bits(average.values(), replay(average.rule, start, raw, averaged(model)))


def test_a_weight_that_is_not_finite_stops_those_that_follow_it() -> None:
    model = ZOO["sequential"].built()
    kernels = [w.path for w in polyak.snapshot(model).weights if w.path.endswith("kernel")]
    left_out = {kernels[0]: None, "*": "mean"}
    together = polyak.Averages(model, {"all": "mean", "others": left_out})
    held = together["all"].values()
    model.layers[0].kernel.assign(np.full(model.layers[0].kernel.shape, np.nan))
    assert any(np.isnan(value).any() for path, value in values(model).items() if path == kernels[0])
    with pytest.warns(NonFiniteWarning, match="1 update"):
        together.update()
    assert [(a.count, a.skipped) for a in together.values()] == [(0, 1), (1, 0)]
    assert_same_bits(together["all"].values(), held)


def test_huge_weights_are_averaged_and_those_that_would_overflow_are_not() -> None:
    """The sum of squares of 1e30 is infinite, which proves nothing."""
    model = ZOO["sequential"].built()
    average = polyak.SWA(model)
    model.set_weights([np.full(w.shape, 1e30, w.dtype) for w in model.get_weights()])
    average.update()
    assert (average.count, average.skipped) == (1, 0)
    model.set_weights([np.full(w.shape, 3e38, w.dtype) for w in model.get_weights()])
    with pytest.warns(NonFiniteWarning):
        average.update()
    assert (average.count, average.skipped) == (1, 1)


def test_an_applied_average_stops_them_all() -> None:
    model = ZOO["sequential"].built()
    together = polyak.Averages(model, {"a": "mean", "b": "ema:0.9"})
    with together["a"].applied(), pytest.raises(Applied, match="would average the averaged weights"):
        together.update()
    assert [average.count for average in together.values()] == [0, 0]


def test_averages_that_exist_go_on_together() -> None:
    model = ZOO["sequential"].built()
    old = polyak.SWA(model)
    old.update()
    together = polyak.Averages(model, {"old": old, "new": "ema:0.9"})
    together.update()
    assert together["old"] is old
    assert [average.count for average in together.values()] == [2, 1]
    together["new"].change_rule("ema:0.99,start=initial")
    scramble(model, 1)
    together.update()
    assert str(together["new"].rule) == "ema:0.9 until 1 then ema:0.99,start=initial"
    assert [average.count for average in together.values()] == [3, 2]


def test_what_cannot_move_together_is_refused() -> None:
    model, other = ZOO["sequential"].built(), ZOO["sequential"].built()
    average = polyak.SWA(other)
    with pytest.raises(ModelError, match="average 'b': expected one of this Sequential, received mean of Sequential"):
        polyak.Averages(model, {"a": "mean", "b": average})
    with pytest.raises(ModelError, match="one under two names"):
        polyak.Averages(other, {"a": average, "b": average})
    with pytest.raises(RuleError, match="expected names that are text, received 1"):
        polyak.Averages(model, {1: "swa"})
    with pytest.raises(RuleError, match="expected names, received an empty one"):
        polyak.Averages(model, {"": "swa"})
    with pytest.raises(RuleError, match="at least one rule"):
        polyak.Averages(model, {})
    with pytest.raises(RuleError, match=r"expected at least one rule by a name, received \['ema:0.9'\]") as error:
        polyak.Averages(model, ["ema:0.9"])
    assert error.value.hint == '{"slow": "ema:0.999"}'


def test_memory_and_cost_are_said_before_the_first_step() -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2, use_bias=False)])
    assert "32 bytes of memory, 128 bytes read and written an update" in repr(polyak.SWA(model))
    wide = polyak.SWA(model, compensated=True)
    assert "64 bytes of memory, 192 bytes read and written an update" in repr(wide)
    said = repr(polyak.Averages(model, {"a": "mean", "b": "ema:0.9"}))
    assert said.startswith("<2 averages of Sequential, which move together: 64 bytes of memory, 192 bytes read")
    assert "\n  b: ema:0.9, 0 updates>" in said
    unbuilt = keras.Sequential([keras.layers.Dense(2)])
    assert "wait for the model to be built" in repr(polyak.Averages(unbuilt, {"a": "mean"}))


# Averages in float64


@pytest.mark.parametrize("rule", ["mean", "ema:0.9999,start=initial", "copy", "ema:0.5,start=zero"])
@pytest.mark.parametrize("name", ["sequential", "pure_bfloat16"])
def test_a_compensated_average_is_the_float64_kernel(name: str, rule: str) -> None:
    model = ZOO[name].built()
    average = polyak.track(model, rule, compensated=True)
    start, raw = values(model), []
    for seed in range(4):
        scramble(model, seed)
        raw.append(values(model))
        average.update()
    paths = averaged(model)
    expected = {p: start[p].astype(np.float64) * (average.rule.origin != "zeros") for p in paths}
    for n, newest in enumerate(raw, 1):
        expected = {p: lerp(expected[p], newest[p], float(average.rule.weight(n))) for p in paths}
    assert_same_bits({p: average.values()[p] for p in paths}, expected)


def test_a_compensated_average_loses_nothing_over_many_updates() -> None:
    model = keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, use_bias=False)])
    (kernel,) = model.weights
    kernel.assign([[1.0]])
    narrow, wide = (polyak.EMA(model, 0.999999, start="initial", compensated=c) for c in (False, True))
    kernel.assign([[2.0]])
    both = polyak.Averages(model, {"narrow": narrow, "wide": wide})
    for _ in range(500):
        both.update()
    right = 2.0 - 0.999999**500
    found = {name: float(average.values()["dense/kernel"][0, 0]) for name, average in both.items()}
    assert abs(found["wide"] - right) < 1e-13
    assert abs(found["narrow"] - right) > 1e-8


def test_a_compensated_average_goes_into_models_files_and_other_averages(tmp_path: Any) -> None:
    model, other = ZOO["sequential"].built(), ZOO["sequential"].built()
    average = polyak.EMA(model, 0.9, compensated=True)
    scramble(model, 1)
    average.update()
    polyak.transfer(average, other)
    expected = {path: average.values()[path].astype(np.float32) for path in averaged(model)}
    assert_same_bits({path: values(other)[path] for path in expected}, expected)
    with average.applied():
        assert_same_bits({path: values(model)[path] for path in expected}, expected)
    np.testing.assert_array_equal(*(keras.ops.convert_to_numpy(m(vectors())) for m in (average, other)))
    polyak.save(average, tmp_path / "wide.safetensors")
    twin = polyak.EMA(other, 0.9, compensated=True)
    polyak.transfer(tmp_path / "wide.safetensors", twin)
    assert_same_bits(twin.values(), average.values())
    for m in (model, other):
        scramble(m, 2)
    average.update()
    twin.update()
    assert_same_bits(twin.values(), average.values())


def test_fit_moves_a_compensated_average_with_the_same_bits() -> None:
    import polyak.keras

    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(2)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    average = polyak.EMA(model, 0.9, compensated=True)
    raw: list[Any] = []
    start = values(model)
    x = vectors(6)
    for _ in range(3):
        model.fit(x, x[:, :2], 6, 1, verbose=0, callbacks=[polyak.keras.Averaging(average)])
        raw.append(values(model))
    expected = {p: start[p].astype(np.float64) for p in start}
    for n, newest in enumerate(raw, 1):
        expected = {p: lerp(expected[p], newest[p], float(average.rule.weight(n))) for p in start}
    assert_same_bits(average.values(), expected)


@pytest.mark.parametrize("verb", ["save", "transfer", "snapshot"])
def test_several_averages_in_the_place_of_one_are_told_to_be_picked_from(verb: str, tmp_path: Any) -> None:
    model = ZOO["sequential"].built()
    averages = several(model)
    asked = {
        "save": lambda: polyak.save(averages, tmp_path / "all.npz"),
        "transfer": lambda: polyak.transfer(averages, model),
        "snapshot": lambda: polyak.snapshot(averages),
    }
    with pytest.raises(ModelError, match=r"received polyak\.several\.Averages") as error:
        asked[verb]()
    assert error.value.hint == "give one of the averages, such as averages['copy']"


# In files


@keras.saving.register_keras_serializable("polyak-tests-several")
class Holding(keras.Model):
    """A model that holds several averages of a part of it, one of them under a name that Keras leaves out."""

    def __init__(self, rules: dict[str, str], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.rules = rules
        self.net = keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)])
        self.averages = polyak.Averages(self.net, rules)

    def call(self, x: Any) -> Any:
        return self.net(x)

    def get_config(self) -> dict[str, Any]:
        return super().get_config() | {"rules": dict(self.rules)}


def holding(rules: dict[str, str]) -> Holding:
    model = Holding(rules)
    model(np.zeros((1, 3), np.float32))
    return model


def test_keras_saves_averages_that_a_model_holds_each_by_its_name(tmp_path: Any) -> None:
    rules = {"fast": "ema:0.5,start=initial", "losses": "mean", "50%/slow": "ema:0.9,start=initial"}
    model = holding(rules)
    for seed in range(3):
        scramble(model, seed)
        model.averages.update()
    model.save_weights(tmp_path / "m.weights.h5")
    model.save(tmp_path / "m.keras")
    turned = holding(dict(reversed(rules.items())))
    turned.load_weights(tmp_path / "m.weights.h5")
    for loaded in (turned, keras.models.load_model(tmp_path / "m.keras")):
        for name, average in model.averages.items():
            assert_same_bits(loaded.averages[name].values(), average.values())
            assert loaded.averages[name].count == 3
    assert len(model.weights) == 2
    found = polyak.open(tmp_path / "m.weights.h5")
    assert set(found.roles) == {
        "raw",
        "average:averages/fast",
        "average:averages/losses",
        "average:averages/50%/slow",
    }
    assert_same_bits(dict(found.select("average:averages/fast").items()), model.averages["fast"].values())


def test_a_keras_file_without_averages_that_a_model_holds_is_refused(tmp_path: Any) -> None:
    model = holding({"fast": "ema:0.5"})
    model.save_weights(tmp_path / "m.weights.h5")
    with pytest.raises(ValueError, match="holds no average"):
        holding({"other": "ema:0.5"}).load_weights(tmp_path / "m.weights.h5")
    with model.averages["fast"].applied(), pytest.raises(Applied, match="averaged values as raw weights"):
        model.save_weights(tmp_path / "swapped.weights.h5")


def test_averages_are_neither_copied_nor_pickled() -> None:
    together = several(ZOO["sequential"].built())
    for copied in (copy.copy, copy.deepcopy, pickle.dumps):
        with pytest.raises(ModelError, match="cannot be copied"):
            copied(together)
