"""Files of Keras 3.15 that are kept: every later polyak reads the same bits from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import polyak

HERE = Path(__file__).parents[1] / "golden" / "keras"
FILES = sorted(p.name for p in HERE.iterdir() if p.suffix != ".npz")


def test_there_are_files() -> None:
    assert FILES == ["brain.weights.h5", "holder.weights.h5", "use_ema.keras"]


@pytest.mark.parametrize("name", FILES)
def test_a_kept_file_has_the_kept_values(name: str) -> None:
    snap = polyak.open(HERE / name)
    expected = dict(np.load(HERE / f"{name.partition('.')[0]}.npz"))
    found = {
        f"{role}:{path}": value
        for role in snap.roles
        if role != "optimizer"
        for path, value in snap.select(role=role).items()
    }
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].shape == value.shape
        assert found[path].tobytes() == value.tobytes(), path


def test_the_kept_average_of_polyak_has_its_rule() -> None:
    state = polyak.open(HERE / "holder.weights.h5").select(role="average").state
    assert state is not None
    assert (state.rule, state.count) == ({"rule": "ema", "decay": 0.5, "start": "warm"}, 2)


def test_the_kept_average_of_keras_has_its_rule() -> None:
    state = polyak.open(HERE / "use_ema.keras").select(role="average").state
    assert state is not None
    assert (state.rule, state.count) == ({"rule": "ema", "decay": 0.5, "start": "copy"}, 4)
