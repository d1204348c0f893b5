"""Files that hold no state of an average, given to an average."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import polyak
from polyak.errors import PolyakError
from polyak.manifest import AVERAGE
from polyak.snapshot import Snapshot
from torture.trials.models import vectors


def stateless() -> list[str]:
    """Ways by which an average began anew without a word."""
    values = {"w0": np.float32([1, 2])}
    average = polyak.track(vectors(values["w0"]), "ema:0.9")
    for _ in range(5):
        average.update()
    broken = []
    with tempfile.TemporaryDirectory() as folder:
        raw, bare = Path(folder) / "raw.safetensors", Path(folder) / "bare.npz"
        polyak.save(Snapshot.from_arrays(values), raw)
        polyak.save(Snapshot.from_arrays(values, AVERAGE), bare)
        ways: dict[str, Callable[[], Any]] = {
            "a file of raw weights": lambda: polyak.transfer(raw, average),
            "the average of a file of raw weights": lambda: polyak.transfer(raw, average, weights="average"),
            "a snapshot of raw weights": lambda: polyak.transfer(polyak.open(raw), average),
            "an average without rule and count": lambda: polyak.transfer(bare, average),
        }
        for name, way in ways.items():
            try:
                way()
                broken.append(f"{name} was taken over, and the count is {average.count}")
            except PolyakError:
                if average.count != 5:
                    broken.append(f"{name} was refused, and the count is {average.count}")
    return broken
