"""Numbers of arrays: whether all can be computed with, found in one quick pass, and their nearest in another dtype."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# Numbers that fit into a core's cache.
BLOCK = 1 << 15
# Numbers in float64 for which memory is at hand: a larger piece is asked of the system anew each time.
_FEW = 1 << 12
# The bits of a float64 that no narrower dtype than float16 comes near.
_BEYOND = np.uint64(2**38 - 1)


def is_tame(array: npt.NDArray[Any]) -> bool:
    """Whether a finite sum of squares proves that every number is finite and far within the range of its dtype.

    It takes one pass and no memory. False proves nothing: squares overflow before the numbers do, and dtypes narrower
    than float32 are not looked at.

    Example:
        >>> is_tame(np.float32([1.0, -2.0])), is_tame(np.float32([np.nan])), is_tame(np.float32([1e30]))
        (True, False, False)
    """
    if array.dtype.kind != "f" or array.dtype.itemsize < 4:
        return False
    flat = array.reshape(-1)
    if flat.size <= BLOCK:
        return math.isfinite(np.vdot(flat, flat))
    return all(math.isfinite(np.vdot(block, block)) for block in _blocks(flat))


def is_within(array: npt.NDArray[Any]) -> bool:
    """Whether every number is finite and at most half of the range in which it is averaged: no difference overflows.

    Of dtypes narrower than float32 that is the range of float32.

    Example:
        >>> is_within(np.float32([1e30, 0.0])), is_within(np.float32([3e38])), is_within(np.float16([np.inf]))
        (True, False, False)
    """
    return is_tame(array) or all(map(_is_within, _blocks(array.reshape(-1))))


def _is_within(block: npt.NDArray[Any]) -> bool:
    wide = block if block.dtype == np.float64 else block.astype(np.float32)
    return bool((np.abs(wide) <= np.finfo(wide.dtype).max / 2).all())


def _blocks(flat: npt.NDArray[Any]) -> Any:
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))


def rounded(array: npt.NDArray[Any], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """The nearest numbers in another dtype, of two equally near ones the even one.

    From float64 into bfloat16 and float8 NumPy goes through float32, and would round twice: first to the middle between
    two of them, then to the wrong one. Here all but 14 bits of the fraction are rounded to odd first, after which
    float32 has every number as it is (Boldo and Melquiond 2008, "Emulation of a FMA and correctly rounded sums", IEEE
    Trans. Computers 57).

    Example:
        >>> import ml_dtypes
        >>> value, bfloat16 = np.float64([1 + 2**-8 + 2**-28]), np.dtype(ml_dtypes.bfloat16)
        >>> rounded(value, bfloat16).tolist(), value.astype(bfloat16).tolist()
        ([1.0078125], [1.0])
    """
    if array.dtype != np.float64 or dtype.isbuiltin == 1:
        return array.astype(dtype)
    made = np.empty(array.shape, dtype)
    flat, out = np.ascontiguousarray(array).reshape(-1).view(np.uint64), made.reshape(-1)
    for start in range(0, flat.size, _FEW):
        bits = flat[start : start + _FEW]
        odd = bits & _BEYOND
        odd += _BEYOND  # carries where any of these bits is set
        odd |= bits
        odd &= ~_BEYOND
        out[start : start + _FEW] = odd.view(np.float64)
    return made
