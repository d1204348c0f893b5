"""TensorFlow variables as the target of a transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from polyak.snapshot import Array
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight


class Variables(Target):
    """TensorFlow variables under structural paths.

    Attributes:
        variables: what is read and written.
        trackables: the objects that TensorFlow's checkpoints know them by; Keras 3 wraps its variables.
    """

    def __init__(
        self,
        label: str,
        variables: Mapping[str, tf.Variable],
        weights: Sequence[Weight],
        trackables: Mapping[str, Any] | None = None,
    ) -> None:
        self.label = label
        self.variables = dict(variables)
        self.trackables = dict(trackables or variables)
        self._weights = tuple(weights)

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        return np.array(self.variables[path].numpy())

    def write(self, path: str, value: Array) -> None:
        self.variables[path].assign(value)

    def hold(self, path: str) -> PutBack:
        """TensorFlow shares the buffer until the variable is written: holding costs no copy of its own."""
        variable = self.variables[path]
        held = variable.read_value()

        def put_back() -> None:
            variable.assign(held)

        return put_back
