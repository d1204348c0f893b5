"""Small models of every make. Two calls of a factory give two instances of one code, with other automatic names."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
import tensorflow as tf
import tf_keras
from keras import layers

import polyak
from polyak.frameworks import framework_of

WIDTH = 4


@dataclass(frozen=True)
class Make:
    """A make of model: ``new()`` gives an instance that may be unbuilt, ``built()`` one that has run once."""

    new: Callable[[], Any]
    sample: Callable[[], Any]

    def built(self) -> Any:
        model = self.new()
        model(self.sample())
        return model


def vectors() -> Any:
    return np.linspace(-1, 1, 3 * WIDTH, dtype=np.float32).reshape(3, WIDTH)


def tokens() -> Any:
    return np.arange(12, dtype=np.int32).reshape(3, 4) % 7


def sequences() -> Any:
    return np.linspace(-1, 1, 3 * 5 * WIDTH, dtype=np.float32).reshape(3, 5, WIDTH)


def dense(**kwargs: Any) -> layers.Dense:
    """All of one shape, so that a wrong pairing is not found by the shape."""
    return layers.Dense(WIDTH, **kwargs)


ZOO: dict[str, Make] = {}


def make(sample: Callable[[], Any]) -> Callable[[Callable[[], Any]], Callable[[], Any]]:
    def register(factory: Any) -> Any:
        ZOO[factory.__name__] = Make(factory, sample)
        return factory

    return register


# Keras 3: Sequential and functional


@make(vectors)
def sequential() -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), dense(), layers.Dropout(0.5), dense(), layers.BatchNormalization()])


@make(vectors)
def sequential_deferred() -> Any:
    return keras.Sequential([dense(activation="relu"), dense(), dense(name="head")])


@make(vectors)
def functional() -> Any:
    x = keras.Input((WIDTH,))
    hidden = layers.ReLU()(dense()(x))
    return keras.Model(x, dense(name="head")(dense()(hidden)))


@make(vectors)
def functional_branches() -> Any:
    x = keras.Input((WIDTH,))
    left, right = dense()(x), dense()(layers.Dropout(0.1)(x))
    return keras.Model(x, dense()(layers.Add()([left, right])))


@make(vectors)
def shared_layer() -> Any:
    x = keras.Input((WIDTH,))
    twice = dense()
    return keras.Model(x, dense()(twice(twice(x))))


@make(vectors)
def sequential_in_functional() -> Any:
    x = keras.Input((WIDTH,))
    block = keras.Sequential([keras.Input((WIDTH,)), dense(), dense()])
    return keras.Model(x, dense()(block(x)))


@make(vectors)
class FunctionalSubclass(keras.Model):
    """Subclassed, and yet functional: its layers are in no attribute."""

    def __init__(self) -> None:
        x = keras.Input((WIDTH,))
        super().__init__(inputs=x, outputs=dense(name="head")(dense()(x)))


# Keras 3: subclassed


@make(vectors)
class Attributes(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.second = dense()
        self.first = dense()
        self.norm = layers.BatchNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(self.second(self.first(x)), training=training)


@make(vectors)
class Blocks(keras.Model):
    """A list of layers, some of which own no weights."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [dense(), layers.Dropout(0.2), dense(), dense()]
        self.head = dense()

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.blocks[1](self.blocks[0](x), training=training)
        return self.head(self.blocks[3](self.blocks[2](x)))


@make(vectors)
class Containers(keras.Model):
    """A dictionary, a tuple, and lists within lists and dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.d = {"b": dense(), "a": dense()}
        self.pair = (dense(), dense())
        self.nested = [[dense(), dense()], [dense()]]
        self.deep = {"x": [dense()], "y": {"z": dense()}}

    def call(self, x: Any) -> Any:
        for layer in (self.d["a"], self.d["b"], *self.pair, *self.nested[0], *self.nested[1]):
            x = layer(x)
        return self.deep["y"]["z"](self.deep["x"][0](x))


@make(vectors)
class FunctionalInside(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.net = sequential_in_functional()
        self.tail = keras.Sequential([dense(), dense()])

    def call(self, x: Any) -> Any:
        return self.tail(self.net(x))


@make(vectors)
class ModelInModel(keras.Model):
    """Two instances of one model, one in an attribute and one in a list; a layer reached in two ways."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Blocks()
        self.others = [Blocks()]
        self.tied = self.encoder.head

    def call(self, x: Any) -> Any:
        return self.tied(self.others[0](self.encoder(x)))


@make(vectors)
class OwnTrainStep(keras.Model):
    """Updates the average that it holds in its own train_step; its metric is no weight."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([dense(), layers.BatchNormalization(), layers.Dropout(0.5), dense()])
        self.loss_mean = keras.metrics.Mean()
        self.ema = None

    def call(self, x: Any, training: bool = False) -> Any:
        return self.net(x, training=training)

    def train_step(self, data: Any) -> dict[str, Any]:
        x, y = data
        with tf.GradientTape() as tape:
            loss = tf.reduce_mean((y - self(x, training=True)) ** 2)
        gradients = tape.gradient(loss, self.trainable_variables)
        self.optimizer.apply(gradients, self.trainable_variables)
        if self.ema is not None:
            self.ema.update()
        self.loss_mean.update_state(loss)
        return {"loss": self.loss_mean.result()}


@make(tokens)
class Recurrent(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embed = layers.Embedding(7, WIDTH)
        self.both = layers.Bidirectional(layers.LSTM(2, return_sequences=True))
        self.gru = layers.GRU(3, dropout=0.2)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.gru(self.both(self.embed(x)), training=training)


@make(sequences)
class Attention(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(num_heads=2, key_dim=2, dropout=0.1)
        self.norm = layers.LayerNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(x + self.attention(x, x, training=training))


class SameNames(layers.Layer):
    """Two weights of one name: Keras allows it, and then names tell nothing."""

    def build(self, shape: Any) -> None:
        self.u = self.add_weight(name="w", shape=(WIDTH,), initializer="ones")
        self.v = self.add_weight(name="w", shape=(WIDTH,), initializer="ones")
        self.steps = self.add_weight(name="steps", shape=(), dtype="int32", trainable=False, initializer="zeros")

    def call(self, x: Any) -> Any:
        self.steps.assign_add(1)
        return self.u * x + self.v


@make(vectors)
def same_names() -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), SameNames(), SameNames()])


@make(vectors)
class BareVariables(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.scale = keras.Variable(np.ones(WIDTH, np.float32))
        self.biases = [keras.Variable(np.zeros(WIDTH, np.float32)) for _ in range(3)]
        self.named = keras.Variable(np.zeros(WIDTH, np.float32), name="shift")

    def call(self, x: Any) -> Any:
        for bias in self.biases:
            x = x * self.scale + bias
        return x + self.named


@make(vectors)
def normalization() -> Any:
    """Its statistics are adapted, its count is an integer weight."""
    norm = layers.Normalization()
    norm.adapt(vectors())
    return keras.Sequential([keras.Input((WIDTH,)), norm, dense()])


@make(vectors)
class Frozen(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.body = dense(trainable=False)
        self.head = dense()

    def call(self, x: Any) -> Any:
        return self.head(self.body(x))


class DerivedNames(layers.Layer):
    """Calls its parts after itself, and so hands its automatic number down to them."""

    def __init__(self) -> None:
        super().__init__()
        self._inner = dense(name=f"{self.name}_inner")

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(name=f"{self.name}_scale", shape=(WIDTH,), initializer="ones")

    def call(self, x: Any) -> Any:
        return self._inner(x) * self.scale


@make(vectors)
def derived_names() -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), DerivedNames(), DerivedNames()])


# Keras 3: dtypes


def _typed(dtype: str) -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), dense(dtype=dtype), layers.BatchNormalization(dtype=dtype)])


@make(vectors)
def half() -> Any:
    return _typed("float16")


@make(vectors)
def brain() -> Any:
    return _typed("bfloat16")


@make(vectors)
def mixed() -> Any:
    return _typed("mixed_bfloat16")


@make(vectors)
def double() -> Any:
    return _typed("float64")


# tf.Module


class Affine(tf.Module):
    def __init__(self) -> None:
        super().__init__()
        self.w = tf.Variable(np.eye(WIDTH, dtype=np.float32))
        self.b = tf.Variable(tf.zeros(WIDTH))

    def __call__(self, x: Any) -> Any:
        return x @ self.w + self.b


@make(vectors)
class Module(tf.Module):
    """Variables and modules in attributes, lists and dictionaries, a random generator, an untrained statistic."""

    def __init__(self) -> None:
        super().__init__()
        self.scales = [tf.Variable(tf.ones(WIDTH)) for _ in range(2)]
        self.table = {"b": tf.Variable(tf.zeros(WIDTH)), "a": [tf.Variable(tf.zeros(WIDTH))]}
        self.inner = Affine()
        self.blocks = [Affine(), Affine()]
        self.heads = {"left": Affine()}
        self.mean = tf.Variable(tf.zeros(WIDTH), trainable=False)
        self.steps = tf.Variable(0, trainable=False)
        self.noise = tf.random.Generator.from_seed(3)

    def __call__(self, x: Any) -> Any:
        x = tf.convert_to_tensor(x) + 0.01 * self.noise.normal(tf.shape(x))
        for part in (self.inner, *self.blocks, self.heads["left"]):
            x = part(x)
        self.mean.assign(0.9 * self.mean + 0.1 * tf.reduce_mean(x, 0))
        self.steps.assign_add(1)
        return x * self.scales[0] * self.scales[1] + self.table["b"] + self.table["a"][0] - self.mean


@make(vectors)
class ModuleOfLayers(tf.Module):
    """Keras layers in a tf.Module, where TensorFlow itself does not find their weights."""

    def __init__(self) -> None:
        super().__init__()
        self.first = dense()
        self.rest = [dense(), keras.Sequential([keras.Input((WIDTH,)), dense()])]

    def __call__(self, x: Any) -> Any:
        for layer in (self.first, *self.rest):
            x = layer(x)
        return x


# The legacy package tf_keras


@make(vectors)
def legacy_sequential() -> Any:
    return tf_keras.Sequential(
        [
            tf_keras.Input((WIDTH,)),
            tf_keras.layers.Dense(WIDTH),
            tf_keras.layers.BatchNormalization(),
            tf_keras.layers.Dense(WIDTH),
        ]
    )


@make(vectors)
def legacy_functional() -> Any:
    x = tf_keras.Input((WIDTH,))
    hidden = tf_keras.layers.Dropout(0.1)(tf_keras.layers.Dense(WIDTH)(x))
    return tf_keras.Model(x, tf_keras.layers.Dense(WIDTH, name="head")(hidden))


@make(vectors)
class LegacySubclassed(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = [tf_keras.layers.Dense(WIDTH) for _ in range(3)]
        self.d = {"b": tf_keras.layers.Dense(WIDTH), "a": tf_keras.layers.Dense(WIDTH)}
        self.norm = tf_keras.layers.BatchNormalization()
        self.loss_mean = tf_keras.metrics.Mean()

    def call(self, x: Any, training: bool = False) -> Any:
        for layer in (*self.blocks, self.d["a"], self.d["b"]):
            x = layer(x)
        return self.norm(x, training=training)


@make(vectors)
def legacy_nested() -> Any:
    x = tf_keras.Input((WIDTH,))
    return tf_keras.Model(x, legacy_sequential()(legacy_functional()(x)))


@make(tokens)
class LegacyRecurrent(tf_keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embed = tf_keras.layers.Embedding(7, WIDTH)
        self.both = tf_keras.layers.Bidirectional(tf_keras.layers.LSTM(2, return_sequences=True))
        self.gru = tf_keras.layers.GRU(3)

    def call(self, x: Any) -> Any:
        return self.gru(self.both(self.embed(x)))


NAMES = list(ZOO)
MODULES = ("Module", "ModuleOfLayers")
LEGACY = ("legacy_sequential", "legacy_functional", "LegacySubclassed", "legacy_nested", "LegacyRecurrent")
KERAS = [name for name in NAMES if name not in (*MODULES, *LEGACY)]


def scramble(model: Any, seed: int) -> None:
    """New values for every weight: floating-point ones are drawn (variances are positive), integers are counted on."""
    rng = np.random.default_rng(seed)
    for path, variable in framework_of(model).target(model).variables.items():
        if variable.dtype.is_floating:
            drawn = rng.normal(size=variable.shape)
            variable.assign(tf.cast(np.abs(drawn) + 0.1 if "variance" in path else drawn, variable.dtype))
        else:
            variable.assign_add(tf.ones_like(variable))


def values(model: Any) -> dict[str, Any]:
    """Copies of all weights of a model or average, by path."""
    return dict(polyak.snapshot(model))


def assert_same_bits(found: Any, expected: Any) -> None:
    """Two mappings of arrays agree in names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == expected[path].dtype, path
        assert found[path].tobytes() == expected[path].tobytes(), path


def in_another_process() -> dict[str, list[list[str]]]:
    """Path and kind of every weight of the zoo as a process with another history of layers finds them."""
    answer = subprocess.run([sys.executable, __file__], check=True, capture_output=True, text=True)
    return dict(json.loads(answer.stdout))


def inventory(model: Any) -> list[list[str]]:
    return [[w.path, w.kind.value] for w in polyak.snapshot(model).weights]


if __name__ == "__main__":
    for package in (keras, tf_keras):
        history = [package.layers.Dense(1), package.layers.Dropout(0.1), package.layers.BatchNormalization()]
        package.Sequential([package.Input((1,)), *history, package.layers.LSTM(1), package.layers.GRU(1)][:4])
    print(json.dumps({name: inventory(made.built()) for name, made in reversed(ZOO.items())}))
