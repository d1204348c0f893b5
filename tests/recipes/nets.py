"""Two custom models for the recipes, imported by the tests and by their second processes."""

import os

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import keras
import numpy as np
import tensorflow as tf

import polyak


class Block(keras.layers.Layer):
    """A nested layer with normalisation and dropout."""

    def __init__(self, units: int, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.dense = keras.layers.Dense(units)
        self.norm = keras.layers.BatchNormalization()
        self.drop = keras.layers.Dropout(0.1)

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        return self.drop(tf.nn.relu(self.norm(self.dense(x), training=training)), training=training)


class Net(keras.Model):
    """Layers in an attribute, in a list and in a dictionary: TensorFlow's own checkpoint loses the last two."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.stem = keras.layers.Dense(4)
        self.blocks = [Block(4), Block(4)]
        self.heads = {"main": keras.layers.Dense(2), "aux": keras.layers.Dense(2)}

    def call(self, x: tf.Tensor, training: bool = False) -> tf.Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x, training=training)
        return self.heads["main"](x) + self.heads["aux"](x)


@keras.saving.register_keras_serializable("polyak-tests")
class Averaged(Net):
    """A model that holds its average as an attribute and moves it in its own train_step."""

    def __init__(self, **kwargs: object) -> None:
        super().__init__(**kwargs)
        self.ema = polyak.EMA(self, decay=0.9)

    def train_step(self, data: object) -> dict[str, tf.Tensor]:
        logs = super().train_step(data)
        self.ema.update()
        return logs


INPUTS = np.linspace(-1, 1, 48, dtype=np.float32).reshape(16, 3)
TARGETS = np.stack([INPUTS.sum(1), INPUTS.prod(1)], 1)


def built(kind: type[Net] = Net) -> Net:
    model = kind()
    model(INPUTS)
    return model


def train(model: Net, *averages: polyak.Average, steps: int = 8) -> None:
    """A custom training loop: gradient, step, update, in one tf.function."""
    optimizer = keras.optimizers.SGD(0.1)
    optimizer.build(model.trainable_variables)

    @tf.function
    def step() -> None:
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((model(INPUTS, training=True) - TARGETS) ** 2)
        optimizer.apply(tape.gradient(loss, model.trainable_variables), model.trainable_variables)
        for average in averages:
            average.update()

    for _ in range(steps):
        step()


def weights(model: Net) -> dict[str, np.ndarray]:
    """All weights but random seeds, by path."""
    return {k: v for k, v in polyak.snapshot(model).items() if "seed" not in k}


def averaged(average: polyak.Average) -> dict[str, np.ndarray]:
    return {k: v for k, v in average.values().items() if "seed" not in k}


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    """Bit for bit."""
    assert found.keys() == expected.keys()
    for path, value in expected.items():
        assert found[path].dtype == value.dtype
        assert found[path].tobytes() == value.tobytes(), path
