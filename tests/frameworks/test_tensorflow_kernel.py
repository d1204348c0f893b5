"""The look at all weights on TensorFlow: eagerly, in a graph, and compiled, it judges every dtype alike."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from typing import Any

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

import polyak  # noqa: E402
from polyak.averaging.kernel import lerp  # noqa: E402
from polyak.frameworks.tensorflow_kernel import is_safe  # noqa: E402

LARGEST = {"float64": float(np.finfo("float64").max) / 2, "float32": float(np.finfo("float32").max) / 2}
# What is averaged in float32 may be as large as half of that.
LARGEST |= {"bfloat16": float(tf.bfloat16.max) / 2, "float16": float(tf.float16.max)}
SMALL, LARGE = 10, 5000


@pytest.mark.parametrize("size", [SMALL, LARGE])
@pytest.mark.parametrize("dtype", list(LARGEST))
def test_the_look_accepts_what_may_be_averaged_and_nothing_else(dtype: str, size: int) -> None:
    largest = LARGEST[dtype]
    followed = tf.Variable(tf.zeros(size, dtype))
    looks = [is_safe, tf.function(is_safe), tf.function(is_safe, jit_compile=True)]
    good = [0.0, -0.0, 1.0, -1.0, largest, -largest]
    bad = [1.01 * largest, np.inf, np.nan]
    for others, value in product((0.0, 1.0, -1.0), (*good, *bad, *(-b for b in bad))):
        followed.assign(_with(followed, others, value))
        wanted = value in good
        assert [bool(look([followed])) for look in looks] == [wanted] * 3, (dtype, others, value)


def _with(followed: Any, others: float, value: float) -> Any:
    values = np.full(followed.shape, others, np.float64)
    values[followed.shape[0] // 2] = value
    return tf.cast(values, followed.dtype)


def test_one_of_several_dtypes_is_enough_to_refuse_all() -> None:
    followed = [tf.Variable(tf.ones(LARGE, dtype)) for dtype in LARGEST]
    look = tf.function(is_safe)
    assert look(followed)
    for one in followed:
        one.assign(_with(one, 1.0, np.nan))
        assert not look(followed)
        one.assign(_with(one, 1.0, 1.0))
    assert look(followed)


@pytest.mark.parametrize("size", [SMALL, LARGE])
def test_a_function_that_ran_in_a_graph_follows_rounded_weights_under_xla_too(size: int) -> None:
    """Small narrow weights move without a branch in a graph. XLA would hand them over before they are rounded."""
    model = tf.Module()
    model.w = tf.Variable(tf.ones(size, tf.bfloat16))
    ema = polyak.EMA(model, 0.75, start="zero")

    @tf.function
    def step() -> None:
        model.w.assign_sub(tf.fill([size], tf.constant(0.001, tf.bfloat16)))  # less than half of the last place
        ema.update()

    step()
    tf.function(step, jit_compile=True)()
    assert ema.count == 2
    np.testing.assert_array_equal(ema.values()["w"], np.full(size, 1 - 0.75**2, np.float32))


@pytest.mark.parametrize("size", [SMALL, LARGE, 1 << 20])
@pytest.mark.parametrize("decay", [0.9, 0.3])
@pytest.mark.parametrize("mode", ["graph", "xla", "graph, then xla"])
def test_every_way_of_calling_has_the_bits_of_the_kernel_at_every_size(size: int, decay: float, mode: str) -> None:
    """Of small, middling and large weights each goes another way through a graph; XLA would round once for twice."""
    model, draw = tf.Module(), np.random.default_rng(0)
    model.w = tf.Variable(draw.standard_normal(size, np.float32))
    ema = polyak.track(model, f"ema:{decay},start=initial,check=off")
    wanted = ema.values()["w"]
    step = {"graph": tf.function(ema.update), "xla": tf.function(ema.update, jit_compile=True)}.get(mode)
    if step is None:
        inner = tf.function(ema.update)
        inner()  # traced for a graph, and compiled later as a part of another function
        step = tf.function(lambda: inner(), jit_compile=True)
    for _ in range(3):
        model.w.assign(draw.standard_normal(size, np.float32))
        step()
        wanted = lerp(wanted, model.w.numpy(), 1 - decay)
    np.testing.assert_array_equal(ema.values()["w"], wanted)


_CLUSTERED = """
import numpy as np, tensorflow as tf, polyak
from polyak.averaging.kernel import lerp
for size in (10, 5_000, 1 << 20):
    for wrap in (lambda update: update, tf.function):
        model, draw = tf.Module(), np.random.default_rng(0)
        model.w = tf.Variable(draw.standard_normal(size, np.float32))
        ema = polyak.track(model, "ema:0.9,start=initial")
        update, wanted = wrap(ema.update), ema.values()["w"]
        for _ in range(3):
            model.w.assign(draw.standard_normal(size, np.float32))
            update()
            wanted = lerp(wanted, model.w.numpy(), 1 - 0.9)
        np.testing.assert_array_equal(ema.values()["w"], wanted)
print("every bit")
"""


def test_a_process_in_which_tensorflow_compiles_what_it_likes_has_the_bits_of_the_kernel() -> None:
    flags = {"TF_XLA_FLAGS": "--tf_xla_auto_jit=2 --tf_xla_cpu_global_jit"}
    done = subprocess.run(
        [sys.executable, "-c", _CLUSTERED], env=os.environ | flags, capture_output=True, text=True, check=False
    )
    assert done.stdout == "every bit\n", done.stderr[-2000:]


def _many() -> Any:
    """More tensors than a program of the kernel takes: of several dtypes and shapes, floats, counters and a scalar."""
    model, draw = tf.Module(), np.random.default_rng(0)
    shapes = ((7,), (), (3, 5), (5000,), (2, 1, 4))
    model.floats = [tf.Variable(draw.standard_normal(shapes[i % 5]).astype(np.float32)) for i in range(43)]
    model.halves = [tf.Variable(tf.cast(draw.standard_normal(shapes[i % 5]), tf.bfloat16)) for i in range(21)]
    model.doubles = [tf.Variable(draw.standard_normal(9)) for _ in range(18)]
    model.seen = [tf.Variable(i, dtype=tf.int64, trainable=False) for i in range(19)]
    return model


@pytest.mark.parametrize("mode", ["eager", "graph", "xla", "graph, then xla"])
@pytest.mark.parametrize("decay", [0.9, 0.3])
def test_many_tensors_move_by_programs_that_they_share_and_have_the_bits_of_the_kernel(mode: str, decay: float) -> None:
    model, draw = _many(), np.random.default_rng(1)
    ema = polyak.track(model, f"ema:{decay},start=initial,check=off")
    inner = tf.function(ema.update)
    calls = {"eager": ema.update, "graph": inner, "xla": tf.function(ema.update, jit_compile=True)}
    step = calls.get(mode) or tf.function(lambda: inner(), jit_compile=True)
    wanted = ema.values()
    for _ in range(12):  # a rule may move its first averages in another way
        for variable in (*model.floats, *model.halves, *model.doubles):
            variable.assign(tf.cast(draw.standard_normal(variable.shape), variable.dtype))
        for variable in model.seen:
            variable.assign_add(3)
        step()
        raw = polyak.snapshot(model)
        for path, value in wanted.items():
            wanted[path] = raw[path] if "seen" in path else lerp(value, raw[path].astype(value.dtype), 1 - decay)
    for path, value in ema.values().items():
        np.testing.assert_array_equal(value, wanted[path], err_msg=path)
    assert ema.count == 12


@pytest.mark.filterwarnings("ignore::polyak.errors.NonFiniteWarning")
@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
def test_one_bad_value_of_many_tensors_holds_all_of_them_back(mode: str) -> None:
    model = _many()
    ema = polyak.track(model, "ema:0.5,start=initial")
    compiled = tf.function(ema.update, jit_compile=mode == "xla")
    step = ema.update if mode == "eager" else compiled
    step()
    kept = ema.values()
    for skipped, group in enumerate((model.floats, model.halves, model.doubles), start=1):
        last = group[-1]
        good = last.numpy()
        last.assign(tf.fill(last.shape, tf.constant(np.nan, last.dtype)))
        model.seen[0].assign_add(1)
        step()
        assert (ema.count, ema.skipped) == (1, skipped)
        for path, value in ema.values().items():
            np.testing.assert_array_equal(value, kept[path], err_msg=path)
        last.assign(good)
    step()
    assert ema.count == 2
