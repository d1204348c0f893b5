"""A model of Keras on JAX, spread over eight logical CPU devices by DataParallel or ModelParallel, or on one."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

MANNER = sys.argv[1]
FOLDER = Path(sys.argv[2])
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"

import jax  # noqa: E402 - the flags must be set first
import keras  # noqa: E402
import numpy as np  # noqa: E402

import polyak  # noqa: E402
import polyak.keras  # noqa: E402
from polyak.frameworks.engine import tree_of  # noqa: E402
from polyak.frameworks.jax_kernel import compiled  # noqa: E402


def distribution() -> keras.distribution.Distribution | None:
    devices = keras.distribution.list_devices()
    if MANNER == "data":
        return keras.distribution.DataParallel(devices=devices)
    mesh = keras.distribution.DeviceMesh((2, 4), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*wide.*kernel"] = (None, "model")
    layout[".*wide.*bias"] = ("model",)
    return keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch")


if MANNER != "one":
    keras.distribution.set_distribution(distribution())
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 4)).astype(np.float32)
y = x.sum(1, keepdims=True)
keras.utils.set_random_seed(0)
model = keras.Sequential(
    [
        keras.Input((4,)),
        keras.layers.Dense(8, "relu", name="wide"),
        keras.layers.BatchNormalization(),
        keras.layers.Dense(1),
    ]
)
model.compile(keras.optimizers.SGD(0.05), "mse")
averaging = polyak.keras.Averaging("ema:0.9,start=copy", evaluate="both")
model.fit(x, y, 16, 2, verbose=0, validation_data=(x, y), callbacks=[averaging], shuffle=False)
average = averaging.average


def placed() -> bool:
    """Whether every shadow is spread as its weight is, and every weight as its layout says."""
    found = [(average.raw.variables[path].value, shadow) for path, shadow in average.held.shadows.items()]
    return all(shadow.sharding.is_equivalent_to(raw.sharding, raw.ndim) for raw, shadow in found)


in_fit = placed()
program = compiled((average.program,)).lower([tree_of(average.held)], average.raw_values()).compile().as_text()
values = average.values()
average.update()
count = average.count
with average.applied():
    model.evaluate(x, y, verbose=0)
polyak.save(average, FOLDER / f"{MANNER}.safetensors")
receipt = polyak.transfer(FOLDER / f"{MANNER}.safetensors", model)

# A tree of arrays that are on no device of JAX, as a file gives them back.
average.take(jax.tree.map(np.asarray, average.tree()))
in_fit = in_fit and placed()
model.fit(x, y, 16, 1, verbose=0, callbacks=[averaging], validation_data=(x, y), shuffle=False)
average.take(jax.tree.map(np.asarray, average.tree()))


def refusal() -> str:
    """What reading says once one device holds another copy of a weight that all should have alike."""
    variable = model.layers[-1].kernel
    good = variable.value
    parts = [np.array(s.data) + (i == 1) for i, s in enumerate(good.addressable_shards)]
    on_devices = [jax.device_put(p, s.device) for p, s in zip(parts, good.addressable_shards, strict=True)]
    variable._value = jax.make_array_from_single_device_arrays(good.shape, good.sharding, on_devices)
    try:
        polyak.snapshot(model)["dense/kernel"]
    except polyak.PolyakError as error:
        return str(error)
    finally:
        variable._value = good
    return ""


print(
    json.dumps(
        {
            "count": count,
            "devices": len(jax.devices()),
            "pieces": len({str(s.index) for s in average.held.shadows["wide/kernel"].addressable_shards}),
            "placed": in_fit and placed(),
            "gathers": {op: program.count(op) for op in ("all-gather", "all-to-all", "collective-permute")},
            "moved": len(receipt.moved),
            "drift": refusal(),
            "values": {path: value.tolist() for path, value in values.items()},
        }
    )
)
