"""Memory of one's own: copies that a framework can take over as they are."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

# TensorFlow and JAX take over what begins at a multiple of this, and copy everything else once more.
_ALIGNED = 64
# Bytes from which one more copy would cost more than to ask for such a place.
LARGE = 2**18


def copied(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """A copy in C order, which nobody else has.

    Example:
        >>> copied(np.float32([[1, 2], [3, 4]]).T).tolist()
        [[1.0, 3.0], [2.0, 4.0]]
    """
    if array.nbytes < LARGE:
        return np.array(array, order="C")
    size = math.prod(array.shape) * array.itemsize
    raw = np.empty(size + _ALIGNED, np.uint8)
    start = -raw.ctypes.data % _ALIGNED
    made = raw[start : start + size].view(array.dtype).reshape(array.shape)
    np.copyto(made, array)
    return made
