"""Averages that are made elsewhere than the weights that they follow, moved by each of two replicas.

Prints what the test compares, as JSON.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import tensorflow as tf

_cpu = tf.config.list_physical_devices("CPU")[0]
tf.config.set_logical_device_configuration(_cpu, [tf.config.LogicalDeviceConfiguration()] * 2)

import keras  # noqa: E402 - the devices must be made first
import numpy as np  # noqa: E402

import polyak  # noqa: E402

mirrored = tf.distribute.MirroredStrategy(["CPU:0", "CPU:1"])
central = tf.distribute.experimental.CentralStorageStrategy(
    compute_devices=["CPU:0", "CPU:1"], parameter_device="CPU:0"
)


def among(strategy: tf.distribute.Strategy, update: Callable[[], None]) -> Callable[[], None]:
    """The update in each replica."""
    return tf.function(lambda: strategy.run(update), autograph=False)


def built_late() -> dict[str, Any]:
    """An average made outside the scope of a model that is built within it."""
    with mirrored.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
    average = polyak.track(model, "ema:0.9,start=copy")
    with mirrored.scope():
        model(tf.ones((1, 3)))
    step, rng, expected = among(mirrored, average.update), np.random.default_rng(0), None
    kernel = model.weights[0]
    for n in range(1, 5):
        drawn = rng.normal(size=kernel.shape).astype(np.float32)
        kernel.assign(drawn)
        step()
        expected = drawn if n == 1 else 0.9 * expected + 0.1 * drawn
    return {"count": average.count, "off": float(np.abs(next(iter(average.values().values())) - expected).max())}


def restored_before() -> int:
    """The count that a restore brought before there was anything to say where it would be."""
    done = polyak.track(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), "ema:0.9,start=copy")
    done.update()
    checkpoint = tf.train.Checkpoint(count=done.counts.updates).write("ram://counted")
    with mirrored.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
    average = polyak.track(model, "ema:0.9,start=copy")
    tf.train.Checkpoint(count=average.counts.updates).read(checkpoint)
    with mirrored.scope():
        model(tf.ones((1, 3)))
    among(mirrored, average.update)()
    return average.count


def restored_after() -> int:
    """The count that a restore brings, which is the first to ask after the model was built."""
    done = polyak.track(keras.Sequential([keras.Input((3,)), keras.layers.Dense(2)]), "ema:0.9,start=copy")
    done.update()
    checkpoint = tf.train.Checkpoint(average=done).write("ram://averaged")
    with mirrored.scope():
        model = keras.Sequential([keras.layers.Dense(2)])
    average = polyak.track(model, "ema:0.9,start=copy")
    with mirrored.scope():
        model(tf.ones((1, 3)))
    tf.train.Checkpoint(average=average).read(checkpoint).assert_consumed()
    among(mirrored, average.update)()
    return average.count


def refused(scope: tf.distribute.Strategy | None, strategy: tf.distribute.Strategy) -> dict[str, Any]:
    """What is said of variables that replicas share, and what becomes of them as the hint says."""
    module = tf.Module()
    with scope.scope() if scope else tf.device(None):
        module.w = tf.Variable([1.0, 2.0])
        average = polyak.track(module, "ema:0.5,start=initial")
    module.w.assign([9.0, 9.0])
    try:
        among(strategy, average.update)()
    except polyak.errors.ModelError as error:
        said = str(error)
    held, count = average.values()["w"].tolist(), average.count

    @tf.function(autograph=False)
    def step() -> None:
        strategy.run(lambda: module.w.read_value())
        average.update()

    step()
    return {"said": said, "left": [held, count], "outside": [average.values()["w"].tolist(), average.count]}


print(
    json.dumps(
        {
            "late": built_late(),
            "restored": [restored_before(), restored_after()],
            "plain": refused(None, mirrored),
            "central": refused(central, central),
        }
    )
)
