"""TensorFlow variables as the target of a transfer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
import tensorflow as tf

from polyak.errors import Applied, ModelError
from polyak.frameworks.exchange import holds_average, moment_of
from polyak.frameworks.tensorflow_exchange import components, raw_value
from polyak.frameworks.tensorflow_lending import lent, owned, refuse_graph
from polyak.snapshot import Array
from polyak.transfer.target import PutBack, Target
from polyak.weights import Kind, Weight


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
        self._trained = {w.path: w.kind is Kind.TRAINABLE for w in self._weights}

    @property
    def weights(self) -> tuple[Weight, ...]:
        return self._weights

    def read(self, path: str) -> Array:
        """The value of the first replica, which Keras' own files have, too. What is trained must not differ elsewhere.

        Raises:
            ModelError: it does.
        """
        return np.array(self.view(path))

    def view(self, path: str) -> Array:
        """TensorFlow lends the memory of a tensor, and writes a variable elsewhere while somebody looks at it."""
        self._refuse_graph(path)
        first, *others = (lent(part.value()) for part in components(self.variables[path]))
        if not first.size:
            self._refuse_uninitialised(path)
        if others and self._trained[path]:
            self._refuse_drift(path, first, others)
        return first

    def _refuse_uninitialised(self, path: str) -> None:
        """TensorFlow reads no numbers from a variable that has none."""
        if not all(part.is_initialized() for part in components(self.variables[path])):
            raise ModelError(
                f"weight {path!r} of {self.label}: expected a value, received a variable that is not initialised",
                hint="assign its first value, then do this",
            )

    def _refuse_drift(self, path: str, first: Array, others: Sequence[Array]) -> None:
        for replica, other in enumerate(others, 1):
            if other.tobytes() != first.tobytes():
                raise ModelError(
                    f"weight {path!r} of {self.label}: expected one value on all replicas, received another one on "
                    f"replica {replica} than on replica 0",
                    hint="they have drifted apart: an update ran on some replicas only, or read what was not "
                    "reduced; go on from a file",
                )

    def _refuse_graph(self, path: str) -> None:
        refuse_graph(f"weight {path!r} of {self.label}")

    def home(self, path: str) -> object:
        return id(self.variables[path])

    def write(self, path: str, value: Array) -> None:
        self.variables[path].assign(owned(value), read_value=False)

    def moment(self) -> AbstractContextManager[None]:
        """Between two updates of the averages that follow the variables."""
        return moment_of(self.variables.values())

    def hold(self, path: str) -> PutBack:
        """TensorFlow shares the buffer until the variable is written: holding costs no copy of its own."""
        self._refuse_graph(path)
        variable = self.variables[path]
        if holds_average(variable):
            raise Applied(
                f"weight {path!r} of {self.label}: an average is applied; what is written now would be lost",
                hint="leave the `with ema.applied()` block first",
            )
        held = variable.value()

        def put_back() -> None:
            variable.assign(held)

        return put_back


class RawTarget(Variables):
    """The raw weights that an average follows; they read as such also while it is applied."""

    def __init__(self, followed: Variables) -> None:
        super().__init__(followed.label, followed.variables, followed.weights, followed.trackables)

    def view(self, path: str) -> Array:
        variable = self.variables[path]
        self._refuse_graph(path)
        return lent(raw_value(variable)) if holds_average(variable) else super().view(path)
