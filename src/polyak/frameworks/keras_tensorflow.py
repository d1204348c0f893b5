"""Live Keras 3 models on TensorFlow."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.frameworks.base import Framework, Tracking
from polyak.frameworks.keras_anatomy import Flavour, found_in
from polyak.frameworks.keras_aside import aside
from polyak.frameworks.keras_outputs import values_of
from polyak.frameworks.keras_places import places_of
from polyak.frameworks.keras_stored import HeldByKeras, StoredByKeras
from polyak.frameworks.keras_views import Seen, View, ViewedByKeras
from polyak.frameworks.stateful import Ref
from polyak.frameworks.tensorflow import ModelVariables, TensorFlowFramework
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.frameworks.tensorflow_binding import Bound
from polyak.frameworks.tensorflow_state import HeldByTensorFlow
from polyak.frameworks.tensorflow_target import Variables
from polyak.frameworks.walk import Found
from polyak.transfer.places import Place

# Seconds that a forward pass waits for a train step: one that waits for its data may wait for this very pass.
_BRIEFLY = 0.05


class HeldByBoth(HeldByTensorFlow, HeldByKeras):
    """Averages by name in TensorFlow's checkpoints and in Keras' files."""


class KerasOnTensorFlow(TensorFlowFramework):
    """Keras 3 layers and models on the TensorFlow backend."""

    holder = HeldByBoth
    aside_hint = Framework.aside_hint

    def __init__(self) -> None:
        self._flavour = Flavour.keras3(keras)

    def owns(self, obj: object) -> bool:
        return self._flavour.is_layer(obj)

    def target(self, model: Any) -> Variables:
        return PlacedVariables(model, self.variables(model, {}))

    def find(self, model: Any) -> Iterator[Found]:
        return found_in(model, self._flavour)

    def ordered(self, model: Any) -> Sequence[Any]:
        return list(model.variables)

    def aside(self, model: Any) -> list[str]:
        return aside(model, self._flavour)

    def is_built(self, model: Any) -> bool:
        return bool(model.built)

    def track(self, model: Any, rule: Rule | Parts, tracking: Tracking) -> TensorFlowAverage:
        return KerasAverage(self, model, rule, tracking)

    def call(self, average: Any, *args: Any, **kwargs: Any) -> Any:
        """Run the model itself in a scope in which its variables read as the averaged values."""
        bound = average.bound
        values = average.averaged() if tf.executing_eagerly() else _cast(bound)
        scope = [(bound.raw.trackables[path], value) for path, value in values.items()]
        with keras.StatelessScope(state_mapping=scope) as within:
            found = average.followed()(*args, **kwargs)
        return values_of(found, within)

    def served(self, average: TensorFlowAverage) -> tuple[Callable[..., Any], Mapping[str, tf.Variable]]:
        """The model itself, reading the shadows; weights that the average leaves out are read as they are."""
        bound = average.bound
        return average, {**bound.raw.variables, **bound.shadows.variables}


class KerasAverage(TensorFlowAverage, StoredByKeras, ViewedByKeras):
    """The average of a Keras model on TensorFlow."""

    def __init__(self, framework: KerasOnTensorFlow, model: Any, rule: Rule | Parts, tracking: Tracking) -> None:
        super().__init__(framework, model, rule, tracking)
        self.view = Ref(View())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.refuse_changed()
        return super().__call__(*args, **kwargs)

    def pairing(self) -> object:
        return self.bound

    def seen(self) -> Seen:
        bound = self._fresh()
        shadows = bound.shadows.variables
        # A copy also where nothing is cast: a read may share the buffer that the next update writes into.
        values = {
            path: tf.identity(tf.cast(shadows.get(path, variable).read_value(), variable.dtype))
            for path, variable in bound.raw.variables.items()
        }
        return Seen(bound.raw.trackables, values)

    def averaged(self) -> Mapping[str, tf.Tensor]:
        """The averaged values of one moment, in the dtypes of their weights."""
        values = self.collected(_BRIEFLY).values
        return {path: values[path] for path in self.bound.shadows.variables}

    def same(self, one: Any, other: Any) -> bool:
        return bool(np.asarray(one.numpy()).tobytes() == np.asarray(other.numpy()).tobytes())


def _cast(bound: Bound) -> dict[str, tf.Tensor]:
    return {path: tf.cast(s, bound.raw.variables[path].dtype) for path, s in bound.shadows.variables.items()}


class PlacedVariables(ModelVariables):
    """The variables of a Keras 3 model."""

    def places(self) -> Mapping[str, Place]:
        return places_of(self._model)


def framework() -> KerasOnTensorFlow:
    """What polyak asks of Keras on TensorFlow."""
    return KerasOnTensorFlow()
