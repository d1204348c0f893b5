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

    def prod(self, array: Any) -> Any:
        return tf.reduce_prod(array, axis=-1)

    def arange(self, start: int, stop: int) -> Any:
        return tf.range(start, stop, dtype=tf.float64)


OPS = TensorFlowOps()


def move(pairs: Pairs, w: tf.Tensor) -> None:
    """Move each shadow of (shadow, weight) by ``w``, a float64 scalar in [0, 1].

    The same four cases as ``polyak.averaging.kernel.lerp``; a scalar decides once for all tensors.
    """
    case = tf.cast(w > 0, tf.int32) + tf.cast(w >= 0.5, tf.int32) + tf.cast(w >= 1, tf.int32)
    tf.switch_case(case, [lambda: None, lambda: _near(pairs, w), lambda: _far(pairs, w), lambda: _copy(pairs)])


def is_safe(variables: Sequence[tf.Variable]) -> tf.Tensor:
    """Whether all values are finite and below half of the range, so that no difference of two overflows."""
    checks = []
    for variable in variables:
        wide = tf.cast(variable, tf.float64 if variable.dtype == tf.float64 else tf.float32)
        checks.append(tf.reduce_all(tf.abs(wide) <= wide.dtype.max / 2))
    return tf.reduce_all(checks) if checks else tf.constant(True)


def _near(pairs: Pairs, w: tf.Tensor) -> None:
    for shadow, weight in pairs:
        value = tf.cast(weight, shadow.dtype)
        shadow.assign_sub(tf.cast(w, shadow.dtype) * (shadow - value))


def _far(pairs: Pairs, w: tf.Tensor) -> None:
    for shadow, weight in pairs:
        value = tf.cast(weight, shadow.dtype)
        shadow.assign(value - tf.cast(1 - w, shadow.dtype) * (value - shadow))


def _copy(pairs: Pairs) -> None:
    for shadow, weight in pairs:
        shadow.assign(tf.cast(weight, shadow.dtype))


def _f64(x: Any) -> tf.Tensor:
    return tf.cast(x, tf.float64)
