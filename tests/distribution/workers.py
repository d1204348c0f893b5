"""One of two workers under MultiWorkerMirroredStrategy: a loop of one's own, an average beside each replica."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np
import tensorflow as tf

import polyak
from polyak.frameworks import company
from polyak.manifest import digest

FOLDER = Path(sys.argv[1])
# Before anything else is placed on a device: the workers find each other through TF_CONFIG.
strategy = tf.distribute.MultiWorkerMirroredStrategy()
worker = strategy.cluster_resolver.task_id

with strategy.scope():
    keras.utils.set_random_seed(0)
    model = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    optimizer = keras.optimizers.SGD(0.01)
optimizer.build(model.trainable_variables)
average = polyak.track(model, "ema:0.9,start=copy")
rng = np.random.default_rng(0)
x = rng.standard_normal((64, 4)).astype(np.float32)
y = x.sum(1, keepdims=True)


@tf.function
def step(batch: tuple[tf.Tensor, tf.Tensor]) -> None:
    def one(inputs: tf.Tensor, targets: tf.Tensor) -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(inputs) - targets) ** 2) / 2
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables, strict=True))
        average.update()

    strategy.run(one, args=batch)


options = tf.data.Options()
options.experimental_distribute.auto_shard_policy = tf.data.experimental.AutoShardPolicy.DATA
data = tf.data.Dataset.from_tensor_slices((x, y)).batch(16).repeat(2).with_options(options)
for batch in strategy.experimental_distribute_dataset(data):
    step(batch)
# One path, and all processes call: the first writes, the others wait for it. Then the last one drifts.
receipt = polyak.save(average, FOLDER / "average.safetensors")
written = (FOLDER / "average.safetensors").stat().st_ino
drift = ""
if worker:
    company.PATIENCE = 0.5
    shadow = average.bound.shadows.variables["dense/kernel"]
    held = shadow.values[0].read_value()
    shadow.values[0].assign(held + 1)
    try:
        polyak.save(average, FOLDER / "average.safetensors")
    except polyak.PolyakError as error:
        drift = str(error)
    shadow.values[0].assign(held)
print(
    json.dumps(
        {
            "count": average.count,
            "digests": {path: digest(value) for path, value in average.values().items()},
            "receipt": {m.target: m.digest for m in receipt.moved},
            "file": written,
            "drift": drift,
        }
    )
)
