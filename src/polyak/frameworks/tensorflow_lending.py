"""The memory of TensorFlow's tensors. Variables share it until one is written, which then moves out of it."""

from __future__ import annotations

from typing import Any

import numpy as np
import tensorflow as tf

from polyak.errors import ModelError
from polyak.memory import LARGE, copied
from polyak.snapshot import Array


class _Lent(np.ndarray[Any, Any]):
    """The memory of a whole tensor, with the tensor; what is made of it has none."""

    tensor: tf.Tensor | None = None


def lent(tensor: Any) -> Array:
    """A tensor's memory. Of a scalar in bfloat16, or another dtype that NumPy has from elsewhere, it gives no array."""
    array = np.asarray(tensor if tensor.shape.rank else tensor.numpy()).view(_Lent)
    array.tensor = tensor
    return array


def owned(value: Array) -> Any:
    """What a variable may hold. TensorFlow makes copies of what it is given; of something large it takes over ours.

    A whole tensor is no copy at all.
    """
    if isinstance(value, _Lent) and value.tensor is not None:
        return value.tensor
    if value.nbytes < LARGE or value.dtype.isbuiltin != 1:
        return value
    return tf.experimental.dlpack.from_dlpack(copied(value).__dlpack__())


def is_same(one: tf.Tensor, other: tf.Tensor) -> bool:
    """Whether two tensors are one memory, or hold the same numbers."""
    if one.shape != other.shape:
        return False
    if any("CPU" not in tensor.backing_device for tensor in (one, other)):
        return bool(tf.reduce_all(tf.equal(one, other)))
    a, b = lent(one), lent(other)
    return a.__array_interface__["data"][0] == b.__array_interface__["data"][0] or a.tobytes() == b.tobytes()


def refuse_graph(subject: str) -> None:
    """Raise ModelError within a graph, where variables have no values to look at, and a write is only planned."""
    if not tf.executing_eagerly():
        raise ModelError(
            f"{subject}: expected a call where variables have values, received one within a graph or a tf.function",
            hint="call it outside of the graph",
        )


def number(variable: tf.Variable, subject: str) -> Any:
    """The value of a scalar. Raises ModelError within a graph."""
    refuse_graph(subject)
    return variable.numpy()
