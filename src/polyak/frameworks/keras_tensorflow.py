"""Live Keras 3 models on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import tensorflow as tf

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.frameworks.keras_anatomy import Flavour, found_in
from polyak.frameworks.keras_stored import StoredByKeras
from polyak.frameworks.tensorflow import TensorFlowFramework
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.frameworks.walk import Found
from polyak.weights import Kind


class KerasOnTensorFlow(TensorFlowFramework):
    """Keras 3 layers and models on the TensorFlow backend."""

    def __init__(self) -> None:
        self._flavour = Flavour.keras3(keras)

    def owns(self, obj: object) -> bool:
        return self._flavour.is_layer(obj)

    def find(self, model: Any) -> Iterator[Found]:
        return found_in(model, self._flavour)

    def ordered(self, model: Any) -> Sequence[Any]:
        return list(model.variables)

    def is_built(self, model: Any) -> bool:
        return bool(model.built)

    def track(self, model: Any, rule: Rule | Parts, kinds: Mapping[str, Kind]) -> TensorFlowAverage:
        return KerasAverage(self, model, rule, kinds)

    def call(self, average: TensorFlowAverage, *args: Any, **kwargs: Any) -> Any:
        """Run the model itself in a scope in which its variables read as the averaged values."""
        bound = average.bound
        shadows = bound.shadows.variables
        scope = [
            (bound.raw.trackables[path], tf.cast(s, bound.raw.variables[path].dtype)) for path, s in shadows.items()
        ]
        with keras.StatelessScope(state_mapping=scope):
            return average.followed()(*args, **kwargs)

    def served(self, average: TensorFlowAverage) -> tuple[Callable[..., Any], Mapping[str, tf.Variable]]:
        """The model itself, reading the shadows; weights that the average leaves out are read as they are."""
        bound = average.bound
        return average, {**bound.raw.variables, **bound.shadows.variables}


class KerasAverage(TensorFlowAverage, StoredByKeras):
    """The average of a Keras model on TensorFlow."""


def framework() -> KerasOnTensorFlow:
    """What polyak asks of Keras on TensorFlow."""
    return KerasOnTensorFlow()
