"""The kernel in TensorFlow: the two-sided lerp over many variables, and the operations that rules are written in."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf

Pairs = Sequence[tuple[tf.Variable, tf.Variable]]


class TensorFlowOps:
    """The functions in which rules are written, on float64 tensors; Python numbers stand for float64."""

    def asarray(self, x: Any) -> Any:
        return tf.cast(x, tf.float64)

    def minimum(self, x: Any, y: Any) -> Any:
        return tf.minimum(_f64(x), _f64(y))

    def maximum(self, x: Any, y: Any) -> Any:
        return tf.maximum(_f64(x), _f64(y))

    def power(self, x: Any, y: Any) -> Any:
        return tf.pow(_f64(x), _f64(y))

    def where(self, condition: Any, x: Any, y: Any) -> Any:
        return tf.where(condition, _f64(x), _f64(y))

    def floor(self, x: Any) -> Any:
        return tf.floor(_f64(x))

    def expm1(self, x: Any) -> Any:
        return tf.math.expm1(_f64(x))

    def log1p(self, x: Any) -> Any:
        return tf.math.log1p(_f64(x))

    def cos(self, x: Any) -> Any:
        return tf.cos(_f64(x))

    def prod(self, array: Any) -> Any:
        return tf.reduce_prod(array, axis=-1)

    def arange(self, start: int, stop: int) -> Any:
        return tf.range(start, stop, dtype=tf.float64)


OPS = TensorFlowOps()


# One compiled loop over a tensor reads and writes each number once; it costs some milliseconds a tensor to compile.
_MOST_FUSED = 512
_LEAST_FUSED = 2**20


def move(pairs: Pairs, w: tf.Tensor, go: tf.Tensor) -> None:
    """Move each shadow of (shadow, weight) by ``w``, a float64 scalar in [0, 1], if ``go``.

    The same four cases as ``polyak.averaging.kernel.lerp``; a scalar decides once for all tensors.
    """
    if _is_worth_fusing(pairs):
        _fused(pairs, w, go)
        return
    case = tf.cast(w > 0, tf.int32) + tf.cast(w >= 0.5, tf.int32) + tf.cast(w >= 1, tf.int32)
    branches = [_nothing, lambda: _near(pairs, w), lambda: _far(pairs, 1 - w), lambda: _copy(pairs)]
    tf.switch_case(tf.where(go, case, 0), branches)


def glide(pairs: Pairs, w: tf.Tensor, go: tf.Tensor) -> None:
    """``move`` for a weight that is known to lie between 0 and one half: a graph of a third of the size."""
    if _is_worth_fusing(pairs):
        _fused(pairs, w, go)
        return
    tf.cond(go, lambda: _near(pairs, w), _nothing)


def copy(pairs: Pairs, go: tf.Tensor) -> None:
    """Make each shadow of (shadow, weight) equal to the weight, if ``go``."""
    tf.cond(go, lambda: _copy(pairs), _nothing)


def is_safe(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Whether all values are finite and below half of the range, so that no difference of two overflows.

    The sum of squares needs one pass without memory of its own. If it is finite, so is every value, and far within the
    range; if not, it may only have overflowed, and the values themselves are looked at.
    """
    if not variables:
        return tf.constant(True)
    norms = [tf.cast(tf.nn.l2_loss(_wide(v)), tf.float64) for v in variables]
    return tf.cond(tf.math.is_finite(tf.add_n(norms)), lambda: tf.constant(True), lambda: _all_safe(variables))


def _all_safe(variables: Sequence[tf.Variable]) -> tf.Tensor:
    values = [tf.reshape(_wide(v), [-1]) for v in variables]
    flat = [tf.concat([v for v in values if v.dtype == dtype], 0) for dtype in {v.dtype for v in values}]
    return tf.reduce_all([tf.reduce_all(tf.abs(f) <= f.dtype.max / 2) for f in flat])


def _wide(variable: tf.Variable) -> tf.Tensor:
    return tf.cast(variable, tf.float64 if variable.dtype == tf.float64 else tf.float32)


def _is_worth_fusing(pairs: Pairs) -> bool:
    """Large tensors, not too many of them, and not spread over replicas, each of which traces for itself."""
    spread = any(isinstance(shadow, tf.distribute.DistributedValues) for shadow, _ in pairs)
    return not spread and len(pairs) <= _MOST_FUSED and sum(s.shape.num_elements() for s, _ in pairs) >= _LEAST_FUSED


def _fused(pairs: Pairs, w: tf.Tensor, go: tf.Tensor) -> None:
    """``move`` as one program of XLA without branches: every case is a scalar that selects among values."""

    def moved(shadow: tf.Variable, weight: tf.Variable, w: tf.Tensor, rest: tf.Tensor, go: tf.Tensor) -> tf.Tensor:
        a, x = shadow.read_value(), tf.cast(weight, shadow.dtype)
        # The largest number changes nothing, for guarded steps stay below it; but it stands between the product and
        # the difference, which XLA would fuse into one operation that rounds once. So the bits are NumPy's.
        near = a - tf.minimum(tf.cast(w, a.dtype) * (a - x), a.dtype.max)
        far = x - tf.minimum(tf.cast(rest, a.dtype) * (x - a), a.dtype.max)
        between = tf.where(w < 0.5, near, far)
        return tf.where(go & (w > 0), tf.where(w >= 1, x, between), a)

    def program(w: tf.Tensor, rest: tf.Tensor, go: tf.Tensor) -> None:
        for shadow, weight in pairs:
            shadow.assign(moved(shadow, weight, w, rest, go))

    tf.function(program, jit_compile=True, autograph=False)(w, 1 - w, go)


def _near(pairs: Pairs, w: tf.Tensor) -> None:
    by_dtype = _cast_once(w, pairs)
    for shadow, weight in pairs:
        value = tf.cast(weight, shadow.dtype)
        shadow.assign_sub(by_dtype[shadow.dtype] * (shadow - value))


def _far(pairs: Pairs, rest: tf.Tensor) -> None:
    by_dtype = _cast_once(rest, pairs)
    for shadow, weight in pairs:
        value = tf.cast(weight, shadow.dtype)
        shadow.assign(value - by_dtype[shadow.dtype] * (value - shadow))


def _copy(pairs: Pairs) -> None:
    for shadow, weight in pairs:
        shadow.assign(tf.cast(weight, shadow.dtype))


def _cast_once(scalar: tf.Tensor, pairs: Pairs) -> dict[tf.DType, tf.Tensor]:
    return {dtype: tf.cast(scalar, dtype) for dtype in {shadow.dtype for shadow, _ in pairs}}


def _nothing() -> None:
    return None


def _f64(x: Any) -> tf.Tensor:
    # tf.cast would take a Python number through float32.
    return tf.constant(x, tf.float64) if isinstance(x, int | float) else tf.cast(x, tf.float64)
