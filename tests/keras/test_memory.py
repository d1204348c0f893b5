"""Who holds which memory: transfers look into memory that is not theirs, and leave nothing behind that is shared."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np
import pytest
from tests.keras.zoo import assert_same_bits, scramble, values

import polyak
from polyak.errors import NonFinite

pytestmark = pytest.mark.filterwarnings("ignore::polyak.errors.ImmatureWarning")


def model() -> Any:
    """With a tensor of more than a megabyte, and with small ones."""
    made = keras.Sequential(
        [keras.Input((600,)), keras.layers.Dense(600), keras.layers.Dense(3), keras.layers.Dense(2)]
    )
    scramble(made, 0)
    return made


def test_after_a_transfer_neither_side_changes_with_the_other() -> None:
    one, other = model(), model()
    average = polyak.EMA(one, 0.5, start="initial")
    scramble(one, 1)
    average.update()
    held = average.values()
    polyak.transfer(average, other)
    for seed in (2, 3):
        scramble(one, seed)
        average.update()
        assert_same_bits(values(other), held)
    moved = average.values()
    scramble(other, 4)
    assert_same_bits(average.values(), moved)


def test_an_average_that_received_values_moves_on_its_own() -> None:
    one, other = model(), model()
    first, second = (polyak.EMA(m, 0.5, start="initial") for m in (one, other))
    scramble(one, 1)
    first.update()
    polyak.transfer(first, second)
    polyak.transfer(one, other)
    for seed in (2, 3):
        held = first.values()
        scramble(one, seed)
        polyak.transfer(one, other)
        second.update()
        assert_same_bits(first.values(), held)
        first.update()
        assert_same_bits(second.values(), first.values())


def test_a_transfer_that_fails_leaves_memory_that_is_not_shared() -> None:
    one, other = model(), model()
    average = polyak.EMA(one, 0.5, start="initial")
    before = values(other)
    bad = average.values()
    last = list(bad)[-1]
    bad[last] = np.full_like(bad[last], np.nan)
    average.set_values(bad, nonfinite="allow")
    with pytest.raises(NonFinite):
        polyak.transfer(average, other)
    assert_same_bits(values(other), before)
    scramble(one, 5)
    average.reset()
    average.update()
    assert_same_bits(values(other), before)
