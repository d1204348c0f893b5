"""The recipes share one trained model and its two averages: nothing in these tests changes them."""

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))

import keras
import nets

import polyak


@pytest.fixture(scope="session")
def trained() -> tuple[nets.Net, polyak.Average, polyak.Average]:
    keras.utils.set_random_seed(1)
    model = nets.built()
    fast, slow = polyak.EMA(model, decay=0.5), polyak.EMA(model, decay=0.9, start="debiased")
    nets.train(model, fast, slow, steps=40)
    return model, fast, slow


@pytest.fixture
def fresh() -> nets.Net:
    """Another instance, with other weights."""
    return nets.built()
