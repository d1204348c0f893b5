"""A model under MirroredStrategy on N logical CPU devices, averaged by the callback and in a loop of one's own.

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

import keras  # noqa: E402 - the devices must be made first
import numpy as np  # noqa: E402

import polyak  # noqa: E402
import polyak.keras  # noqa: E402

strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(COUNT)])
rng = np.random.default_rng(0)
x = rng.standard_normal((96, 4)).astype(np.float32)
y = x.sum(1, keepdims=True)


def model() -> keras.Model:
    keras.utils.set_random_seed(0)
    made = keras.Sequential([keras.Input((4,)), keras.layers.Dense(8, "relu"), keras.layers.Dense(1)])
    made.compile(keras.optimizers.SGD(0.01), "mse")
    return made


def spread(average: object) -> bool:
    """Whether the shadows are the same on all replicas, bit for bit."""
    parts = [v.values for v in average.bound.shadows.variables.values()]
    return all(len(p) == COUNT and all(np.array_equal(p[0], other) for other in p[1:]) for p in parts)


def fitted(within: bool) -> tuple[keras.Model, polyak.keras.Averaging]:
    if within:
        with strategy.scope():
            made = model()
    else:
        made = model()
    averaging = polyak.keras.Averaging("ema:0.9,start=copy", evaluate="both")
    made.fit(x, y, 24, 2, verbose=0, validation_data=(x, y), callbacks=[averaging], shuffle=False)
    return made, averaging


def looped() -> object:
    """A loop of one's own: update() among the replicas, and outside of them."""
    with strategy.scope():
        made = model()
    made.optimizer.build(made.trainable_variables)
    average = polyak.track(made, "ema:0.9,start=copy")
    other = polyak.track(made, "ema:0.9,start=copy")

    @tf.function
    def step(batch: tuple[tf.Tensor, tf.Tensor]) -> None:
        def one(inputs: tf.Tensor, targets: tf.Tensor) -> None:
            with tf.GradientTape() as tape:
                loss = tf.reduce_mean((made(inputs) - targets) ** 2) / COUNT
            made.optimizer.apply_gradients(
                zip(tape.gradient(loss, made.trainable_variables), made.trainable_variables, strict=True)
            )
            average.update()

        strategy.run(one, args=batch)

    data = tf.data.Dataset.from_tensor_slices((x, y)).batch(24)
    for batch in strategy.experimental_distribute_dataset(data):
        step(batch)
        other.update()
    return average, other


def difference(a: object, b: object) -> float:
    ours, theirs = a.values(), b.values()
    return max(float(np.abs(ours[path] - theirs[path]).max()) for path in ours)


made, averaging = fitted(within=True)
_, alone = fitted(within=False)
inside, outside = looped()
before = [np.array(part) for v in made.weights for part in v.value.values]
with averaging.average.applied():
    applied = made.predict(x, 24, verbose=0)
after = [np.array(part) for v in made.weights for part in v.value.values]
checkpoint = tf.train.Checkpoint(model=made, average=averaging.average).write(str(FOLDER / "checkpoint"))
polyak.save(averaging.average, FOLDER / "average.safetensors")
print(
    json.dumps(
        {
            "count": averaging.average.count,
            "same on all replicas": spread(averaging.average) and spread(inside) and spread(outside),
            "against one device": difference(averaging.average, alone.average),
            "inside against outside": difference(inside, outside),
            "counts of the loop": [inside.count, outside.count],
            "restored": all(np.array_equal(a, b) for a, b in zip(before, after, strict=True)),
            "called against applied": float(np.abs(np.asarray(averaging.average(x)) - applied).max()),
            "values": {path: value.tolist() for path, value in averaging.average.values().items()},
        }
    )
)
