"""Using an average: in the model, beside the model, in another model, as named values."""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
from tests.frameworks.zoo import NAMES, ZOO, Affine, OwnTrainStep, assert_same_bits, scramble, values, vectors

import polyak
from polyak.errors import (
    Applied,
    DtypeMismatch,
    ImmatureWarning,
    MissingWeight,
    NonFinite,
    PolyakError,
    ShapeMismatch,
    UnexpectedWeight,
    WeightsChanged,
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


def one(value: float, **more: Any) -> tf.Module:
    module = tf.Module()
    module.w = tf.Variable([value])
    for name, other in more.items():
        setattr(module, name, tf.Variable(other))
    return module


def as_weights(ema: Any, model: Any) -> dict[str, np.ndarray]:
    """The averaged values in the dtypes of the model's weights."""
    held = values(model)
    return {path: value.astype(held[path].dtype) for path, value in ema.values().items()}


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
    ema.update()
    assert ema.count == 3


def test_blocks_may_be_nested() -> None:
    model, ema = followed("Attributes")
    raw, average = values(model), as_weights(ema, model)
    with ema.applied():
        with ema.applied():
            assert_same_bits(values(model), average)
        assert_same_bits(values(model), average)
        with pytest.raises(Applied):
            ema.update()
    assert_same_bits(values(model), raw)
    ema.update()


def test_two_averages_may_be_applied_in_each_other() -> None:
    model = one(0.0)
    fast, slow = polyak.EMA(model, decay=0.5, start="initial"), polyak.EMA(model, decay=0.75, start="initial")
    model.w.assign([1.0])
    fast.update()
    slow.update()
    seen = []
    with fast.applied():
        seen.append(model.w.numpy().item())
        with slow.applied():
            seen.append(model.w.numpy().item())
            with fast.applied():
                seen.append(model.w.numpy().item())
            seen.append(model.w.numpy().item())
            with pytest.raises(Applied):
                fast.update()
        seen.append(model.w.numpy().item())
        with pytest.raises(Applied):
            slow.update()
    seen.append(model.w.numpy().item())
    assert seen == [0.5, 0.25, 0.5, 0.25, 0.5, 1.0]
    slow.update()
    assert slow.values()["w"] == 0.25 + 0.25 * 0.75


def test_two_averages_that_leave_in_the_other_order_end_with_the_raw_weights() -> None:
    model = one(1.0)
    fast, slow = polyak.track(model, "copy"), polyak.track(model, "copy")
    fast.set_values({"w": np.float32([2.0])})
    slow.set_values({"w": np.float32([3.0])})
    model.w.assign([5.0])
    first, second = fast.applied(), slow.applied()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert model.w.numpy().item() == 5.0
    fast.update()
    assert fast.values()["w"] == 5.0


def test_raw_weights_far_below_the_average_survive() -> None:
    """K2: exchanging by sums turns 1e-6 beside 100 into 0."""
    model = one(100.0)
    ema = polyak.EMA(model, decay=0.9)
    model.w.assign([1e-6])
    with ema.applied():
        assert model.w.numpy().item() == 100.0
    assert model.w.numpy() == np.float32(1e-6)


def test_odd_bits_survive() -> None:
    """K2 again: infinities, NaN with a payload, negative zero and subnormal numbers come back bit for bit."""
    odd = np.array([np.inf, -np.inf, -0.0, 1e-45, 0.0, 1.0], np.float32)
    odd[4:5].view(np.uint32)[:] = 0x7FC12345
    model = one(1.0, odd=np.zeros(6, np.float32))
    ema = polyak.EMA(model, decay=0.9)
    model.odd.assign(odd)
    for _ in range(3):
        with ema.applied():
            assert not model.odd.numpy().any()
    assert model.odd.numpy().tobytes() == odd.tobytes()


def test_an_infinite_statistic_destroys_nothing() -> None:
    model = ZOO["sequential"].built()
    model.layers[-1].moving_variance.assign(np.full(4, np.inf))
    ema = polyak.EMA(model, decay=0.5)
    scramble(model, 0)
    model.layers[-1].moving_mean.assign(np.full(4, np.inf))
    raw = values(model)
    with ema.applied():
        assert np.isinf(values(model)["batch_normalization/moving_variance"]).all()
    assert_same_bits(values(model), raw)


def test_evaluation_prediction_and_saving_inside_the_block_leave_no_trace(tmp_path: Any) -> None:
    """K1: evaluate, predict and save see the average; the training goes on from the raw weights."""
    x = vectors()
    model, other = OwnTrainStep(), OwnTrainStep()
    for each in (model, other):
        each.compile(keras.optimizers.Adam(0.1), loss="mse", jit_compile=False)
        each.fit(x, x, verbose=0)
    ema = polyak.EMA(model, decay=0.5)
    ema.update()
    model.fit(x, x, epochs=3, verbose=0)
    ema.copy_to(other)
    raw, optimizer = values(model), [v.numpy() for v in model.optimizer.variables]
    with ema.applied():
        loss = model.evaluate(x, x, verbose=0)
        predicted = model.predict(x, verbose=0)
        model.save_weights(tmp_path / "average.weights.h5")
    assert loss == other.evaluate(x, x, verbose=0)
    np.testing.assert_array_equal(predicted, other.predict(x, verbose=0))
    assert_same_bits(values(model), raw)
    assert all(
        np.array_equal(v.numpy(), before) for v, before in zip(model.optimizer.variables, optimizer, strict=True)
    )
    fresh = OwnTrainStep()
    fresh(x)
    fresh.load_weights(tmp_path / "average.weights.h5")
    trainable = {w.path for w in polyak.snapshot(model).weights if w.kind != "seed"}
    assert_same_bits({p: values(fresh)[p] for p in trainable}, {p: ema.values()[p] for p in trainable})


def test_what_is_written_into_an_applied_model_is_refused() -> None:
    model, ema = followed("Attributes")
    raw, average = values(model), as_weights(ema, model)
    with ema.applied():
        with pytest.raises(Applied):
            polyak.transfer(ZOO["Attributes"].built(), model)
        with pytest.raises(Applied):
            ema.reset()
        assert_same_bits(values(model), average)
    assert_same_bits(values(model), raw)


def test_applied_has_no_meaning_inside_a_graph() -> None:
    _, ema = followed("Attributes")

    with pytest.raises(Applied, match=r"inside a tf\.function"):
        tf.function(lambda: ema.applied().__enter__(), autograph=False)()


# ema(x)


@pytest.mark.parametrize("name", NAMES)
def test_calling_the_average_is_the_model_inside_the_block_and_changes_nothing(name: str) -> None:
    model, ema = followed(name)
    x = ZOO[name].sample()
    raw, average = values(model), ema.values()
    y = np.asarray(ema(x))
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)
    with ema.applied():
        np.testing.assert_array_equal(y, np.asarray(model(x)))
    assert not np.array_equal(y, np.asarray(model(x)))


@pytest.mark.parametrize("name", NAMES)
def test_calling_the_average_in_a_graph_reads_its_present_values(name: str) -> None:
    """A graph may fuse what the eager call does one by one, hence the tolerance of a few roundings."""
    model, ema = followed(name)
    x = tf.convert_to_tensor(ZOO[name].sample())
    call = tf.function(lambda x: ema(x))
    tolerance = 2e-2 if np.asarray(ema(x)).dtype.itemsize == 2 else 1e-5
    for _ in range(2):
        raw, average = values(model), ema.values()
        np.testing.assert_allclose(
            np.asarray(call(x), np.float64), np.asarray(ema(x), np.float64), rtol=tolerance, atol=tolerance
        )
        assert_same_bits(values(model), raw)
        assert_same_bits(ema.values(), average)
        ema.update()


@pytest.mark.parametrize("name", ["sequential", "OwnTrainStep", "Recurrent", "legacy_sequential", "LegacySubclassed"])
def test_calling_the_average_in_training_mode_moves_no_statistic_and_no_seed(name: str) -> None:
    model, ema = followed(name)
    raw, average = values(model), ema.values()
    x = ZOO[name].sample()
    y = ema(x, training=True)
    tf.function(lambda x: ema(x, training=True))(tf.convert_to_tensor(x))
    assert not np.array_equal(np.asarray(y), np.asarray(ema(x)))
    assert_same_bits(values(model), raw)
    assert_same_bits(ema.values(), average)


def test_calling_the_average_touches_no_optimizer_and_gives_gradients_to_the_input() -> None:
    model = ZOO["OwnTrainStep"].built()
    model.compile(keras.optimizers.Adam(0.1), loss="mse", jit_compile=False)
    model.fit(vectors(), vectors(), verbose=0)
    ema = polyak.EMA(model, decay=0.9)
    before = [v.numpy() for v in model.optimizer.variables]
    x = tf.constant(vectors())
    with tf.GradientTape() as tape:
        tape.watch(x)
        y = ema(x)
    assert np.abs(tape.gradient(y, x)).max() > 0
    assert all(np.array_equal(v.numpy(), b) for v, b in zip(model.optimizer.variables, before, strict=True))


def test_a_model_that_cannot_be_copied_says_what_else_to_do() -> None:
    class Locked(Affine):
        def __deepcopy__(self, memo: Any) -> Any:
            raise TypeError("it holds a lock")

    ema = polyak.EMA(Locked(), decay=0.9)
    with pytest.raises(PolyakError, match="expected a model that can be copied, received TypeError: it holds a lock"):
        ema(vectors())


# copy_to, values, set_values, reset, repr


@pytest.mark.parametrize("name", NAMES)
def test_copy_to_another_instance(name: str) -> None:
    model, ema = followed(name)
    other = ZOO[name].built()
    raw = values(model)
    with pytest.warns(ImmatureWarning, match=r"25\.0% of the average still is the value it started from"):
        receipt = ema.copy_to(other)  # a wide average goes back into narrow weights without further words
    assert receipt.role == "average"
    assert receipt.count == 2
    assert_same_bits(values(other), as_weights(ema, model))
    assert_same_bits(values(model), raw)


# Of these the layer keeps constants: an average refuses others (tests/keras/test_derived.py).
ADAPTED = {"normalization/mean", "normalization/variance"}


@pytest.mark.parametrize("name", NAMES)
def test_values_are_copies_and_go_back_in(name: str) -> None:
    _, ema = followed(name)
    kept = ema.values()
    for path, value in (changed := ema.values()).items():
        if path not in ADAPTED:
            value[...] = 1
    assert changed.keys() - ADAPTED
    assert_same_bits(ema.values(), kept)
    ema.set_values(changed)
    assert_same_bits(ema.values(), changed)
    ema.set_values(kept)
    assert_same_bits(ema.values(), kept)
    assert ema.count == 2


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (
            {"first/kernel": None},
            MissingWeight,
            r"'first/kernel': expected a value, received none \(1 missing\)",
        ),
        (
            {"third/kernel": np.zeros(3)},
            UnexpectedWeight,
            "'third/kernel' is not tracked by ema:0.5,start=initial",
        ),
        (
            {"norm/gamma": np.zeros(5, np.float32)},
            ShapeMismatch,
            r"'norm/gamma': expected \(4,\), received \(5,\)",
        ),
        ({"norm/gamma": np.full(4, np.nan, np.float32)}, NonFinite, "'norm/gamma': expected finite values"),
        (
            {"norm/gamma": np.zeros(4, np.float64)},
            DtypeMismatch,
            "'norm/gamma': expected float32, received float64",
        ),
        ({"norm/gamma": np.zeros(4, np.int32)}, DtypeMismatch, "'norm/gamma': expected float32, received int32"),
    ],
    ids=["missing", "unexpected", "shape", "NaN", "wide", "integer"],
)
def test_wrong_values_are_refused_and_change_nothing(change: dict[str, Any], error: type, message: str) -> None:
    _, ema = followed("Attributes")
    kept = ema.values()
    wrong = {path: value + 1 for path, value in kept.items()} | change
    with pytest.raises(error, match=message):
        ema.set_values({path: value for path, value in wrong.items() if value is not None})
    assert_same_bits(ema.values(), kept)
    assert ema.count == 2


@pytest.mark.parametrize("name", NAMES)
def test_reset_starts_again_from_the_present_weights(name: str) -> None:
    model, ema = followed(name)
    ema.reset()
    fresh = polyak.EMA(model, decay=0.5, start="initial")
    assert (ema.count, ema.skipped, ema.immaturity) == (0, 0, 1.0)
    assert_same_bits(ema.values(), fresh.values())
    scramble(model, 5)
    ema.update()
    fresh.update()
    assert_same_bits(ema.values(), fresh.values())


def test_reset_of_an_average_that_starts_at_zero() -> None:
    model = one(2.0, steps=3)
    ema = polyak.EMA(model, decay=0.5, start="zero")
    ema.update()
    assert {path: value.item() for path, value in ema.values().items()} == {"w": 1.0, "steps": 3}
    ema.reset()
    assert {path: value.item() for path, value in ema.values().items()} == {"w": 0.0, "steps": 3}


def test_repr_says_rule_count_immaturity_and_bytes() -> None:
    model = one(1.0, steps=0)
    ema = polyak.EMA(model, decay=0.5, start="copy")
    for _ in range(3):
        ema.update()
    costs = "8 bytes of memory, 24 bytes read and written an update"
    facts = f"3 updates, immaturity 0.25, 1 weights averaged, 1 copied, {costs}"
    assert repr(ema) == f"<ema:0.5,start=copy of Module: {facts}>"
    model.w.assign([np.nan])
    with pytest.warns(polyak.PolyakWarning):
        ema.update()
    assert repr(ema) == f"<ema:0.5,start=copy of Module: {facts}, 1 skipped as not finite>"


def test_a_module_called_through_its_average_sees_what_is_left_out_as_it_is_now() -> None:
    class Scaled(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w, self.scale = tf.Variable([1.0]), tf.Variable([1.0])

        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return x * self.w * self.scale

    module = Scaled()
    ema = polyak.track(module, {"w": "mean", "scale": None})
    ema.update()
    assert ema(tf.ones(1)).numpy().tolist() == [1.0]
    module.w.assign([3.0])
    module.scale.assign([10.0])
    ema.update()
    assert ema(tf.ones(1)).numpy().tolist() == [20.0]
    assert module(tf.ones(1)).numpy().tolist() == [30.0]


def test_a_module_that_holds_two_averages_can_be_called_through_either() -> None:
    class Affine(tf.Module):
        def __init__(self) -> None:
            super().__init__()
            self.w = tf.Variable([1.0])
            self.fast, self.slow = polyak.EMA(self, decay=0.5), polyak.EMA(self, decay=0.9)

        def __call__(self, x: tf.Tensor) -> tf.Tensor:
            return x * self.w

    module = Affine()
    for average in (module.fast, module.slow):
        average.update()
        assert average(tf.ones(1)).numpy().tolist() == [1.0]


def test_skips_of_a_restored_state_are_not_reported_again(tmp_path, recwarn) -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0])
    ema = polyak.track(module, "mean")
    module.w.assign([float("nan")])
    with pytest.warns(polyak.errors.NonFiniteWarning):
        ema.update()
    path = tf.train.Checkpoint(ema=ema).write(str(tmp_path / "c"))
    other = tf.Module()
    other.w = tf.Variable([1.0])
    restored = polyak.track(other, "mean")
    tf.train.Checkpoint(ema=restored).read(path).assert_consumed()
    other.w.assign([2.0])
    recwarn.clear()
    restored.update()
    assert (restored.skipped, restored.count) == (1, 1)
    assert not [w for w in recwarn if issubclass(w.category, polyak.PolyakWarning)]


class Scaled(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale, self.half = tf.Variable(2.0), tf.Variable(1.0, dtype=tf.bfloat16)
        self.bias = tf.Variable([1.0, 2.0])


def test_a_weight_that_takes_another_shape_within_the_block_is_told() -> None:
    module = tf.Module()
    module.w = tf.Variable([1.0, 2.0], shape=tf.TensorShape(None))
    ema = polyak.EMA(module, decay=0.5, start="initial")
    with pytest.warns(WeightsChanged, match="weight 'w': written while"), ema.applied():
        module.w.assign([3.0])
    assert module.w.numpy().tolist() == [1.0, 2.0]


def test_the_exception_of_a_block_is_the_user_s_own() -> None:
    module = Scaled()
    ema = polyak.EMA(module, decay=0.5, start="initial")

    def fail() -> None:
        with ema.applied():
            module.bias.assign([5.0, 5.0])
            raise KeyError

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(KeyError):
            fail()
    assert module.bias.numpy().tolist() == [1.0, 2.0]


@pytest.mark.parametrize("name", ["scale", "half", "bias"])
def test_a_write_into_a_weight_of_any_rank_within_the_block_is_told(name: str) -> None:
    module = Scaled()
    ema = polyak.EMA(module, decay=0.5, start="initial")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with ema.applied():
            _ = module.scale * module.bias
    with pytest.warns(WeightsChanged, match=f"weight '{name}': written while"), ema.applied():
        getattr(module, name).assign_add(tf.ones_like(getattr(module, name)))
