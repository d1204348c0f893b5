"""Write the small Keras files of ``keras/`` with the expected values beside each: python tests/golden/make_keras.py.

They are written once and kept: what today's polyak reads from files of today's Keras, every later one must.
"""

from __future__ import annotations

import os

os.environ["KERAS_BACKEND"] = "tensorflow"

from pathlib import Path
from typing import Any

import keras
import numpy as np
from keras import layers

import polyak

HERE = Path(__file__).parent / "keras"
X = np.linspace(-1, 1, 12, dtype=np.float32).reshape(4, 3)


@keras.saving.register_keras_serializable("polyak-golden")
class Holder(keras.Model):
    """A model that holds an average of itself."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.parts = [layers.Dense(2), layers.Dense(2)]
        self.ema = polyak.EMA(self, decay=0.5)

    def call(self, x: Any) -> Any:
        for part in self.parts:
            x = part(x)
        return x


def small(dtype: str = "float32") -> Any:
    start = keras.Input((3,))
    return keras.Sequential([start, layers.Dense(2, dtype=dtype), layers.BatchNormalization(), layers.Dense(2)])


def expect(name: str, **sets: dict[str, np.ndarray]) -> None:
    """bfloat16 as its bits, because NumPy's own format does not know it."""
    flat = {f"{role}:{path}": value for role, values in sets.items() for path, value in values.items()}
    np.savez_compressed(
        HERE / f"{name}.npz", **{k: v.view("u2") if v.dtype.kind == "V" else v for k, v in flat.items()}
    )


def places(values: list[Any]) -> dict[str, np.ndarray]:
    """The weights of ``small`` by their places."""
    where = [("dense", 2), ("batch_normalization", 4), ("dense_1", 2)]
    names = [f"layers/{layer}/vars/{i}" for layer, count in where for i in range(count)]
    return {name: np.array(value) for name, value in zip(names, values, strict=True)}


def trained(model: Any) -> tuple[Any, list[Any]]:
    """The model after some steps, and the averages of its optimizer, with the weights that have none."""
    optimizer = keras.optimizers.Adam(0.1, use_ema=True, ema_momentum=0.5)
    model.compile(optimizer, "mse")
    for _ in range(4):
        model.train_on_batch(X, X[:, :2])
    averages = iter(optimizer._model_variables_moving_average)
    trainable = {id(v) for v in model.trainable_variables}
    return model, [(next(averages) if id(v) in trainable else v).numpy() for v in model.weights]


def main() -> None:
    keras.utils.set_random_seed(0)
    HERE.mkdir(exist_ok=True)
    model, averages = trained(small())
    sets = {"raw": places(model.get_weights()), "average": places(averages)}
    model.save(HERE / "use_ema.keras")
    expect("use_ema", **sets)
    brain = small("bfloat16")
    brain.save_weights(HERE / "brain.weights.h5")
    expect("brain", raw=places([v.numpy() for v in brain.weights]))
    holder = Holder()
    holder(X)
    holder.ema.update()
    for variable in holder.weights:
        variable.assign(np.arange(variable.shape[-1], dtype=np.float32) + variable)
    holder.ema.update()
    holder.save_weights(HERE / "holder.weights.h5")
    expect("holder", raw=dict(polyak.snapshot(holder).copy()), average=holder.ema.values())


if __name__ == "__main__":
    main()
