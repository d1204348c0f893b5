"""Arithmetic over large arrays in blocks, so that what is made on the way stays small."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from polyak.weights import is_floating

Array = NDArray[Any]
BLOCK = 1 << 17  # 1 MiB in float64: small beside a large tensor, large beside the cost of a call


def blocks(*arrays: Array) -> Iterator[tuple[Array, ...]]:
    """Flat parts of arrays of one size, each of up to 131,072 elements; views where the arrays are contiguous.

    Example:
        >>> [[part.tolist() for part in parts] for parts in blocks(np.eye(2), np.ones((2, 2)))]
        [[[1.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]]
    """
    flat = [np.ascontiguousarray(a).reshape(-1) for a in arrays]
    for start in range(0, flat[0].size, BLOCK):
        yield tuple(a[start : start + BLOCK] for a in flat)


def wide(block: Array) -> Array:
    """The values in float64 (complex128 where complex); bfloat16 and its like included.

    Example:
        >>> wide(np.array([1, 2], np.int32)).dtype.name
        'float64'
    """
    return block.astype(np.complex128 if block.dtype.kind == "c" else np.float64)


def same_bits(a: Array, b: Array) -> bool:
    """Whether two arrays of one shape and dtype hold the same bits: NaN equals itself, and -0.0 is not 0.0.

    Example:
        >>> same_bits(np.array([np.nan]), np.array([np.nan])), same_bits(np.array([0.0]), np.array([-0.0]))
        (True, False)
    """
    return all(np.array_equal(x.view(np.uint8), y.view(np.uint8)) for x, y in blocks(a, b))


def count_nonfinite(array: Array) -> int:
    """How many values are NaN or infinite; 0 for integers.

    Example:
        >>> count_nonfinite(np.array([1.0, np.nan, -np.inf]))
        2
    """
    if not is_floating(array.dtype.name) and array.dtype.kind != "c":
        return 0
    return sum(x.size - int(np.count_nonzero(np.isfinite(wide(x)))) for (x,) in blocks(array))
