"""update(): on every make of model, eagerly, in a graph, under XLA and in fit, it is the NumPy kernel bit for bit."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from typing import Any

import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from tests.frameworks.zoo import (
    MODULES,
    NAMES,
    ZOO,
    Affine,
    OwnTrainStep,
    assert_same_bits,
    scramble,
    values,
    vectors,
)

import polyak
from polyak.averaging.kernel import lerp, shadow_dtype
from polyak.errors import Applied, NonFinite, NonFiniteWarning, RuleError, UnbuiltModel

MODES = ("eager", "graph", "xla")
STEPS = 8
# XLA takes ten seconds to compile the training of one small model, so few makes stand for all there.
FITTED = {
    False: "functional_branches FunctionalInside Blocks Recurrent Attention same_names brain Module LegacySubclassed",
    True: "Blocks same_names brain",
}

Arrays = dict[str, np.ndarray]


def runner(mode: str, update: Callable[[], None]) -> Callable[[], Any]:
    return update if mode == "eager" else tf.function(update, jit_compile=mode == "xla")


def module(**values: Any) -> tf.Module:
    made = tf.Module()
    for name, value in values.items():
        setattr(made, name, tf.Variable(value))
    return made


def replay(rule: Any, raw: list[Arrays], start: Arrays, averaged: set[str]) -> Arrays:
    """The average by the NumPy kernel; other weights are the newest copies."""
    average = {path: start[path].astype(shadow_dtype(start[path].dtype.name)) for path in averaged}
    for n, newest in enumerate(raw, 1):
        average = {path: lerp(average[path], newest[path], float(rule.weight(n))) for path in averaged}
    return {path: average.get(path, raw[-1][path]) for path in start}


def trainable(model: Any) -> set[str]:
    return {w.path for w in polyak.snapshot(model).weights if w.kind == "trainable"}


def assert_close(found: Arrays, expected: Arrays, averaged: set[str], updates: int, peak: Arrays) -> None:
    """Copies agree in all bits, averages as well as XLA allows.

    XLA contracts a - w * (a - x) into one fused multiply-add, which spares the rounding of the product: at most one
    unit in the last place of the larger of a and x, per update.
    """
    for path, value in expected.items():
        if path not in averaged:
            assert_same_bits({path: found[path]}, {path: value})
        else:
            assert found[path].dtype == value.dtype
            assert np.all(np.abs(found[path] - value) <= updates * np.spacing(peak[path].astype(value.dtype))), path


def largest(raw: list[Arrays]) -> Arrays:
    return {path: np.max([np.abs(r[path]) for r in raw], axis=0) for path in raw[0]}


# Every make of model


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("name", NAMES)
def test_update_is_the_numpy_kernel(name: str, mode: str) -> None:
    """The mean's weights 1, 1/2, 1/3 take the kernel's three ways; test_update_every_and_after takes the one of 0."""
    model = ZOO[name].built()
    ema = polyak.track(model, "mean")
    update = runner(mode, ema.update)
    start, averaged, raw = values(model), trainable(model), []
    for seed in range(4):
        scramble(model, seed)
        raw.append(values(model))
        update()
        assert_same_bits(
            {p: v for p, v in ema.values().items() if p not in averaged},
            {p: v for p, v in raw[-1].items() if p not in averaged},
        )
    expected = replay(ema.rule, raw, start, averaged)
    if mode == "xla":
        assert_close(ema.values(), expected, averaged, 4, largest(raw))
    else:
        assert_same_bits(ema.values(), expected)
    assert_same_bits(values(model), raw[-1])
    assert (ema.count, ema.skipped) == (4, 0)


class Member:
    """A model of the zoo in training: its average, and a record of the weights that each update saw."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.model = ZOO[name].built()
        self.start = values(self.model)
        self.averaged = trainable(self.model)
        self.average = polyak.track(self.model, "mean")
        target = self.average.source
        self.trained = [target.variables[path] for path in sorted(self.averaged)]
        self.trail = tf.Variable(tf.zeros((STEPS, sum(v.shape.num_elements() for v in self.trained)), tf.float64))

    def step(self, i: tf.Tensor) -> None:
        sample = tf.convert_to_tensor(ZOO[self.name].sample())
        with tf.GradientTape() as tape:
            y = self.model(sample) if self.name in MODULES else self.model(sample, training=True)
            loss = tf.reduce_mean((tf.cast(y, tf.float32) - 1) ** 2)
        gradients = tape.gradient(loss, self.trained, unconnected_gradients="zero")
        for variable, gradient in zip(self.trained, gradients, strict=True):
            variable.assign_sub(0.1 * tf.convert_to_tensor(gradient))
        flat = [tf.reshape(tf.cast(v, tf.float64), [-1]) for v in self.trained]
        self.trail[i].assign(tf.concat(flat, 0))
        self.average.update()

    def raw(self) -> list[Arrays]:
        """The trained weights at each update, and the final value of all others."""
        ends = np.cumsum([v.shape.num_elements() for v in self.trained])[:-1]
        rows = [np.split(row, ends) for row in self.trail.numpy()]
        final = values(self.model)
        paths = sorted(self.averaged)
        return [
            final | {p: part.reshape(final[p].shape).astype(final[p].dtype) for p, part in zip(paths, row, strict=True)}
            for row in rows
        ]


class Herd(keras.Model):
    """Trains many models in one train_step, so that one compilation serves them all."""

    def __init__(self, members: list[Member]) -> None:
        super().__init__()
        self.members = tuple(members)
        self.at = tf.Variable(0)

    def call(self, x: Any) -> Any:
        return x

    def train_step(self, data: Any) -> dict[str, Any]:
        for member in self.members:
            member.step(self.at)
        self.at.assign_add(1)
        return {"steps": self.at}


@pytest.mark.parametrize("jit", [False, True], ids=["fit", "fit under XLA"])
def test_update_in_train_step_is_the_numpy_kernel(jit: bool) -> None:
    members = [Member(name) for name in FITTED[jit].split()]
    model = Herd(members)
    model.compile(jit_compile=jit, steps_per_execution=4)
    model.fit(np.zeros((STEPS, 1)), np.zeros((STEPS, 1)), batch_size=1, verbose=0)
    for m in members:
        raw = m.raw()
        expected = replay(m.average.rule, raw, m.start, m.averaged)
        assert m.average.count == STEPS
        assert any((raw[0][p] != raw[-1][p]).any() for p in m.averaged), f"training moved nothing of {m.name}"
        if jit:
            assert_close(m.average.values(), expected, m.averaged, STEPS, largest(raw))
        else:
            assert_same_bits(m.average.values(), expected)


# Training as users write it


@pytest.mark.parametrize("jit", [False, True], ids=["fit", "fit under XLA"])
def test_the_average_counts_its_own_updates(jit: bool) -> None:
    """K10: what the optimizer counted before is no business of the average's."""
    model, optimizer = OwnTrainStep(), keras.optimizers.SGD(0.1)

    def train(steps: int) -> None:
        x = np.tile(vectors(), (steps, 1))
        model.compile(optimizer, jit_compile=jit)
        model.fit(x, x, batch_size=len(vectors()), verbose=0)

    train(steps=5)
    model.ema = polyak.EMA(model, decay=0.9)
    train(steps=1)
    assert (int(optimizer.iterations), model.ema.count) == (6, 1)
    assert_same_bits(model.ema.values(), values(model))
    train(steps=2)
    assert (int(optimizer.iterations), model.ema.count) == (8, 3)
    assert any((model.ema.values()[path] != value).any() for path, value in values(model).items())


def test_a_model_without_weights_yet_is_bound_by_its_first_training_step() -> None:
    model = OwnTrainStep()
    model.ema = polyak.EMA(model, decay=0.9)
    assert repr(model.ema) == "<ema:0.9 of OwnTrainStep: waits for the model to be built>"
    with pytest.raises(UnbuiltModel, match="OwnTrainStep"):
        model.ema.update()
    model.compile("sgd")
    model.fit(vectors(), vectors(), verbose=0)
    assert model.ema.count == 1
    assert_same_bits(model.ema.values(), values(model))


@pytest.mark.parametrize("name", ["sequential_deferred", "Blocks", "LegacySubclassed"])
def test_a_first_step_in_a_graph_creates_model_and_average(name: str) -> None:
    model = ZOO[name].new()
    ema = polyak.track(model, "mean")

    @tf.function
    def step(x: tf.Tensor) -> None:
        model(x)
        ema.update()

    step(tf.constant(vectors()))
    start, averaged, raw = values(model), trainable(model), [values(model)]
    scramble(model, 1)
    step(tf.constant(vectors()))
    raw.append(values(model))
    assert_same_bits(ema.values(), replay(ema.rule, raw, start, averaged))


def test_a_rule_that_starts_at_the_initial_weights_needs_them() -> None:
    with pytest.raises(UnbuiltModel, match="starts at the initial weights; OwnTrainStep is not built yet") as error:
        polyak.EMA(OwnTrainStep(), decay=0.9, start="initial")
    assert 'start="copy"' in str(error.value.hint)


# Several averages, parts, kinds, timing


def test_several_averages_of_one_model_are_independent() -> None:
    model = module(w=[0.0])
    fast, slow = polyak.EMA(model, decay=0.5, start="initial"), polyak.EMA(model, decay=0.75, start="initial")
    model.w.assign([1.0])
    fast.update()
    fast.update()
    slow.update()
    assert (fast.values()["w"], slow.values()["w"]) == (0.75, 0.25)
    assert (fast.count, slow.count) == (2, 1)


def test_parts_move_by_their_own_rules_and_may_be_left_out() -> None:
    model = tf.Module()
    model.encoder, model.head, model.extra = Affine(), Affine(), Affine()
    ema = polyak.track(model, {"encoder/*": "ema:0.5,start=initial", "head/*": None, "*": "copy"})
    before = values(model)
    assert set(ema.values()) == {"encoder/w", "encoder/b", "extra/w", "extra/b"}
    scramble(model, 0)
    ema.update()
    now = values(model)
    expected = {
        path: lerp(before[path], now[path], 0.5 if path.startswith("encoder") else 1.0) for path in ema.values()
    }
    assert_same_bits(ema.values(), expected)
    with ema.applied():
        assert_same_bits(values(model), now | expected)
    assert_same_bits(values(model), now)


def test_every_weight_needs_a_rule_and_every_glob_a_weight() -> None:
    model = module(encoder=[0.0], head=[0.0])
    with pytest.raises(RuleError, match=r"weight 'head': expected a rule, received none of \['enc\*'\]"):
        polyak.track(model, {"enc*": "mean"})
    with pytest.raises(RuleError, match=r"glob 'haed\*' matches no weight"):
        polyak.track(model, {"haed*": "mean", "*": None})


def test_kinds_may_be_overridden_by_glob() -> None:
    model = ZOO["Attributes"].built()
    ema = polyak.EMA(model, decay=0.5, start="initial", kinds={"*/moving_*": "trainable", "first/*": "statistic"})
    before = values(model)
    scramble(model, 0)
    ema.update()
    now = values(model)
    expected = {path: now[path] if path.startswith("first/") else lerp(before[path], now[path], 0.5) for path in now}
    assert_same_bits(ema.values(), expected)


@pytest.mark.parametrize("mode", MODES)
def test_update_every_and_after(mode: str) -> None:
    """Copies for two updates; then moves at every third, by the weight of three: 1, then 1 - 0.5**3."""
    model = module(w=[0.0], steps=0)
    ema = polyak.EMA(model, decay=0.5, start="copy", every=3, after=2)
    update = runner(mode, ema.update)
    seen = []
    for n in range(1, 9):
        model.w.assign([n])
        update()
        seen.append(ema.values()["w"].item())
    assert seen == [1, 2, 2, 2, 5, 5, 5, 5 + 0.875 * 3]
    assert ema.count == 8


@pytest.mark.parametrize("rule", ["ema:0.99,start=initial,every=49", "ema:0.99,start=initial,every=49,every=2"])
@pytest.mark.parametrize("mode", MODES)
def test_an_interval_of_any_length_is_met(mode: str, rule: str) -> None:
    """Compilers multiply by 1 / 49 where a division by 49 is meant; 49 * (1 / 49) is below 1."""
    model = module(w=[0.0])
    ema = polyak.track(model, rule)
    update = runner(mode, ema.update)
    model.w.assign([1.0])
    for _ in range(196):
        update()
    assert ema.values()["w"].item() == pytest.approx(1 - 0.99**196, rel=1e-6)


# Narrow dtypes


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_narrow_weights_have_a_wide_average(dtype: str) -> None:
    """K4: 3,000 updates at 0.999 with the weight at 1.25, from 1.0. In bfloat16 the average would never move."""
    model = module(w=tf.constant([1.0], dtype), path=tf.constant([1.0], dtype))
    ema = polyak.EMA(model, decay=0.999, start="initial")
    ramp = tf.cast(tf.linspace(1.0, 1.25, 3000), dtype)

    @tf.function
    def train() -> None:
        model.w.assign(tf.constant([1.25], dtype))
        for i in tf.range(3000):
            model.path.assign(ramp[i : i + 1])
            ema.update()

    train()
    oracle = 1.0
    for value in tf.cast(ramp, tf.float64).numpy():
        oracle += 0.001 * (value - oracle)
    assert ema.count == 3000
    assert ema.values()["w"].dtype == np.float32
    assert ema.values()["w"].item() == pytest.approx(1.2376, abs=1e-4)
    assert ema.values()["w"].item() == pytest.approx(1.25 - 0.25 * 0.999**3000, abs=1e-5)
    assert ema.values()["path"].item() == pytest.approx(oracle, abs=1e-5)


def moving_its_average(package: Any, count: int, narrow: str) -> Any:
    """A layer of mixed precision that begins and moves its own average when it is called to train."""

    class Layer(package.layers.Layer):  # type: ignore[misc]
        held: tuple[Any, ...] = ()

        def build(self, shape: Any) -> None:
            self.parts = [self.add_weight(name=f"part_{i}", shape=(3,), initializer="ones") for i in range(count)]

        def call(self, x: Any, training: bool = False) -> Any:
            if training and not self.held:
                object.__setattr__(self, "held", (polyak.track(self, "ema:0.9,start=initial"),))
            if training:
                self.held[0].update()
            return x * self.parts[0]

    layer = Layer(dtype=narrow)
    layer(tf.ones(3))
    return layer


@pytest.mark.parametrize(("count", "narrow"), [(1, "mixed_float16"), (20, "mixed_bfloat16")])
@pytest.mark.parametrize("package", [keras, tf_keras], ids=["keras", "tf_keras"])
@pytest.mark.parametrize("mode", MODES)
def test_within_a_layer_of_mixed_precision_weights_are_as_they_are_held(
    package: Any, count: int, narrow: str, mode: str
) -> None:
    """There the variables of Keras read as numbers of 16 bits, and say that they are."""
    layer, draw = moving_its_average(package, count, narrow), np.random.default_rng(0)
    layer(tf.ones(3), training=True)
    ema = layer.held[0]
    assert {w.dtype for w in ema.source.weights} == {"float32"}
    step, wanted = runner(mode, lambda: layer(tf.ones(3), training=True)), ema.values()
    for _ in range(3):
        for part in layer.parts:
            part.assign(draw.standard_normal(3, np.float32))
        step()
        raw = polyak.snapshot(layer)
        wanted = {path: lerp(value, raw[path], 1 - 0.9) for path, value in wanted.items()}
    assert_same_bits(ema.values(), wanted)


# Non-finite weights


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("mode", MODES)
def test_a_weight_that_is_not_finite_leaves_the_whole_average_as_it_is(mode: str, bad: float) -> None:
    model = module(a=[1.0, 2.0], b=[3.0], steps=0)
    ema = polyak.track(model, "mean")
    update = runner(mode, ema.update)
    update()
    kept = ema.values()
    for variable, value in ((model.a, [5.0, bad]), (model.b, [7.0]), (model.steps, 9)):
        variable.assign(value)
    warning = pytest.warns(NonFiniteWarning, match=r"weight 'a' is not finite: 1 update\(s\) skipped, 1 in all")
    if mode == "eager":
        with warning:
            update()
    else:
        update()  # a graph cannot warn; the next use does
        with warning, ema.applied():
            pass
    assert_same_bits(ema.values(), kept)
    assert (ema.count, ema.skipped) == (1, 1)
    model.a.assign([5.0, 6.0])
    update()
    assert (ema.count, ema.skipped) == (2, 1)
    assert {path: value.tolist() for path, value in ema.values().items()} == {"a": [3.0, 4.0], "b": [5.0], "steps": 9}


def test_every_average_needs_a_finite_start() -> None:
    with pytest.raises(NonFinite, match="weight 'w': expected finite values to start an average from"):
        polyak.EMA(module(w=[np.nan]), decay=0.9)


def test_large_finite_weights_never_make_an_infinite_average() -> None:
    """Beyond half the range the difference of two weights may overflow, so that such an update is skipped."""
    model = module(w=[3e38])
    with pytest.raises(NonFinite, match="or more than half of what its average can hold"):
        polyak.EMA(model, decay=0.9, start="initial")  # from there to -1e38 is more than a float32 can say
    model.w.assign([1e38])
    ema = polyak.EMA(model, decay=0.9, start="initial")
    model.w.assign([-3e38])
    with pytest.warns(NonFiniteWarning, match="weight 'w'"):
        ema.update()
    assert np.isfinite(ema.values()["w"]).all()


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("shape", [(130, 64), (3, 3, 16, 40), (9000,), (9000, 3)], ids=str)
@pytest.mark.parametrize("mode", MODES)
def test_no_number_of_a_large_weight_hides_behind_another(mode: str, shape: tuple[int, ...], dtype: str) -> None:
    """Where the look takes sums, what cancels in a sum is seen all the same; what is merely huge is averaged."""
    most = float(np.finfo(dtype).max)
    model = tf.Module()
    model.w = tf.Variable(np.zeros(shape, dtype))
    ema = polyak.EMA(model, decay=0.5, start="initial")
    update = runner(mode, ema.update)
    draw, size = np.random.default_rng(0), math.prod(shape)
    for bad in ([np.nan], [np.inf], [np.inf, -np.inf], [0.6 * most, -0.6 * most], [-0.9 * most, 0.9 * most] * 4):
        value = np.zeros(size, dtype)
        start = draw.integers(0, size - len(bad))
        value[start : start + len(bad)] = bad
        model.w.assign(value.reshape(shape))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NonFiniteWarning)
            update()
            assert not ema.values()["w"].any()
    assert (ema.count, ema.skipped) == (0, 5)
    model.w.assign(np.full(shape, 0.4 * most, dtype))
    update()
    assert (ema.count, ema.skipped) == (1, 5)
    assert (ema.values()["w"] == np.asarray(0.4 * most, dtype) / 2).all()


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_weight_without_a_fixed_shape_is_looked_at_too(mode: str) -> None:
    model = tf.Module()
    model.w = tf.Variable(tf.zeros((40, 200)), shape=(None, 200))
    ema = polyak.EMA(model, decay=0.5, start="initial")
    update = runner(mode, ema.update)
    model.w.assign(tf.ones((40, 200)))
    update()
    model.w.assign(tf.fill((40, 200), np.nan))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NonFiniteWarning)
        update()
        assert (ema.values()["w"] == 0.5).all()
    assert (ema.count, ema.skipped) == (1, 1)


# Updates while an average is applied


@pytest.mark.parametrize("other", [False, True], ids=["the average itself", "another average of the model"])
@pytest.mark.parametrize("mode", MODES)
def test_an_update_while_an_average_is_applied_is_refused(mode: str, other: bool) -> None:
    model = module(w=[0.0])
    applied = polyak.EMA(model, decay=0.5, start="initial")
    ema = polyak.EMA(model, decay=0.5, start="initial") if other else applied
    update = runner(mode, ema.update)
    model.w.assign([1.0])
    update()
    with applied.applied():
        if mode == "eager":
            with pytest.raises(Applied, match="an update now would average the averaged weights"):
                update()
        elif mode == "graph":
            with pytest.raises(
                tf.errors.InvalidArgumentError, match="an update now would average the averaged weights"
            ):
                update()
        else:
            update()  # XLA drops assertions; the update does nothing
        assert (ema.values()["w"].item(), ema.count, ema.skipped) == (0.5, 1, 0)
    update()
    assert (ema.values()["w"].item(), ema.count) == (0.75, 2)


def test_a_layer_added_later_is_noticed_when_the_average_is_used() -> None:
    model = tf.Module()
    model.first = Affine()
    ema = polyak.EMA(model, decay=0.9)
    model.second = Affine()
    with pytest.raises(polyak.PolyakError, match="weight 'second/b' was created after the average"), ema.applied():
        pass


def test_tracking_what_is_no_average_of_floats_is_possible() -> None:
    """A model of counters alone is copied."""
    model = module(steps=0)
    ema = polyak.EMA(model, decay=0.9)
    model.steps.assign(3)
    ema.update()
    assert (ema.values()["steps"], ema.count) == (3, 1)


def test_arguments_that_cannot_be_right_are_refused() -> None:
    model = ZOO["functional"].new()
    with pytest.raises(TypeError, match="an average has no argument 'evry'; it has after, compensated, every, kinds"):
        polyak.track(model, "mean", evry=3)  # type: ignore[call-arg]
    with pytest.raises(polyak.errors.RuleError, match="expected one of trainable, statistic, counter, seed"):
        polyak.track(model, "mean", kinds={"*": "weights"})
    with pytest.raises(polyak.errors.ModelError, match="kinds='nothing/\\*': expected a glob of weights"):
        polyak.track(model, "mean", kinds={"nothing/*": "statistic"})


def test_a_decay_in_the_place_of_a_model_is_told_as_that() -> None:
    with pytest.raises(polyak.errors.ModelError, match=r"received builtins\.float") as error:
        polyak.EMA(0.99)
    assert error.value.hint == 'give the model first; a rule alone is polyak.rules.EMA(0.99), or "ema:0.99"'
    assert polyak.parse("ema:0.99") == polyak.rules.EMA(0.99)


def test_complex_weights_are_copied_and_refused_as_trainable() -> None:
    module = tf.Module()
    module.w, module.z = tf.Variable([1.0]), tf.Variable([1 + 2j], dtype=tf.complex64)
    with pytest.raises(polyak.errors.ModelError, match=r"weight 'z': expected real .* received complex64"):
        polyak.track(module, "ema:0.5,start=copy", kinds={"*": "trainable"})
    with pytest.warns(polyak.errors.NotAveraged, match=r"Module 'module': 'z' is of complex numbers: it is copied"):
        ema = polyak.track(module, "ema:0.5,start=initial")
    module.z.assign([3 + 4j])
    ema.update()
    assert ema.values()["z"].tolist() == [3 + 4j]
