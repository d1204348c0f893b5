"""What all writers refuse: arrays that are not what their descriptions say when it comes to writing them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import polyak
from polyak.errors import PolyakError
from polyak.snapshot import Item, Snapshot
from polyak.weights import Kind, Weight

NAMES = ["m.safetensors", "m.safetensors.index.json", "m.npz", "m.pt", "m.orbax"]


def described(value: Any) -> Snapshot:
    """A weight of four float32 numbers, as its description has it."""
    return Snapshot([Item("raw", Weight("w", (4,), "float32", Kind.TRAINABLE), lambda: value)])


@pytest.mark.parametrize("value", [np.zeros(3, np.float32), np.zeros(4, np.float64)], ids=["shape", "dtype"])
@pytest.mark.parametrize("name", NAMES)
def test_an_array_that_is_not_as_it_was_described_is_not_written(name: str, value: Any, tmp_path: Path) -> None:
    polyak.save(described(np.ones(4, np.float32)), tmp_path / name)
    with pytest.raises(PolyakError, match=r"weight 'w': expected .*float32.*, received .*\nhint: it changed while it"):
        polyak.save(described(value), tmp_path / name)
    assert polyak.open(tmp_path / name)["w"].tolist() == [1.0] * 4
