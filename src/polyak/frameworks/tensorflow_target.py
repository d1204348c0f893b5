"""TensorFlow variables as the target of a transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import tensorflow as tf

from polyak.errors import Applied
from polyak.frameworks.exchange import holds_average
from polyak.frameworks.tensorflow_exchange import raw_value
from polyak.snapshot import Array
from polyak.transfer.target import PutBack, Target
from polyak.weights import Weight


class Variables(Target):
    """TensorFlow variables under structural paths.

    Attributes:
        variables: what is read and written.
        trackables: the objects that TensorFlow's checkpoints know them by; Keras 3 wraps its variables.
    """

    layout = "keras"

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
        if holds_average(variable):
            raise Applied(
                f"weight {path!r} of {self.label}: an average is applied; what is written now would be lost",
                hint="leave the `with ema.applied()` block first",
            )
        held = variable.read_value()

        def put_back() -> None:
            variable.assign(held)

        return put_back


class RawTarget(Variables):
    """The raw weights that an average follows; they read as such also while it is applied."""

    def __init__(self, followed: Variables) -> None:
        super().__init__(followed.label, followed.variables, followed.weights, followed.trackables)

    def read(self, path: str) -> Array:
        return np.array(raw_value(self.variables[path]).numpy())
