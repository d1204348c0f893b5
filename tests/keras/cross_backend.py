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
# Of a model with random seeds, which each backend keeps in integers of its own.
SEEDED = ("{}-seeded.safetensors", "{}-seeded.weights.h5", "{}-seeded.keras", "{}-plain.keras", "{}-plain.weights.h5")


def network() -> Any:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, activation="tanh"),
            layers.BatchNormalization(),
            layers.Dense(2, name="head"),
        ]
    )


def seeded() -> Any:
    return keras.Sequential(
        [
            keras.Input((3,)),
            layers.Dense(4, name="hidden"),
            layers.Dropout(0.5, seed=7, name="dropout"),
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
    _train_seeded(folder, x, y)


def _train_seeded(folder: Path, x: Any, y: Any) -> None:
    backend = keras.backend.backend()
    model, averaging = seeded(), Averaging(RULE)
    model.compile("sgd", "mse")
    model.save(folder / f"{backend}-plain.keras")
    model.save_weights(folder / f"{backend}-plain.weights.h5")
    model.fit(x, y, BATCH, 1, verbose=0, callbacks=[averaging])
    held = polyak.snapshot(model)
    np.savez(folder / f"{backend}-seeded.npz", **{path: np.array(value) for path, value in held.items()})
    polyak.save(averaging.average, folder / f"{backend}-seeded.safetensors", weights="both")
    model.save_weights(folder / f"{backend}-seeded.weights.h5")
    model.save(folder / f"{backend}-seeded.keras")


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
    arrived |= _read_seeded(folder)
    np.savez(folder / f"read by {keras.backend.backend()}.npz", **arrived)


def _read_seeded(folder: Path) -> dict[str, Any]:
    """Into a model, an average, and from one in memory that has come from a file: each without a word on dtypes."""
    arrived = {}
    for writer in BACKENDS:
        for form in SEEDED:
            held = polyak.open(folder / form.format(writer))
            for role in {r for r in held.roles if r in ("raw", "average")}:
                model, twin = seeded(), polyak.track(seeded(), "mean")
                polyak.transfer(held, model, weights=role)
                polyak.transfer(held, twin, weights=role)
                polyak.transfer(held.select(role=role).copy(), seeded())
                for kind, found in (("model", polyak.snapshot(model)), ("average", twin.values())):
                    name = f"{form.format(writer)} {role} {kind}"
                    arrived |= {f"{name} {path}": np.array(value) for path, value in found.items()}
    return arrived


def _variable(model: Any, path: str) -> Any:
    layer, _, name = path.partition("/")
    held = {"dense": model.layers[0], "batch_normalization": model.layers[1], "head": model.layers[2]}[layer]
    return getattr(held, name)


if __name__ == "__main__":
    {"train": train, "read": read}[sys.argv[1]](Path(sys.argv[2]))
