"""Live Keras 3 models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from keras.src.saving.keras_saveable import KerasSaveable

from polyak.averaging.parts import Parts
from polyak.averaging.rules import Rule
from polyak.errors import MissingWeight, ModelError, ShapeMismatch
from polyak.frameworks.keras_anatomy import Flavour
from polyak.frameworks.tensorflow import TensorFlowFramework, describe
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.frameworks.walk import Found, walk
from polyak.weights import Kind, numpy_dtype


class KerasFramework(TensorFlowFramework):
    """Keras 3 layers and models on the TensorFlow backend."""

    def __init__(self) -> None:
        self._flavour = Flavour.keras3(keras)

    def owns(self, obj: object) -> bool:
        return self._flavour.is_layer(obj)

    def find(self, model: Any) -> Iterator[Found]:
        found = list(walk(model, self._flavour.anatomy()))
        reached = {id(f.own.variable) for f in found}
        for variable in model.variables:
            if id(variable) not in reached:
                raise ModelError(
                    f"{describe(model)}: weight {variable.path!r} is in no attribute, list or dictionary of the model",
                    hint="hold the layer that owns it in an attribute",
                )
        yield from found

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


class KerasAverage(TensorFlowAverage, KerasSaveable):
    """An average that Keras saves and loads with the model that holds it as an attribute."""

    def _obj_type(self) -> str:
        return "Layer"

    def save_own_variables(self, store: Any) -> None:
        """Keras calls this from ``model.save`` and ``save_weights``."""
        self.refuse_swapped_file()
        store["memo"] = np.frombuffer(self.memo().encode(), np.uint8)
        store["counts"] = np.array([self.count, self.skipped], np.int64)
        for path, value in self.values().items():
            store[_key(path)] = value

    def load_own_variables(self, store: Any) -> None:
        """Keras calls this from ``load_model`` and ``load_weights``. All or nothing."""
        if "counts" not in store:
            raise MissingWeight(
                f"the file holds no average for {self.label}",
                hint="load the weights without it (detach the attribute), then call ema.reset()",
            )
        target = self.target
        values = {w.path: _loaded(store, w.path, w.shape, w.dtype) for w in target.weights}
        self.compare_memo(bytes(np.asarray(store["memo"], np.uint8)))
        self.set_values(values)
        count, skipped = np.asarray(store["counts"]).tolist()
        self._set_counts(count, skipped)


def _loaded(store: Any, path: str, shape: tuple[int, ...], dtype: str) -> Any:
    if _key(path) not in store:
        raise MissingWeight(f"weight {path!r}: the file holds no average of it", hint="it was saved from another model")
    value = np.asarray(store[_key(path)])
    if value.shape != shape:
        raise ShapeMismatch(f"weight {path!r}: expected an average of {shape}, received {value.shape}")
    return value.astype(numpy_dtype(dtype), copy=False)


def _key(path: str) -> str:
    """A path as one name: stores take slashes for groups."""
    return "shadows:" + path.replace("%", "%25").replace("/", "%2F")


FRAMEWORK = KerasFramework()
