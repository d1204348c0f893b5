"""Small models of every make, on every backend. Two calls of a factory give two instances of one code."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np
from keras import layers, ops

import polyak
from polyak.averaging.kernel import lerp, shadow_dtype
from polyak.frameworks import framework_of
from polyak.weights import Kind

BACKEND = keras.backend.backend()
WIDTH = 4

Arrays = dict[str, Any]


@dataclass(frozen=True)
class Make:
    """A make of model: ``new()`` gives an instance that may be unbuilt, ``built()`` one that has run once."""

    new: Callable[[], Any]
    sample: Callable[[], Any]

    def built(self) -> Any:
        model = self.new()
        model(self.sample())
        return model


def vectors(n: int = 3) -> Any:
    return np.linspace(-1, 1, n * WIDTH, dtype=np.float32).reshape(n, WIDTH)


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


# Sequential and functional


@make(vectors)
def sequential() -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), dense(), layers.Dropout(0.5), dense(), layers.BatchNormalization()])


@make(vectors)
def sequential_deferred() -> Any:
    return keras.Sequential([dense(activation="relu"), dense(), dense(name="head")])


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
def nested() -> Any:
    x = keras.Input((WIDTH,))
    block = keras.Sequential([keras.Input((WIDTH,)), dense(), layers.BatchNormalization()])
    return keras.Model(x, dense()(keras.Model(x, block(dense()(x)))(x)))


@make(vectors)
def partly_frozen() -> Any:
    model = keras.Sequential([keras.Input((WIDTH,)), dense(), dense(), layers.BatchNormalization()])
    model.layers[1].trainable = False
    return model


# Subclassed


@make(vectors)
class Attributes(keras.Model):
    """Made in another order than used."""

    def __init__(self) -> None:
        super().__init__()
        self.second = dense()
        self.first = dense()
        self.norm = layers.BatchNormalization()

    def call(self, x: Any, training: bool = False) -> Any:
        return self.norm(self.second(self.first(x)), training=training)


@make(vectors)
class Containers(keras.Model):
    """A list of layers, some without weights, a dictionary, and lists within both."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = [dense(), layers.Dropout(0.2), dense()]
        self.d = {"b": dense(), "a": dense(), "deep": [dense(), {"x": dense()}]}

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.blocks[2](self.blocks[1](self.blocks[0](x), training=training))
        return self.d["deep"][1]["x"](self.d["deep"][0](self.d["a"](self.d["b"](x))))


@make(vectors)
class OwnWeights(keras.Model):
    """Weights of the model itself: trained, not trained, and integers."""

    def __init__(self) -> None:
        super().__init__()
        self.dense = dense()

    def build(self, shape: Any) -> None:
        self.scale = self.add_weight(shape=(WIDTH,), initializer="ones", name="scale")
        self.shift = self.add_weight(shape=(WIDTH,), initializer="zeros", trainable=False, name="shift")
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False, name="calls")
        self.dense.build(shape)

    def call(self, x: Any) -> Any:
        return self.dense(x) * self.scale + self.shift


@make(tokens)
class Recurrent(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.embed = layers.Embedding(7, WIDTH)
        self.both = layers.Bidirectional(layers.LSTM(2, return_sequences=True))
        self.gru = layers.GRU(WIDTH, dropout=0.2)

    def call(self, x: Any, training: bool = False) -> Any:
        return self.gru(self.both(self.embed(x)), training=training)


@make(sequences)
class Attention(keras.Model):
    def __init__(self) -> None:
        super().__init__()
        self.attention = layers.MultiHeadAttention(2, 3)
        self.norm = layers.LayerNormalization()

    def call(self, x: Any) -> Any:
        return ops.mean(self.norm(x + self.attention(x, x)), axis=1)


# Precision


def _narrow(policy: str) -> Any:
    return keras.Sequential([keras.Input((WIDTH,)), dense(dtype=policy), dense(dtype=policy)])


@make(vectors)
def mixed_bfloat16() -> Any:
    return _narrow("mixed_bfloat16")


@make(vectors)
def mixed_float16() -> Any:
    return _narrow("mixed_float16")


@make(vectors)
def pure_bfloat16() -> Any:
    return _narrow("bfloat16")


@make(vectors)
def pure_float16() -> Any:
    return _narrow("float16")


# A train step of its own


@make(vectors)
class OwnTrainStep(keras.Model):
    """Written as Keras' guide for each backend writes it."""

    def __init__(self) -> None:
        super().__init__()
        self.net = keras.Sequential([dense(), layers.BatchNormalization(), layers.Dropout(0.5), dense()])

    def call(self, x: Any, training: bool = False) -> Any:
        return self.net(x, training=training)

    def train_step(self, *args: Any) -> Any:
        return {"tensorflow": self._on_tensorflow, "jax": self._on_jax, "torch": self._on_torch}[BACKEND](*args)

    def _on_tensorflow(self, data: Any) -> Any:
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = ops.mean((y - self(x, training=True)) ** 2)
        self.optimizer.apply(tape.gradient(loss, self.trainable_variables), self.trainable_variables)
        return {"loss": loss}

    def _on_jax(self, state: Any, data: Any) -> Any:
        import jax

        trained, others, optimizer, metrics = state
        x, y = data[:2]

        def loss_of(trained: Any) -> Any:
            predicted, after = self.stateless_call(trained, others, x, training=True)
            return ops.mean((y - predicted) ** 2), after

        (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(trained)
        trained, optimizer = self.optimizer.stateless_apply(optimizer, gradients, trained)
        return {"loss": loss}, (trained, others, optimizer, metrics)

    def _on_torch(self, data: Any) -> Any:
        import torch

        x, y = data
        self.zero_grad()
        loss = ops.mean((y - self(x, training=True)) ** 2)
        loss.backward()
        weights = list(self.trainable_weights)
        with torch.no_grad():
            self.optimizer.apply([w.value.grad for w in weights], weights)
        return {"loss": loss}


NAMES = tuple(ZOO)


# Weights by path


def values(model: Any) -> Arrays:
    """Copies of all weights of a model or average, by path."""
    return {path: np.array(value) for path, value in polyak.snapshot(model).items()}


def scramble(model: Any, seed: int) -> None:
    """New values for every weight: floating-point ones are drawn (variances are positive), integers are counted on."""
    rng = np.random.default_rng(seed)
    target = framework_of(model).target(model)
    for w in target.weights:
        held = target.read(w.path)
        if w.floating:
            drawn = rng.normal(size=w.shape)
            target.write(w.path, (np.abs(drawn) + 0.1 if "variance" in w.path else drawn).astype(held.dtype))
        else:
            target.write(w.path, (held + 1).astype(held.dtype))


def averaged(model: Any) -> set[str]:
    """Paths of the weights that are averaged; all others are copied."""
    return {w.path for w in polyak.snapshot(model).weights if w.kind is Kind.TRAINABLE}


def replay(rule: Any, start: Arrays, raw: list[Arrays], paths: set[str]) -> Arrays:
    """The average by the NumPy kernel; other weights are the newest copies."""
    average = {p: start[p].astype(shadow_dtype(start[p].dtype.name)) for p in paths}
    if rule.origin == "zeros":
        average = {p: np.zeros_like(value) for p, value in average.items()}
    copies = start
    for n, newest in enumerate(raw, 1):
        w = float(rule.weight(n))
        average = {p: lerp(average[p], newest[p], w) for p in paths}
        copies = newest if w > 0 else copies
    return {p: average.get(p, copies[p]) for p in start}


def assert_same_bits(found: Any, expected: Any) -> None:
    """Two mappings of arrays agree in names, dtypes and bits."""
    assert found.keys() == expected.keys()
    for path in expected:
        assert found[path].dtype == expected[path].dtype, path
        assert found[path].tobytes() == expected[path].tobytes(), path


def as_weights(average: Any, model: Any) -> Arrays:
    """The averaged values in the dtypes of the model's weights."""
    held = values(model)
    return held | {path: value.astype(held[path].dtype) for path, value in average.values().items()}
