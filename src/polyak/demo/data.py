"""Real data that a package ships: scikit-learn's handwritten digits, 1,797 grey images of 8 x 8 pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_digits

CLASSES = 10
SIDE = 8


@dataclass(frozen=True, slots=True)
class Digits:
    """Images, float32 of shape (n, 8, 8, 1) in [0, 1], and labels, int32 of shape (n,).

    Example:
        >>> digits = load()
        >>> digits.train_x.shape, digits.test_x.shape
        ((898, 8, 8, 1), (899, 8, 8, 1))
    """

    train_x: NDArray[np.float32]
    train_y: NDArray[np.int32]
    test_x: NDArray[np.float32]
    test_y: NDArray[np.int32]


def load() -> Digits:
    """The first half for training and the second for testing, as in scikit-learn's own example of these images."""
    bunch: Any = load_digits()
    x = (bunch.images / 16.0).astype(np.float32)[..., None]
    y = bunch.target.astype(np.int32)
    half = len(x) // 2
    return Digits(x[:half], y[:half], x[half:], y[half:])
