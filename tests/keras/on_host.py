"""A model on the second of two devices, its average on the first, which stands for the host; says what it found."""

from __future__ import annotations

import json
import os
import sys
from contextlib import nullcontext
from typing import Any

if __name__ == "__main__":
    os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import keras
import numpy as np

import polyak
import polyak.keras

BACKEND = keras.backend.backend()


def elsewhere() -> Any:
    """A context in which arrays are made on the second device."""
    if BACKEND == "jax":
        import jax

        return jax.default_device(jax.devices()[1])
    if BACKEND == "tensorflow":
        import tensorflow as tf

        two = [tf.config.LogicalDeviceConfiguration()] * 2
        tf.config.set_logical_device_configuration(tf.config.list_physical_devices("CPU")[0], two)
        return tf.device("CPU:1")
    return nullcontext()


def place(value: Any) -> str:
    if BACKEND == "jax":
        return ",".join(sorted(str(d.id) for d in value.devices()))
    return str(value.device).rpartition(":")[2]


def trained(placement: str) -> tuple[Any, Any]:
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    model.compile(keras.optimizers.SGD(0.1), "mse")
    average = polyak.track(model, "ema:0.5", placement=placement)
    x = np.random.default_rng(0).standard_normal((32, 4)).astype(np.float32)
    model.fit(x, x[:, :1], 8, 2, verbose=0, shuffle=False, callbacks=[polyak.keras.Averaging(average)])
    average.update()
    return model, average


def shadows(average: Any) -> list[Any]:
    return list(average.shadows.values() if BACKEND == "tensorflow" else average.held.shadows.values())


def main() -> None:
    with elsewhere():
        model, average = trained("host")
        _, beside = trained("device")
        x = np.ones((2, 4), np.float32)
        with average.applied():
            applied = model.predict(x, verbose=0)
        json.dump(
            {
                "shadows": sorted({place(s) for s in shadows(average)}),
                "weights": sorted({place(v.value) for v in model.weights}),
                "count": average.count,
                "same": all(
                    (a == b).all() for a, b in zip(average.values().values(), beside.values().values(), strict=True)
                ),
                "applied": applied.tolist(),
                "called": keras.ops.convert_to_numpy(average(x)).tolist(),
                "predicted": average.predict(x, verbose=0).tolist(),
            },
            sys.stdout,
        )


if __name__ == "__main__":
    main()
