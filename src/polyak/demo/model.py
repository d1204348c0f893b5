"""The demo's model: subclassed, with layers in attributes and in a list, nested blocks, BatchNormalization, Dropout.

It holds its two averages as attributes, so a fresh instance brings its own.
"""

from __future__ import annotations

from typing import Any

import keras

import polyak
from polyak.demo.data import CLASSES, SIDE

FAST, SLOW = 0.9, 0.99


@keras.saving.register_keras_serializable("polyak.demo")
class Block(keras.layers.Layer):
    """Convolution, normalisation, ReLU, dropout."""

    def __init__(self, filters: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters = filters
        self.convolution = keras.layers.Conv2D(filters, 3, padding="same", use_bias=False)
        # The usual momentum of 0.99 would take hundreds of steps to forget the statistics that it starts with.
        self.normalization = keras.layers.BatchNormalization(momentum=0.9)
        self.dropout = keras.layers.Dropout(0.25)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.normalization(self.convolution(x), training=training)
        return self.dropout(keras.ops.relu(x), training=training)

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters}


@keras.saving.register_keras_serializable("polyak.demo")
class Classifier(keras.Model):
    """Digits to logits of shape (n, 10), with a fast and a slow average of the weights."""

    def __init__(self, filters: int = 16, depth: int = 2, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.filters, self.depth = filters, depth
        self.stem = Block(filters)
        self.blocks = [Block(2 * filters) for _ in range(depth)]
        self.pool = keras.layers.MaxPooling2D()
        self.flatten = keras.layers.Flatten()
        self.head = keras.layers.Dense(CLASSES)
        self.fast = polyak.EMA(self, decay=FAST)
        self.slow = polyak.EMA(self, decay=SLOW)

    def call(self, x: Any, training: bool = False) -> Any:
        x = self.pool(self.stem(x, training=training))
        for block in self.blocks:
            x = block(x, training=training)
        return self.head(self.flatten(x))

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "filters": self.filters, "depth": self.depth}


def fresh() -> Classifier:
    """A new instance, with weights of its own."""
    model = Classifier()
    model(keras.ops.zeros((1, SIDE, SIDE, 1)))
    return model


def parts(model: Classifier) -> dict[str, Any]:
    """What can be asked for digits: the model with its raw weights, and its averages."""
    return {"raw": model, "fast": model.fast, "slow": model.slow}
