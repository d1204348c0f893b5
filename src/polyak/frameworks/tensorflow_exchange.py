"""The exchange on TensorFlow variables. TensorFlow shares buffers until one is written: nothing is copied."""

from __future__ import annotations

import tensorflow as tf

from polyak.frameworks import exchange
from polyak.frameworks.exchange import Hands

_HANDS = Hands(take=lambda variable: variable.read_value(), put=lambda variable, value: variable.assign(value))


def enter(variable: tf.Variable, owner: object, value: tf.Tensor) -> None:
    """Put a value over what the variable holds."""
    exchange.enter(variable, owner, value, _HANDS)


def leave(variable: tf.Variable, owner: object) -> None:
    """Take the owner's value away again."""
    exchange.leave(variable, owner, _HANDS)


def raw_value(variable: tf.Variable) -> tf.Tensor:
    """The raw value, also while an average is applied."""
    return exchange.raw_value(variable, _HANDS)
