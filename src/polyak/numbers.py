"""Whether all numbers of an array can be computed with, found in one quick pass."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# Numbers that fit into a core's cache.
BLOCK = 1 << 15


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


def _blocks(flat: npt.NDArray[Any]) -> Any:
    return (flat[start : start + BLOCK] for start in range(0, flat.size, BLOCK))
