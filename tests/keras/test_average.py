"""An average of a Keras model, by the same code and with the same bits on every backend."""

from __future__ import annotations

import copy
import pickle
import re
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import (
    BACKEND,
    NAMES,
    WIDTH,
    ZOO,
    as_weights,
    assert_same_bits,
    averaged,
    dense,
    replay,
    scramble,
    values,
    vectors,
)

import polyak
from polyak.errors import (
    Applied,
    DtypeMismatch,
    ImmatureWarning,
    MissingWeight,
    ModelError,
    NonFinite,
    NonFiniteWarning,
    RuleError,
    ShapeMismatch,
    UnbuiltModel,
    UnexpectedWeight,
    WeightsChanged,
)

RULES = (
    "mean",
    "ema:0.9",
    "ema:0.9,start=debiased",
    "ema:0.9,start=copy",
    "ema:0.9,start=initial",
    "ema:0.9,start=zero",
    "ema:0.3,start=initial,check=off",
    "power:sigma_rel=0.1",
    "copy",
    "mean,every=2",
    "ema:0.5,start=copy,every=2,after=2",
    "copy,every=3",
    "mean,after=3",
)


def followed(name: str) -> tuple[Any, Any]:
    """A model whose weights have gone on from the average that follows it. The tests share it: all is set anew."""
    model, ema = _followed(name)
    scramble(model, 0)
    ema.reset()
    for seed in (1, 2):
        scramble(model, seed)
        ema.update()
    scramble(model, 3)
    return model, ema


@cache
def _followed(name: str) -> tuple[Any, Any]:
    model = ZOO[name].built()
    return model, polyak.EMA(model, decay=0.5, start="initial")


def moved(model: Any, ema: Any, updates: int) -> list[Any]:
    raw = []
    for seed in range(updates):
        scramble(model, seed)
        raw.append(values(model))
        ema.update()
    return raw


# Moving


@pytest.mark.parametrize("name", NAMES)
def test_update_is_the_numpy_kernel_on_every_make(name: str) -> None:
    """The mean's weights 1, 1/2, 1/3 take the kernel's three ways."""
    model = ZOO[name].built()
    ema = polyak.SWA(model)
    start = values(model)
    raw = moved(model, ema, 4)
    assert_same_bits(ema.values(), replay(ema.rule, start, raw, averaged(model)))
    assert_same_bits(values(model), raw[-1])
    assert (ema.count, ema.skipped) == (4, 0)


@pytest.mark.parametrize("rule", RULES)
def test_update_is_the_numpy_kernel_under_every_rule(rule: str) -> None:
    model = ZOO["sequential"].built()
    scramble(model, 99)
    ema = polyak.track(model, rule)
    start = values(model)
    raw = moved(model, ema, 7)
    assert_same_bits(ema.values(), replay(ema.rule, start, raw, averaged(model)))
    assert ema.count == 7


@pytest.mark.parametrize("rule", ["ema:0.99,start=initial,every=49", "ema:0.99,start=initial,every=49,every=2"])
def test_an_interval_of_any_length_is_met(rule: str) -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(2, kernel_initializer="zeros")])
    ema = polyak.track(model, rule)
    for variable in model.variables:
        variable.assign(np.ones(variable.shape, np.float32))
    for _ in range(196):
        ema.update()
    for value in ema.values().values():
        np.testing.assert_allclose(value, 1 - 0.99**196, rtol=1e-6)


def test_statistics_seeds_and_integers_are_copied() -> None:
    for name, copied in (
        ("sequential", {"batch_normalization/moving_mean", "batch_normalization/moving_variance"}),
        ("OwnWeights", {"shift", "calls"}),
    ):
        model, ema = followed(name)
        raw = values(model)
        ema.update()
        left = set(raw) - averaged(model)
        assert copied <= left
        assert_same_bits({p: ema.values()[p] for p in left}, {p: raw[p] for p in left})
        assert any((ema.values()[p] != raw[p]).any() for p in averaged(model))


def test_the_seed_of_a_dropout_is_copied() -> None:
    model = ZOO["Containers"].built()
    ema = polyak.EMA(model, decay=0.5)
    (path,) = (w.path for w in polyak.snapshot(ema).weights if w.kind == "seed")
    model(vectors(), training=True)
    raw = values(model)
    ema.update()
    assert ema.values()[path].tolist() == raw[path].tolist()


def test_parts_move_by_their_own_rules_and_may_be_left_out() -> None:
    model = ZOO["Attributes"].built()
    ema = polyak.track(model, {"first/*": "ema:0.5,start=initial", "second/*": None, "*": "mean"})
    start = values(model)
    raw = moved(model, ema, 3)
    parts = {glob: polyak.parse(rule) for glob, rule in (("first", "ema:0.5,start=initial"), ("norm", "mean"))}
    expected: dict[str, Any] = {}
    for part, rule in parts.items():
        whole = replay(rule, start, raw, averaged(model))
        expected |= {path: value for path, value in whole.items() if path.startswith(part)}
    assert_same_bits(ema.values(), {path: expected[path] for path in ema.values()})
    assert ema.values().keys() == expected.keys()
    with ema.applied():
        assert_same_bits(values(model), as_weights(ema, model))
    assert_same_bits(values(model), raw[-1])


def test_every_weight_needs_a_rule_and_every_glob_a_weight() -> None:
    model = ZOO["Attributes"].built()
    with pytest.raises(RuleError, match=r"weight 'first/bias': expected a rule|weight 'first/kernel': expected a rule"):
        polyak.track(model, {"second/*": "mean", "norm/*": "mean"})
    with pytest.raises(RuleError, match=r"glob 'haed\*' matches no weight"):
        polyak.track(model, {"haed*": "mean", "*": None})


def test_several_averages_of_one_model_are_independent() -> None:
    model = ZOO["shared_layer"].built()
    fast, slow = polyak.EMA(model, decay=0.5, start="initial"), polyak.EMA(model, decay=0.75, start="initial")
    start = values(model)
    scramble(model, 0)
    now = values(model)
    fast.update()
    fast.update()
    slow.update()
    assert_same_bits(fast.values(), replay(fast.rule, start, [now, now], averaged(model)))
    assert_same_bits(slow.values(), replay(slow.rule, start, [now], averaged(model)))
    assert (fast.count, slow.count) == (2, 1)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_weight_that_is_not_finite_leaves_the_whole_average_as_it_is(bad: float) -> None:
    model, ema = followed("Attributes")
    kept, count, skipped = ema.values(), ema.count, ema.skipped
    model.first.bias.assign([0, bad, 0, 0])
    with pytest.warns(NonFiniteWarning, match=r"weight 'first/bias' is not finite: 1 update\(s\) skipped"):
        ema.update()
    assert_same_bits(ema.values(), kept)
    assert (ema.count, ema.skipped) == (count, skipped + 1)
    scramble(model, 5)
    ema.update()
    assert (ema.count, ema.skipped) == (count + 1, skipped + 1)
    assert all(np.isfinite(value).all() for value in ema.values().values())


def test_weights_that_are_not_finite_start_no_average() -> None:
    model = ZOO["Attributes"].built()
    model.first.bias.assign([0, np.nan, 0, 0])
    with pytest.raises(NonFinite, match="weight 'first/bias': expected finite values to start an average from"):
        polyak.EMA(model, decay=0.9)


@pytest.mark.parametrize("asked", [{"decay": 0.99}, {"tau": 0.01}, {"horizon": 100}])
def test_a_decay_is_asked_for_in_any_of_its_ways(asked: dict[str, float]) -> None:
    assert str(polyak.EMA(ZOO["sequential"].built(), **asked).rule) == "ema:0.99"  # type: ignore[arg-type]


def test_large_finite_weights_never_make_an_infinite_average() -> None:
    model = ZOO["shared_layer"].built()
    model.layers[1].bias.assign([3e38] * WIDTH)
    with pytest.raises(NonFinite, match="or more than half of what its average can hold"):
        polyak.EMA(model, decay=0.9, start="initial")  # from there to -1e38 is more than a float32 can say
    model.layers[1].bias.assign([1e38] * WIDTH)
    ema = polyak.EMA(model, decay=0.9, start="initial")
    model.layers[1].bias.assign([-3e38] * WIDTH)
    with pytest.warns(NonFiniteWarning):
        ema.update()
    assert all(np.isfinite(value).all() for value in ema.values().values())


@pytest.mark.parametrize("width", [1, 8, 64, 65, 300])
def test_one_nan_stops_all_whatever_the_size(width: int) -> None:
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width), keras.layers.Dense(1)])
    ema = polyak.EMA(model, decay=0.5, start="copy")
    kept, spoilt = ema.values(), np.ones((width, width), np.float32)
    spoilt[0, -1] = np.nan
    model.layers[0].kernel.assign(spoilt)
    with pytest.warns(NonFiniteWarning):
        ema.update()
    assert (ema.count, ema.skipped) == (0, 1)
    assert_same_bits(ema.values(), kept)


@pytest.mark.parametrize("spoilt", [np.nan, -3e38])
def test_of_many_small_weights_each_is_looked_at(spoilt: float) -> None:
    model = keras.Sequential([keras.Input((3,)), *[keras.layers.Dense(3) for _ in range(18)], keras.layers.Dense(1)])
    ema = polyak.EMA(model, decay=0.5, start="copy")
    kept = ema.values()
    for skipped, (path, variable) in enumerate(zip(kept, model.trainable_variables, strict=True), 1):
        good = keras.ops.convert_to_numpy(variable)
        bad = good.copy()
        bad[..., -1] = spoilt
        variable.assign(bad)
        with pytest.warns(NonFiniteWarning, match=f"weight '{path}' is not finite: 1 update"):
            ema.update()
        variable.assign(good)
        assert (ema.count, ema.skipped) == (0, skipped)
    assert_same_bits(ema.values(), kept)
    model.layers[3].kernel.assign(np.full((3, 3), 1e30, np.float32))  # finite, where its square is not
    ema.update()
    assert ema.count == 1


@pytest.mark.parametrize("width", [1, 64, 65, 300])
def test_large_values_are_averaged_and_one_that_is_too_large_stops_all_whatever_the_size(width: int) -> None:
    model = keras.Sequential([keras.Input((width,)), keras.layers.Dense(width), keras.layers.Dense(1)])
    ema = polyak.EMA(model, decay=0.5, start="copy")
    kernel = model.layers[0].kernel
    kernel.assign(np.full((width, width), 1e30, np.float32))  # finite, where its square is not
    ema.update()
    assert (ema.count, ema.skipped) == (1, 0)
    kept = ema.values()
    spoilt = np.full((width, width), 1e30, np.float32)
    spoilt[-1, -1] = 3e38
    kernel.assign(spoilt)
    with pytest.warns(NonFiniteWarning):
        ema.update()
    assert (ema.count, ema.skipped) == (1, 1)
    assert_same_bits(ema.values(), kept)


def test_reset_starts_again_from_the_present_weights() -> None:
    model, ema = followed("sequential")
    ema.reset()
    assert ema.count == 0
    assert_same_bits(ema.values(), {p: v.astype(ema.values()[p].dtype) for p, v in values(model).items()})
    assert ema.immaturity == 1.0


# A model without weights yet


def test_a_model_without_weights_yet_is_bound_by_its_first_update() -> None:
    model = ZOO["sequential_deferred"].new()
    ema = polyak.EMA(model, decay=0.9)
    assert repr(ema) == "<ema:0.9 of Sequential: waits for the model to be built>"
    with pytest.raises(UnbuiltModel, match=r"Sequential 'sequential[_0-9]*': expected a built model") as error:
        ema.update()
    assert "call it once on a batch" in str(error.value.hint)
    model(vectors())
    ema.update()
    assert ema.count == 1
    assert_same_bits(ema.values(), values(model))


class Pair(keras.Model):
    """As Keras' examples write GANs and autoencoders: only the models in it are called, so it never is built."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = keras.Sequential([keras.Input((WIDTH,)), keras.layers.Dense(2), keras.layers.Dropout(0.1)])
        self.decoder = keras.Sequential([keras.Input((2,)), keras.layers.Dense(WIDTH)])


def test_a_model_of_which_only_the_models_in_it_are_called_has_its_weights(tmp_path: Path) -> None:
    model, other = Pair(), Pair()
    ema = polyak.EMA(model, decay=0.9)
    ema.update()
    assert not model.built
    assert_same_bits(ema.values(), values(model))
    polyak.save(model, tmp_path / "raw.npz")
    polyak.transfer(tmp_path / "raw.npz", other)
    assert_same_bits(values(other), values(model))


def test_weights_that_a_model_makes_itself_are_waited_for() -> None:
    class Scaled(Pair):
        def build(self, shape: Any) -> None:
            self.scale = self.add_weight(name="scale")

    model = Scaled()
    ema = polyak.EMA(model, decay=0.9)
    with pytest.raises(UnbuiltModel, match="expected a built model"):
        ema.update()
    model.build((None, WIDTH))
    ema.update()
    assert "scale" in ema.values()


def test_layers_that_are_made_after_the_average_are_waited_for() -> None:
    class Holder(Pair):
        def __init__(self) -> None:
            super().__init__()
            self.ema = polyak.EMA(self, decay=0.9)
            self.head = keras.Sequential([keras.Input((2,)), keras.layers.Dense(1)])

    model = Holder()
    model.ema.update()
    assert "head/dense/kernel" in model.ema.values()


def test_a_rule_that_starts_at_the_initial_weights_needs_them() -> None:
    with pytest.raises(UnbuiltModel, match="starts at the initial weights; Containers is not built yet") as error:
        polyak.EMA(ZOO["Containers"].new(), decay=0.9, start="initial")
    assert 'start="copy"' in str(error.value.hint)


@pytest.mark.parametrize("verb", ["values", "applied", "call"])
def test_an_average_of_an_unbuilt_model_has_no_values(verb: str) -> None:
    ema = polyak.EMA(ZOO["Containers"].new(), decay=0.9)
    use = {"values": ema.values, "applied": ema.applied().__enter__, "call": lambda: ema(vectors())}[verb]
    with pytest.raises(UnbuiltModel, match="Containers"):
        use()


def test_a_transfer_into_an_unbuilt_model_says_how() -> None:
    _, ema = followed("sequential_deferred")
    with pytest.raises(UnbuiltModel, match="expected a built model") as error:
        polyak.transfer(ema, ZOO["sequential_deferred"].new())
    assert "sample=" in str(error.value.hint)
    other = ZOO["sequential_deferred"].new()
    polyak.transfer(ema, other, sample=(None, WIDTH))
    assert_same_bits(values(other), ema.values())


# applied()


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_block_the_model_holds_the_average_and_afterwards_its_own_bits(name: str) -> None:
    model, ema = followed(name)
    raw, average = values(model), ema.values()
    with ema.applied():
        assert_same_bits(values(model), as_weights(ema, model))
        assert any((values(model)[path] != raw[path]).any() for path in raw)
        model(ZOO[name].sample())
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt, SystemExit, GeneratorExit])
def test_an_exception_leaves_the_raw_weights(error: type[BaseException]) -> None:
    model, ema = followed("Attributes")
    raw = values(model)

    def fail() -> None:
        with ema.applied():
            scramble(model, 9)
            raise error

    with pytest.raises(error):
        fail()
    assert_same_bits(values(model), raw)
    count = ema.count
    ema.update()
    assert ema.count == count + 1


def test_blocks_may_be_nested_also_with_another_average() -> None:
    model, ema = followed("Attributes")
    other = polyak.track(model, "copy")
    scramble(model, 4)
    raw, average, copied = values(model), as_weights(ema, model), as_weights(other, model)
    with ema.applied():
        with other.applied():
            assert_same_bits(values(model), copied)
            with ema.applied():
                assert_same_bits(values(model), average)
            assert_same_bits(values(model), copied)
        assert_same_bits(values(model), average)
        for each in (ema, other):
            with pytest.raises(Applied):
                each.update()
    assert_same_bits(values(model), raw)


def test_two_averages_that_leave_in_the_other_order_end_with_the_raw_weights() -> None:
    model, ema = followed("Attributes")
    other = polyak.track(model, "copy")
    scramble(model, 4)
    raw, copied = values(model), as_weights(other, model)
    first, second = ema.applied(), other.applied()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert_same_bits(values(model), copied)
    second.__exit__(None, None, None)
    assert_same_bits(values(model), raw)
    other.update()


def test_training_inside_the_block_is_dropped_and_that_is_said() -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    model.compile(keras.optimizers.SGD(0.1), "mse")
    ema = polyak.EMA(model, decay=0.5, start="initial")
    scramble(model, 1)
    raw = values(model)
    x, y = np.random.default_rng(0).normal(size=(8, 4)).astype("float32"), np.zeros((8, 2), np.float32)
    with pytest.warns(WeightsChanged) as told, ema.applied():
        model.fit(x, y, verbose=0)
    (message,) = [str(one.message) for one in told if issubclass(one.category, polyak.errors.PolyakWarning)]
    assert re.search(r"^weight '\S+' and [3-5] more: written while", message)
    assert "what was written is dropped" in message
    assert_same_bits(values(model), raw)


def test_one_write_into_one_weight_is_noticed_by_the_block_that_it_was_in() -> None:
    model, ema = followed("Attributes")
    other = polyak.track(model, "copy")
    weight = next(v for v in model.trainable_variables)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ema.applied(), pytest.warns(WeightsChanged, match="written while"), other.applied():
            weight.assign(weight + 1)
    first, second = ema.applied(), other.applied()
    first.__enter__()
    second.__enter__()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        first.__exit__(None, None, None)
    weight.assign(weight + 1)
    with pytest.warns(WeightsChanged, match="written while"):
        second.__exit__(None, None, None)


def test_what_only_reads_an_applied_model_is_no_change(tmp_path: Path) -> None:
    model = keras.Sequential(
        [keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization(), keras.layers.Dense(2)]
    )
    model.compile("sgd", "mse")
    ema, other = polyak.EMA(model, decay=0.5, start="initial"), polyak.track(model, "copy")
    scramble(model, 1)
    other.update()
    raw = values(model)
    x, y = np.ones((8, 4), np.float32), np.zeros((8, 2), np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("error", polyak.errors.PolyakWarning)
        with ema.applied():
            model.evaluate(x, y, verbose=0)
            model.predict(x, verbose=0)
            model.test_on_batch(x, y)
            model.save(tmp_path / "averaged.keras")
            ema.evaluate(x, y, verbose=0)
            before = model.evaluate(x, y, verbose=0)
            with other.applied():
                assert model.evaluate(x, y, verbose=0) != before
            assert model.evaluate(x, y, verbose=0) == before
            model(x, training=True)
    assert_same_bits(values(model), raw)


def test_nothing_is_written_into_a_model_that_holds_averaged_values() -> None:
    """It would be lost with the averaged values when the raw ones come back."""
    model, ema = followed("sequential")
    new, raw = ZOO["sequential"].built(), values(model)
    with ema.applied():
        held = values(model)
        with pytest.raises(Applied, match="an average is applied; what is written now would be lost") as error:
            polyak.transfer(new, model)
        assert "leave the `with ema.applied()` block first" in error.value.hint
        assert_same_bits(values(model), held)
    assert_same_bits(values(model), raw)
    polyak.transfer(new, model)


@pytest.mark.parametrize("verb", ["transfer", "set_values", "recalibrate"])
def test_an_average_is_not_written_while_its_model_holds_its_values(verb: str) -> None:
    """The model would go on with the old ones, and a file of it would call them the new ones."""
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3), keras.layers.BatchNormalization()])
    ema, other = (polyak.EMA(model, decay=0.5, start="initial") for _ in range(2))
    scramble(model, 1)
    other.update()
    before = ema.values()
    write = {
        "transfer": lambda: polyak.transfer(other, ema),
        "set_values": lambda: ema.set_values(other.values()),
        "recalibrate": lambda: polyak.recalibrate(ema, np.ones((8, 4), np.float32)),
    }[verb]
    with ema.applied():
        with pytest.raises(Applied, match="is applied to its model") as error:
            write()
        assert "leave the `with ema.applied()` block first" in error.value.hint
        assert_same_bits(ema.values(), before)
    write()
    with other.applied():  # the values in the model are those of another average
        write()


@pytest.mark.parametrize("verb", ["reset", "refresh"])
def test_an_average_does_not_begin_anew_while_its_model_holds_its_values(verb: str) -> None:
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(3)])
    ema = polyak.EMA(model, decay=0.5, start="initial")
    scramble(model, 1)
    ema.update()
    before = ema.values()
    with ema.applied():
        model.add(keras.layers.Dense(2))
        with pytest.raises(Applied, match="the average is applied to the model"):
            getattr(ema, verb)()
    assert_same_bits(ema.values(), before)
    assert ema.count == 1


def test_odd_bits_survive() -> None:
    """Infinities, NaN with a payload, negative zero and subnormal numbers come back bit for bit."""
    model, ema = followed("OwnWeights")
    odd = np.array([np.inf, -0.0, 1e-45, 0.0], np.float32)
    odd[3:].view(np.uint32)[:] = 0x7FC12345
    model.shift.assign(odd)
    raw = values(model)
    assert raw["shift"].tobytes() == odd.tobytes()
    for _ in range(3):
        with ema.applied():
            assert np.isfinite(values(model)["shift"]).all()
    assert_same_bits(values(model), raw)


@pytest.mark.parametrize("name", NAMES)
def test_a_forward_pass_with_the_average_is_that_of_the_applied_model(name: str) -> None:
    """PyTorch's products depend on where in memory an array begins, by one unit in the last place."""
    model, ema = followed(name)
    average, sample = ema.values(), ZOO[name].sample()
    before = keras.ops.convert_to_numpy(model(sample))
    with ema.applied():
        expected = keras.ops.convert_to_numpy(model(sample))
    raw = values(model)
    found = keras.ops.convert_to_numpy(ema(sample))
    if BACKEND == "torch":
        np.testing.assert_allclose(found.astype(np.float32), expected.astype(np.float32), rtol=1e-5, atol=1e-6)
    else:
        np.testing.assert_array_equal(found, expected)
    assert (found != before).any()
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


def test_a_forward_pass_in_training_mode_leaves_statistics_and_seeds_alone() -> None:
    model, ema = followed("OwnTrainStep")
    raw, average = values(model), ema.values()
    ema(vectors(), training=True)
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


# Values


@pytest.mark.parametrize("copied", [copy.copy, copy.deepcopy, pickle.dumps])
def test_an_average_is_no_thing_to_copy_and_says_what_is(copied: Callable[[Any], Any]) -> None:
    ema = polyak.track(dense(), "ema:0.9")
    with pytest.raises(ModelError, match=r"ema:0.9 of .* cannot be copied") as refused:
        copied(ema)
    assert refused.value.hint is not None
    assert "polyak.transfer(ema, other_ema)" in refused.value.hint


def test_a_model_that_holds_its_average_is_pickled_as_keras_does_it() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    model.ema = polyak.track(model, "ema:0.9")
    assert_same_bits(values(pickle.loads(pickle.dumps(model))), values(model))


def test_what_a_scope_puts_in_the_place_of_weights_is_neither_read_nor_averaged() -> None:
    model = keras.Sequential([keras.Input((2,)), keras.layers.Dense(3)])
    own = values(model)
    others = [(v, keras.ops.zeros_like(v.value) + 7.0) for v in model.variables]
    ema = polyak.track(model, "mean")
    with keras.StatelessScope(state_mapping=others):
        if keras.backend.backend() == "tensorflow":  # there a scope is for variables that a traced step leaves alone
            assert_same_bits(values(model), own)
            ema.update()
        else:
            with pytest.raises(ModelError, match="StatelessScope"):
                values(model)
            with pytest.raises(ModelError, match="StatelessScope"):
                ema.update()
    assert_same_bits(ema.values(), own)
    assert ema.count == (keras.backend.backend() == "tensorflow")


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32", "int8"])
def test_a_scalar_of_any_dtype_is_read_written_and_averaged(dtype: str, tmp_path: Path) -> None:
    class Scaled(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            del shape
            self.scale = self.add_weight(shape=(), dtype=dtype, initializer="ones", trainable=dtype != "int8", name="s")

        def call(self, x: Any) -> Any:
            return x * keras.ops.cast(self.scale, x.dtype)

    model = keras.Sequential([keras.Input((1,)), Scaled(name="it")])
    ema = polyak.track(model, "ema:0.5,start=initial")
    model.layers[0].scale.assign(3)
    ema.update()
    assert float(ema.values()["it/s"]) == (3.0 if dtype == "int8" else 2.0)
    polyak.save(model, tmp_path / "raw.safetensors")
    with ema.applied():
        assert float(polyak.snapshot(model)["it/s"]) == float(ema.values()["it/s"])
    assert float(ema.predict(np.ones((1, 1), np.float32), verbose=0)[0, 0]) == float(ema.values()["it/s"])
    ema.hard_sync()
    ema.copy_to(model)
    polyak.transfer(tmp_path / "raw.safetensors", model)
    assert float(polyak.snapshot(model)["it/s"]) == 3.0


def test_values_are_set_all_or_nothing() -> None:
    _, ema = followed("Attributes")
    kept, count = ema.values(), ema.count
    wanted = {path: np.full_like(value, 0.5) for path, value in kept.items()}
    path = "first/kernel"
    for given, error in (
        ({p: v for p, v in wanted.items() if p != path}, MissingWeight),
        (wanted | {"nowhere": 1.0}, UnexpectedWeight),
        (wanted | {path: np.zeros((2, 2), np.float32)}, ShapeMismatch),
        (wanted | {path: np.full_like(kept[path], np.nan)}, NonFinite),
    ):
        with pytest.raises(error):
            ema.set_values(given)
        assert_same_bits(ema.values(), kept)
    ema.set_values(wanted)
    assert_same_bits(ema.values(), wanted)
    assert ema.count == count


def test_nothing_that_was_handed_over_is_aliased() -> None:
    """Values given to an average, and those taken from it, are copies: training changes neither."""
    _, ema = followed("Containers")
    given = {path: np.ones_like(value) for path, value in ema.values().items()}
    ema.set_values(given)
    taken = ema.values()
    for value in given.values():
        value[...] = 7
    assert_same_bits(ema.values(), taken)
    for value in taken.values():
        value[...] = 9
    assert all((value == 1).all() for value in ema.values().values())


def test_a_snapshot_stays_as_it_is_while_training_goes_on() -> None:
    """Also while a compiled step takes over the memory of the arrays that it is given."""
    model = ZOO["sequential"].built()
    model.compile(keras.optimizers.SGD(0.1), "mse")
    ema = polyak.EMA(model, decay=0.5)
    x = vectors(16)
    model.fit(x, x, 4, 1, verbose=0)
    ema.update()
    taken = polyak.snapshot(ema).copy(), polyak.snapshot(model).copy()
    kept = [{path: np.array(value) for path, value in snapshot.items()} for snapshot in taken]
    direct, direct_raw = ema.values(), values(model)
    for _ in range(3):
        model.fit(x, x, 4, 1, verbose=0)
        ema.update()
    for snapshot, expected in zip(taken, kept, strict=True):
        assert_same_bits(dict(snapshot), expected)
    assert_same_bits(direct, kept[0])
    assert_same_bits(direct_raw, kept[1])
    assert any((ema.values()[path] != kept[0][path]).any() for path in direct)


# Transfer


@pytest.mark.parametrize("name", NAMES)
def test_the_average_arrives_in_another_instance(name: str) -> None:
    _, ema = followed(name)
    other = ZOO[name].built()
    polyak.transfer(ema, other, cast="target")
    assert_same_bits(values(other), as_weights(ema, other))


def test_an_average_arrives_in_another_average_which_goes_on() -> None:
    model, ema = followed("sequential")
    other = ZOO["sequential"].built()
    twin = polyak.SWA(other)
    polyak.transfer(ema, twin)
    assert (twin.rule, twin.count) == (ema.rule, ema.count)
    assert_same_bits(twin.values(), ema.values())
    for each in (model, other):
        scramble(each, 11)
    polyak.transfer(model, other)
    ema.update()
    twin.update()
    assert_same_bits(twin.values(), ema.values())


def test_a_wrong_transfer_leaves_the_target_as_it_was() -> None:
    _, ema = followed("sequential")
    other = keras.Sequential([keras.Input((WIDTH,)), dense(), keras.layers.Dense(5), keras.layers.BatchNormalization()])
    before = values(other)
    with pytest.raises(ShapeMismatch):
        polyak.transfer(ema, other)
    assert_same_bits(values(other), before)


@pytest.mark.parametrize("name", ["sequential", "Containers", "Recurrent", "pure_bfloat16", "OwnWeights"])
def test_a_file_brings_the_average_into_another_instance(name: str, tmp_path: Path) -> None:
    _, ema = followed(name)
    polyak.save(ema, tmp_path / "run.safetensors")
    other = ZOO[name].built()
    polyak.transfer(tmp_path / "run.safetensors", other, weights="average", cast="target")
    assert_same_bits(values(other), as_weights(ema, other))
    twin = polyak.track(ZOO[name].built(), "mean")
    polyak.transfer(tmp_path / "run.safetensors", twin, weights="average")
    assert (twin.rule, twin.count) == (ema.rule, ema.count)
    assert_same_bits(twin.values(), ema.values())


def test_a_model_that_holds_its_average_keeps_both_in_keras_own_files(tmp_path: Path) -> None:
    model = ZOO["sequential"].built()
    model.average = polyak.EMA(model, decay=0.5)
    moved(model, model.average, 3)
    scramble(model, 8)
    model.save_weights(tmp_path / "both.weights.h5")
    snapshot = polyak.open(tmp_path / "both.weights.h5")
    assert snapshot.roles == ("raw", "average")
    other = ZOO["sequential"].built()
    polyak.transfer(tmp_path / "both.weights.h5", other, weights="average")
    assert_same_bits(values(other), as_weights(model.average, other))
    twin = ZOO["sequential"].built()
    twin.average = polyak.EMA(twin, decay=0.5)
    twin.load_weights(tmp_path / "both.weights.h5")
    # Keras' files hold no random seeds of layers.
    seeds = {w.path for w in polyak.snapshot(model).weights if w.kind == "seed"}
    assert_same_bits(*({p: v for p, v in values(m).items() if p not in seeds} for m in (twin, model)))
    assert_same_bits(twin.average.values(), model.average.values())
    assert twin.average.count == 3


def test_keras_refuses_to_write_a_file_of_exchanged_weights(tmp_path: Path) -> None:
    model = ZOO["sequential"].built()
    model.average = polyak.EMA(model, decay=0.5)
    with model.average.applied(), pytest.raises(Applied, match="this file would hold averaged values as raw weights"):
        model.save_weights(tmp_path / "wrong.weights.h5")


def test_what_keras_stores_for_another_model_is_refused_and_changes_nothing() -> None:
    _, ema = followed("sequential")
    before, path, store = ema.values(), next(iter(ema.values())), dict[str, Any]()
    ema.save_own_variables(store)
    key = f"shadows:{path.replace('/', '%2F')}"
    with pytest.raises(ShapeMismatch, match=f"weight {path!r}: expected an average of .*, received \\(1,\\)"):
        ema.load_own_variables({**store, key: np.zeros(1, np.float32)})
    del store[key]
    with pytest.raises(MissingWeight, match=f"weight {path!r}: the file holds no average of it"):
        ema.load_own_variables(store)
    with pytest.raises(MissingWeight, match="the file holds no average for ema"):
        ema.load_own_variables({})
    assert_same_bits(ema.values(), before)


def test_an_immature_average_is_handed_over_with_a_warning() -> None:
    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, decay=0.999, start="initial")
    ema.update()
    with pytest.warns(ImmatureWarning):
        polyak.transfer(ema, ZOO["sequential"].built())


def test_nothing_here_warns_without_need() -> None:
    model, ema = followed("sequential")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ema.update()
        with ema.applied():
            model(vectors())


def test_keras_runs_on_the_backend_that_was_asked_for() -> None:
    assert keras.backend.backend() == BACKEND
    assert type(polyak.EMA(ZOO["sequential"].built(), decay=0.9)).__name__ in ("KerasAverage", "NativeAverage")


@pytest.mark.parametrize("dtype", ["int32", "bool"])
def test_what_is_no_real_floating_point_is_refused_as_trainable(dtype: str) -> None:
    class Counting(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            self.seen = self.add_weight(shape=(2,), dtype=dtype, initializer="zeros", trainable=False, name="seen")
            self.scale = self.add_weight(shape=(2,), initializer="ones", name="scale")

        def call(self, x: Any) -> Any:
            return x * self.scale

    layer = Counting()
    layer.build((2,))
    with pytest.raises(
        polyak.errors.ModelError, match=f"weight 'seen': expected real floating-point values .* received {dtype}"
    ):
        polyak.track(layer, "ema:0.5", kinds={"*": "trainable"})
    ema = polyak.track(layer, "ema:0.5", kinds={"seen": "counter", "*": "trainable"})
    assert {w.path: w.kind.value for w in ema.target.weights} == {"seen": "counter", "scale": "trainable"}


@pytest.mark.skipif(BACKEND != "torch", reason="only a model of PyTorch changes its dtype without Keras' knowledge")
def test_a_model_whose_tensors_were_made_wider_keeps_every_bit() -> None:
    """Keras' own assign casts to the dtype that a variable was made with."""
    model = ZOO["sequential"].built()
    model.double()
    for v in model.weights:
        v._value.data += 1e-12
    raw = [v._value.detach().clone() for v in model.weights]
    ema = polyak.EMA(model, decay=0.9)
    ema.update()
    assert {a.dtype.name for a in ema.values().values()} - {"int32"} == {"float64"}  # but for the random seed
    with ema.applied():
        model(vectors())
    assert all(bool((v._value == before).all()) for v, before in zip(model.weights, raw, strict=True))
    twin = ZOO["sequential"].built()
    twin.double()
    polyak.transfer(model, twin)
    assert all(bool((v._value == before).all()) for v, before in zip(twin.weights, raw, strict=True))


@pytest.mark.skipif(BACKEND != "torch", reason="only a model of PyTorch changes its dtype without Keras' knowledge")
def test_a_model_whose_tensors_were_made_narrower_is_saved_and_written(tmp_path: Path) -> None:
    model = ZOO["sequential"].built()
    ema = polyak.EMA(model, decay=0.9)
    model.half()
    ema.update()
    polyak.save(ema, tmp_path / "both.safetensors", weights="both")
    saved = {w.path: w.dtype for w in polyak.open(tmp_path / "both.safetensors").select(role="raw").weights}
    assert set(saved.values()) - {"int32"} == {"float16"}
    with pytest.raises(DtypeMismatch, match="expected float16, received float32"):
        polyak.transfer(ZOO["sequential"].built(), model)
    polyak.transfer(ZOO["sequential"].built(), model, cast="target")


def test_counters_that_the_backend_keeps_wider_are_saved_and_written(tmp_path: Path) -> None:
    """Keras keeps unsigned integers of 16 and 32 bits in wider signed ones on PyTorch."""

    class Counting(keras.layers.Layer):
        def build(self, shape: Any) -> None:
            for bits in (16, 32):
                self.add_weight(shape=(3,), dtype=f"uint{bits}", initializer="ones", trainable=False, name=f"n{bits}")
            self.add_weight(shape=(2,), initializer="ones", name="scale")

        def call(self, x: Any) -> Any:
            return x

    def built() -> Any:
        model = keras.Sequential([keras.Input((2,)), Counting()])
        model(np.zeros((1, 2), np.float32))
        return model

    model = built()
    ema = polyak.EMA(model, decay=0.9)
    ema.update()
    polyak.transfer(model, built())
    polyak.save(ema, tmp_path / "both.safetensors", weights="both")
    polyak.transfer(tmp_path / "both.safetensors", built(), weights="average")


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch alone has a mode whose tensors nobody writes outside of it")
@pytest.mark.parametrize("rule", ["ema:0.9,start=initial", "ema:0.5", "mean", "ema:0.5,every=2"])
@pytest.mark.parametrize("inside", [(0,), (1,), (0, 2), (0, 1, 2)])
def test_updates_in_inference_mode_and_outside_of_it_are_alike(rule: str, inside: tuple[int, ...]) -> None:
    import torch

    averages = []
    for within in ((), inside):
        model = ZOO["Attributes"].built()
        scramble(model, 7)
        ema = polyak.track(model, rule)
        for update in range(4):
            scramble(model, update)
            with torch.inference_mode(update in within):
                ema.update()
        averages.append(ema.values())
    assert_same_bits(*averages)


@pytest.mark.skipif(BACKEND != "torch", reason="PyTorch alone has a mode whose tensors nobody writes outside of it")
def test_a_model_made_in_inference_mode_is_followed_and_written() -> None:
    import torch

    with torch.inference_mode():
        model = ZOO["Attributes"].built()
    ema = polyak.EMA(model, decay=0.5, start="initial")
    raw = values(model)
    with ema.applied():
        assert_same_bits(values(model), ema.values())
    assert_same_bits(values(model), raw)
    polyak.transfer(ema, model)


@pytest.mark.skipif(BACKEND != "torch", reason="a Keras model is a module on PyTorch alone")
def test_what_runs_a_keras_model_is_not_taken_for_a_module_of_pytorch() -> None:
    """Its names there differ between instances, each weight has two, and its arrays do not lie as in PyTorch."""
    import torch

    model = ZOO["sequential"].built()
    for wrapped in (torch.compile(model), torch.nn.DataParallel(model)):
        for verb in (polyak.snapshot, lambda m: polyak.transfer(m, model), lambda m: polyak.EMA(m, decay=0.9)):
            with pytest.raises(ModelError, match="expected the Keras model itself, received what runs it"):
                verb(wrapped)
    mixed = torch.nn.Sequential(torch.nn.Linear(2, 2), dense())
    mixed[1](np.zeros((1, 2), np.float32))
    with pytest.raises(ModelError, match="received one with layers of Keras in it: '1'"):
        polyak.snapshot(mixed)


def test_of_values_that_are_missing_the_first_is_named() -> None:
    _, ema = followed("sequential")
    expected = [w.path for w in ema.snapshot().weights]
    with pytest.raises(MissingWeight) as error:
        ema.set_values({})
    assert f"weight {expected[0]!r}: expected a value, received none ({len(expected)} missing)" in str(error.value)


class Named(keras.Model):
    def __init__(self, **named: Any) -> None:
        super().__init__()
        for name, layer in named.items():
            setattr(self, name, layer)
        self.built = True


def test_variables_that_two_models_share_are_read_before_they_are_written() -> None:
    """Under other names, and each in the place of the other."""
    one, other = keras.layers.Dense(3), keras.layers.Dense(3)
    for layer in (one, other):
        layer.build((None, 3))
    source, target = Named(a=one, b=other), Named(c=one, d=other)
    scramble(source, 1)
    before = values(source)
    polyak.transfer(source, target, rename={"a/*": "d/*", "b/*": "c/*"})
    changed = {f"{'ba'['ab'.index(path[0])]}{path[1:]}": value for path, value in before.items()}
    assert_same_bits(values(source), changed)
