"""Copies of one's own: equal, apart, and where a framework takes them over."""

from __future__ import annotations

import numpy as np
import pytest

from polyak.memory import LARGE, copied
from polyak.weights import numpy_dtype


@pytest.mark.parametrize("dtype", ["float32", "bfloat16", "float64", "int8", "bool", "complex64"])
@pytest.mark.parametrize("size", [0, 1, LARGE // 8, LARGE])
@pytest.mark.parametrize("turned", [False, True])
def test_a_copy_is_equal_and_apart(dtype: str, size: int, turned: bool) -> None:
    array = (np.arange(2 * size) % 100).reshape(2, size).astype(numpy_dtype(dtype))
    array = array.T if turned else array
    made = copied(array)
    assert (made.dtype, made.shape, made.tobytes()) == (array.dtype, array.shape, array.tobytes())
    assert made.flags.c_contiguous
    assert made.flags.writeable
    assert not np.shares_memory(made, array)
    assert made.nbytes < LARGE or made.ctypes.data % 64 == 0
