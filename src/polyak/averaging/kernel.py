"""The one arithmetic of every rule, on NumPy: the reference that each framework's kernel is held against."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import numpy.typing as npt

from polyak.errors import DtypeMismatch, RuleError, ShapeMismatch

_NARROW = re.compile(r"float(4|6|8|16)(_\w+)?|bfloat16")
_FLOATING = re.compile(r"b?float\d+(_\w+)?")


def shadow_dtype(name: str) -> str:
    """Name of the dtype in which an average of weights of dtype ``name`` is kept.

    float32 for narrower floating-point types: a bfloat16 average with decay 0.999 would never move, because its step is
    below half a unit in the last place. Wider types and all that is not floating-point stay as they are.

    Example:
        >>> [shadow_dtype(name) for name in ("bfloat16", "float8_e4m3fn", "float32", "float64", "int64")]
        ['float32', 'float32', 'float32', 'float64', 'int64']
    """
    return "float32" if _NARROW.fullmatch(name) else name


def lerp(average: npt.ArrayLike, value: npt.ArrayLike, w: float) -> npt.NDArray[Any]:
    """The average after one update, ``average + w (value - average)``, as a new array.

    It is computed from the nearer end: a - w (a - x) for w < 1/2, else x - (1 - w) (x - a). The one-sided form misses x
    by rounding at w = 1 (and by everything where x is far smaller than a), and may step beyond x near it. The two-sided
    form keeps these laws, bit for bit: w = 0 gives the average and w = 1 the value, whatever the other one holds, NaN
    included; equal inputs stay fixed (subtracting, unlike adding, keeps the sign of zero); the result never leaves
    [a, x], because the step is at most half of the distance. Where the distance is not finite, because it overflows or
    an end is infinite, (1 - w) a + w x stands in. The smaller of w and 1 - w is rounded to the array's dtype.

    Args:
        average: floating-point array.
        value: array of the same shape; it is converted to the result's dtype first.
        w: weight of the value, float64 in [0, 1]. 1 - w is formed in float64, so that a small 1 - w is not lost.

    Returns:
        Array of the same shape and of dtype ``shadow_dtype(average's)``: float32 or wider.

    Raises:
        ShapeMismatch: the shapes differ.
        DtypeMismatch: the average or the value is not floating-point; integers and the like are copied, never averaged.
        RuleError: w is not in [0, 1].

    Example:
        >>> lerp(np.float32([1.0, 100.0]), np.float32([0.5, 1e-6]), 1.0)
        array([5.e-01, 1.e-06], dtype=float32)
        >>> lerp(np.float16([1.0]), np.float16([0.5]), 0.25)
        array([0.875], dtype=float32)
    """
    a, x = np.asarray(average), np.asarray(value)
    _check(a, x, w)
    with np.errstate(over="ignore", invalid="ignore"):
        a = a.astype(shadow_dtype(a.dtype.name))
        x = x.astype(a.dtype)
        if w in (0.0, 1.0):
            return x if w else a
        return _between(a, x, w)


def _check(a: npt.NDArray[Any], x: npt.NDArray[Any], w: float) -> None:
    if a.shape != x.shape:
        raise ShapeMismatch(f"lerp: expected a value of the average's shape {a.shape}, received {x.shape}")
    for array in (a, x):
        if not _FLOATING.fullmatch(array.dtype.name):
            raise DtypeMismatch(f"lerp: expected floating-point arrays, received {array.dtype}", hint="copy it instead")
    if not 0.0 <= w <= 1.0:
        raise RuleError(f"lerp: expected a weight in [0, 1], received {w}")


def _between(a: npt.NDArray[Any], x: npt.NDArray[Any], w: float) -> npt.NDArray[Any]:
    near, far, step = (a, x, w) if w < 0.5 else (x, a, 1.0 - w)
    share = a.dtype.type(step)
    distance = near - far
    result = np.asarray(near - share * distance)
    overflowed = ~np.isfinite(distance)
    if overflowed.any():
        result = np.where(overflowed, a.dtype.type(1.0 - step) * near + share * far, result)
    return result
