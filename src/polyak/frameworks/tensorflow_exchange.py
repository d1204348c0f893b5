"""The exchange on TensorFlow variables, replica by replica. TensorFlow shares buffers until one is written."""

from __future__ import annotations

from collections.abc import Sequence

import tensorflow as tf

from polyak.frameworks import exchange
from polyak.frameworks.exchange import Hands, Left, Over
from polyak.frameworks.tensorflow_lending import is_same


def components(variable: tf.Variable) -> Sequence[tf.Variable]:
    """The variable on each replica: the statistics of batch normalisation may differ from one to the next."""
    values: Sequence[tf.Variable] = variable.values if isinstance(variable, tf.distribute.DistributedValues) else ()
    return values or (variable,)


def is_of_session(variable: tf.Variable) -> bool:
    """Whether it is a variable of a graph, as all are where eager execution is off."""
    first = components(variable)[0]
    return bool(first.dtype != first.dtype.base_dtype or tf.is_symbolic_tensor(first.handle))


def _take(variable: tf.Variable) -> tuple[tf.Tensor, ...]:
    return tuple(part.value() for part in components(variable))


def _put(variable: tf.Variable, values: tuple[tf.Tensor, ...]) -> None:
    for part, value in zip(components(variable), values, strict=True):
        part.assign(value)


def _are_same(put: Over, found: Sequence[tf.Tensor]) -> bool:
    return all(map(is_same, put.mark, found))


HANDS = Hands(_take, _put, mark=_take, same=_are_same)


def enter(variable: tf.Variable, owner: object, value: tf.Tensor) -> None:
    """Put a value over what the variable holds."""
    exchange.enter(variable, owner, lambda: (value,) * len(components(variable)), HANDS)


def leave(variable: tf.Variable, owner: object) -> Left | None:
    """Take the owner's value away again: see ``exchange.leave``."""
    return exchange.leave(variable, owner, HANDS)


def raw_value(variable: tf.Variable) -> tf.Tensor:
    """The raw value, also while an average is applied; that of the first replica."""
    with exchange.EXCHANGING:
        held = exchange.noted(variable)
        return variable.read_value() if held is None else held.raw[0]
