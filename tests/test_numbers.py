"""Casts into narrow dtypes give the nearest number, by exact fractions."""

from __future__ import annotations

from fractions import Fraction
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import polyak
from polyak.numbers import rounded

NARROW = [ml_dtypes.bfloat16, ml_dtypes.float8_e4m3fn, ml_dtypes.float8_e5m2]


def nearest(value: float, known: list[tuple[Fraction, Any]]) -> Any:
    """Of two that are equally near, the one of even bits."""
    exact = Fraction(value)
    return min(known, key=lambda one: (abs(one[0] - exact), int(one[1].view(f"u{one[1].itemsize}")) & 1))[1]


@pytest.mark.parametrize("dtype", NARROW)
def test_the_nearest_number_is_found_beside_each_middle(dtype: type) -> None:
    bits = np.arange(2 ** (8 * np.dtype(dtype).itemsize - 1)).astype(f"u{np.dtype(dtype).itemsize}").view(dtype)
    with np.errstate(invalid="ignore"):
        numbers = bits.astype(np.float64)
    numbers = numbers[np.isfinite(numbers)]
    ends = np.sort(numbers)
    middles = (ends[:-1] + ends[1:]) / 2
    chosen = middles[:: max(1, middles.size // 300)]
    values = np.concatenate([chosen * (1 + nudge) for nudge in (0.0, 2.0**-40, -(2.0**-40), 2.0**-25, -(2.0**-25))])
    values = np.concatenate([values, -values])
    found = rounded(values, np.dtype(dtype))
    for value, one in zip(values, found, strict=True):
        at = int(np.searchsorted(ends, abs(value)))
        beside = [np.asarray(np.copysign(e, value)).astype(dtype) for e in ends[max(0, at - 2) : at + 2]]
        known = [(Fraction(float(each)), each) for each in beside]
        assert one.tobytes() == nearest(float(value), known).tobytes(), value


@pytest.mark.parametrize("dtype", [*NARROW, np.float16, np.float32])
def test_what_is_no_number_and_what_is_exact_stays_so(dtype: type) -> None:
    values = np.array([0.0, -0.0, 1.5, -2.0, np.nan])
    with np.errstate(all="ignore"):
        assert rounded(values, np.dtype(dtype)).tobytes() == values.astype(dtype).tobytes()
        beyond = np.array([1e300, -1e300, np.inf, -np.inf])
        assert rounded(beyond, np.dtype(dtype)).tobytes() == beyond.astype(dtype).tobytes()
    assert rounded(np.array(1.5), np.dtype(dtype)).shape == ()


def test_a_mean_of_narrow_members_is_the_nearest_to_the_true_one() -> None:
    held = [polyak.Snapshot.from_arrays({"w": np.array([v], ml_dtypes.bfloat16)}) for v in (1 + 2.0**-7, 1.0)]
    mean = polyak.average(held, [1 + 2.0**-20, 1 - 2.0**-20])
    assert isinstance(mean, polyak.Snapshot)
    assert float(mean["w"][0]) == 1 + 2.0**-7
