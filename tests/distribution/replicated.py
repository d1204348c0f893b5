"""A model with batch normalisation under MirroredStrategy on N logical CPU devices, and what happens when they drift.

Prints what the test compares, as JSON.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import tensorflow as tf

COUNT = int(sys.argv[1])
FOLDER = Path(sys.argv[2])
_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * COUNT)

import h5py  # noqa: E402 - the devices must be made first
import keras  # noqa: E402
import numpy as np  # noqa: E402

import polyak  # noqa: E402
import polyak.keras  # noqa: E402

PATH = "batch_normalization/moving_mean"
strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(COUNT)])
rng = np.random.default_rng(0)
x = rng.standard_normal((96, 4)).astype(np.float32) * np.linspace(1, 9, 96, dtype=np.float32)[:, None]
with strategy.scope():
    keras.utils.set_random_seed(0)
    layers = [keras.layers.Dense(8), keras.layers.BatchNormalization(), keras.layers.Dense(1)]
    model = keras.Sequential([keras.Input((4,)), *layers])
    model.compile(keras.optimizers.SGD(0.01), "mse")
averaging = polyak.keras.Averaging("ema:0.9,start=copy")
model.fit(x, x.sum(1, keepdims=True), 24, 2, verbose=0, callbacks=[averaging], shuffle=False)
average = averaging.average


def parts(variable: object) -> list[np.ndarray]:
    return [np.array(part) for part in variable.values]


def refusal(work: object) -> str:
    try:
        work()
    except polyak.PolyakError as error:
        return str(error)
    return ""


raw, shadow = model.layers[1].moving_mean.value, average.bound.shadows.variables[PATH]
polyak.save(average, FOLDER / "average.safetensors", weights="both")
held = polyak.open(FOLDER / "average.safetensors")
model.save_weights(FOLDER / "keras.weights.h5")
with h5py.File(FOLDER / "keras.weights.h5") as file:
    by_keras = np.array(file["layers/batch_normalization/vars/2"])
spread = [parts(raw), parts(shadow)]
kernel, averaged = model.layers[0].kernel.value, average.bound.shadows.variables["dense/kernel"]
refused = {}
for name, variable in (("raw", kernel), ("average", averaged)):
    last = variable.values[-1]
    before = last.read_value()
    last.assign(np.nextafter(np.array(before), np.float32(9)))
    refused[name] = refusal(lambda name=name: polyak.save(average, FOLDER / "drifted.safetensors", weights=name))
    last.assign(before)
print(
    json.dumps(
        {
            "replicas": [len(p) for p in spread],
            "statistics differ by": max(float(np.abs(p - spread[0][0]).max()) for p in spread[0]),
            "copied beside each": all(np.array_equal(a, b) for a, b in zip(*spread, strict=True)),
            "raw is Keras' own": bool(np.array_equal(held[f"raw/{PATH}"], by_keras)),
            "raw is the first": bool(np.array_equal(held[f"raw/{PATH}"], spread[0][0])),
            "average is the first": bool(np.array_equal(held[f"average/{PATH}"], spread[1][0])),
            "refused": refused,
            "written": (FOLDER / "drifted.safetensors").exists(),
            "kept": [refusal(lambda: average.values()), average.count],
        }
    )
)
