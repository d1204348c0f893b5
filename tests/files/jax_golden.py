"""What the real tools held beside the golden files in ``golden/jax``; see tests/golden/make_jax.py."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from polyak.weights import numpy_dtype

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "jax"


def expected(name: str) -> dict[str, np.ndarray]:
    """What the tool held; extended dtypes are stored as integers under ``NAME|dtype``."""
    with np.load(GOLDEN / f"{name}.npz") as stored:
        pairs = [(key.partition("|"), stored[key]) for key in stored.files]
    return {key: array.view(numpy_dtype(dtype)) if dtype else array for (key, _, dtype), array in pairs}


def assert_same(received: np.ndarray, wanted: np.ndarray) -> None:
    assert (received.dtype, received.shape) == (wanted.dtype, wanted.shape)
    assert received.tobytes() == wanted.tobytes()
