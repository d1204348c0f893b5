"""One of two processes of JAX that train together, each with two logical CPU devices: a Keras model and its average."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

MANNER, RANK, ADDRESS, FOLDER = sys.argv[1], int(sys.argv[2]), sys.argv[3], Path(sys.argv[4])
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=2"

import jax  # noqa: E402 - the flags must be set first

jax.config.update("jax_cpu_collectives_implementation", "gloo")
jax.distributed.initialize(ADDRESS, 2, RANK)

import keras  # noqa: E402 - the processes find each other before anything is placed
import numpy as np  # noqa: E402

import polyak  # noqa: E402
from polyak.manifest import digest  # noqa: E402

devices = keras.distribution.list_devices()
if MANNER == "data":
    keras.distribution.set_distribution(keras.distribution.DataParallel(devices=devices, auto_shard_dataset=False))
else:
    mesh = keras.distribution.DeviceMesh((1, 4), ("batch", "model"), devices)
    layout = keras.distribution.LayoutMap(mesh)
    layout[".*wide.*kernel"] = (None, "model")
    keras.distribution.set_distribution(
        keras.distribution.ModelParallel(layout_map=layout, batch_dim_name="batch", auto_shard_dataset=False)
    )
keras.utils.set_random_seed(0)
model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu", name="wide"), keras.layers.Dense(1)])
optimizer = keras.optimizers.SGD(0.01)
optimizer.build(model.trainable_variables)
average = polyak.track(model, "ema:0.9,start=copy")
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 4)).astype(np.float32)
y = x.sum(1, keepdims=True)


@jax.jit
def step(trained, others, state, tree, x, y):
    def loss(trained):
        found, _ = model.stateless_call(trained, others, x)
        return ((found - y) ** 2).mean()

    slopes = jax.grad(loss)(trained)
    trained, state = optimizer.stateless_apply(state, slopes, trained)
    return trained, others, state, average.stateless_update(tree, trained, others)


lists = (model.trainable_variables, model.non_trainable_variables, optimizer.variables)
held = [*([v.value for v in variables] for variables in lists), average.tree()]
for i in range(8):
    held = step(*held, x[8 * i : 8 * i + 8], y[8 * i : 8 * i + 8])
for variables, values in zip(lists, held, strict=False):
    for variable, value in zip(variables, values, strict=True):
        variable.assign(value)
average.take(held[-1])

said = {"devices": len(jax.devices()), "here": len(jax.local_devices()), "count": average.count}
try:
    receipt = polyak.save(average, FOLDER / "average.safetensors")
    said |= {
        "digests": {path: digest(value) for path, value in average.values().items()},
        "receipt": {m.target: m.digest for m in receipt.moved},
        "file": (FOLDER / "average.safetensors").stat().st_ino,
    }
except polyak.PolyakError as error:
    said["refused"] = str(error)
if MANNER == "data":
    spread = jax.sharding.NamedSharding(jax.make_mesh((4,), ("all",)), jax.sharding.PartitionSpec("all"))
    model.weights[1]._value = jax.make_array_from_callback((8,), spread, lambda index: np.zeros(8, np.float32)[index])
    try:
        said["parted"] = f"read: {polyak.snapshot(model)['wide/bias']}"
    except polyak.PolyakError as error:
        said["parted"] = str(error)
print(json.dumps(said))
jax.distributed.shutdown()
