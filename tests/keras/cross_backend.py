"""One backend's part of test_cross_backend.py, in a process of its own: ``train`` or ``read``, and a folder.

``train`` starts from the numbers in start.npz, trains on the batches there, and writes what it had after each step.
``read`` transfers the files that every backend wrote into a model of its own and writes the weights that arrived.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import polyak
from polyak.keras import Averaging

RULE = "ema:0.8,start=initial"
BATCH, STEPS = 4, 10
BACKENDS = ("tensorflow", "jax", "torch")
FILES = ("{}.safetensors", "{}.weights.h5", "{}.keras")


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(2, name="head"),
        ]
    )


def start() -> dict[str, Any]:
    """The same numbers for all: weights by path, and the batches."""
    rng = np.random.default_rng(0)
    weights = {path: rng.normal(size=value.shape) * 0.5 for path, value in polyak.snapshot(network()).items()}
    weights["batch_normalization/moving_variance"] = np.ones(4)
    data = {"x": rng.normal(size=(BATCH * STEPS, 3)), "y": rng.normal(size=(BATCH * STEPS, 2))}
    return {name: value.astype(np.float32) for name, value in {**weights, **data}.items()}


class Record(keras.callbacks.Callback):
    """The weights and the average after each step."""

    def __init__(self, averaging: Averaging) -> None:
        super().__init__()
        self.averaging = averaging
        self.rows: dict[str, Any] = {}

    def on_train_batch_end(self, step: int, logs: Any = None) -> None:
        if keras.backend.backend() == "jax":
            self.model.jax_state_sync()
        for role, held in (("raw", self.model), ("average", self.averaging.average)):
            for path, value in polyak.snapshot(held).items():
                self.rows[f"{role} {step} {path}"] = np.array(value)


def train(folder: Path) -> None:
    given = dict(np.load(folder / "start.npz"))
    x, y = given.pop("x"), given.pop("y")
    model = network()
    for path, value in given.items():
        _variable(model, path).assign(value)
    model.compile(keras.optimizers.SGD(0.1, momentum=0.9), "mse")
    averaging = Averaging(RULE)
    record = Record(averaging)
    model.fit(x, y, BATCH, 1, shuffle=False, verbose=0, callbacks=[averaging, record])
    backend = keras.backend.backend()
    np.savez(folder / f"{backend}.npz", **record.rows)
    polyak.save(averaging.average, folder / f"{backend}.safetensors")
    model.save_weights(folder / f"{backend}.weights.h5")
    model.save(folder / f"{backend}.keras")


def read(folder: Path) -> None:
    arrived = {}
    for writer in BACKENDS:
        for form in FILES:
            name = form.format(writer)
            model = network()
            twin = polyak.track(network(), "mean")
            polyak.transfer(folder / name, model, weights="average")
            polyak.transfer(folder / name, twin, weights="average")
            arrived |= {f"{name} model {path}": np.array(value) for path, value in polyak.snapshot(model).items()}
            arrived |= {f"{name} average {path}": np.array(value) for path, value in twin.values().items()}
            arrived[f"{name} count"] = np.array(twin.count)
            assert str(twin.rule) == RULE, (name, twin.rule)
    np.savez(folder / f"read by {keras.backend.backend()}.npz", **arrived)


def _variable(model: Any, path: str) -> Any:
    layer, _, name = path.partition("/")
    held = {"dense": model.layers[0], "batch_normalization": model.layers[1], "head": model.layers[2]}[layer]
    return getattr(held, name)


if __name__ == "__main__":
    {"train": train, "read": read}[sys.argv[1]](Path(sys.argv[2]))
