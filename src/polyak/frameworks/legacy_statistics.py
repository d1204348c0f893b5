"""The moving statistics of batch normalisation anew, in models of legacy tf_keras.

Its layers know no scope without state: in a pass they write what each batch gives into their statistics. So the pass
runs on the model itself, and every statistic is put back, bit for bit, on any exit; an average's own pass runs on the
copy of the model that ``ema(x)`` runs, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
import tf_keras

from polyak.frameworks.batch_statistics import Found, Means, Told, as_in_training, statistics_of, trained
from polyak.frameworks.described import describe
from polyak.frameworks.keras_data import Batches
from polyak.frameworks.tensorflow import TensorFlowFramework
from polyak.frameworks.tensorflow_average import TensorFlowAverage
from polyak.snapshot import Array

Calls = dict[str, list[tf.Tensor]]
# What that of TensorFlow 1 and that of TensorFlow 2 are made of; tf_keras has no public name for it.
_NORMALISING = tf_keras.layers.BatchNormalization.__mro__[1]


def recomputed(source: Any, batches: Batches, told: Told) -> dict[str, Array]:
    """New statistics by path, in their own dtypes, of a model or an average; its weights stay as they are.

    Raises:
        UnbuiltModel: the model has no weights yet.
        ModelError: there is no such layer or one that renormalises, there are too few batches, or no layer ran.
        NonFinite: a statistic is NaN or infinite.
    """
    return _Normalised.of(source.twin() if isinstance(source, TensorFlowAverage) else source).recomputed(batches, told)


@dataclass(frozen=True, slots=True)
class _Normalised:
    """A model, its layers of batch normalisation, and their statistics by path."""

    model: Any
    layers: tuple[Any, ...]
    statistics: Mapping[str, tf.Variable]

    @classmethod
    def of(cls, model: Any) -> _Normalised:
        variables = TensorFlowFramework().variables(model, {}).variables
        normalising = [x for x in model._flatten_layers() if isinstance(x, _NORMALISING)]
        layers = trained(describe(model), normalising)
        own = {id(s) for layer in layers for s in statistics_of(layer)}
        return cls(model, layers, {path: v for path, v in variables.items() if id(v) in own})

    def recomputed(self, batches: Batches, told: Told) -> dict[str, Array]:
        means = Means(describe(self.model))
        with self._put_back(), as_in_training(self.layers, _noting) as found:
            step = self._step(found)
            for done, inputs in enumerate(batches):
                told("batches", done, batches.total)
                calls = step(tf.nest.map_structure(_tensor, inputs))
                means.add({path: [value.numpy() for value in values] for path, values in calls.items()})
        dtypes = {path: v.dtype.as_numpy_dtype for path, v in self.statistics.items()}
        return {path: mean.astype(dtypes[path]) for path, mean in means.result().items()}

    def _step(self, found: Found) -> Callable[[Any], Calls]:
        paths = {id(v): path for path, v in self.statistics.items()}

        def step(inputs: Any) -> Calls:
            found.clear()
            self.model(inputs, training=False)
            return {paths[i]: list(calls) for i, calls in found.items()}

        if getattr(self.model, "run_eagerly", False):
            return step
        return tf.function(step, reduce_retracing=True, autograph=False)  # type: ignore[no-any-return]

    @contextmanager
    def _put_back(self) -> Iterator[None]:
        held = {path: v.numpy() for path, v in self.statistics.items()}
        try:
            yield
        finally:
            for path, variable in self.statistics.items():
                variable.assign(held[path])


def _noting(layer: Any, plain: Callable[..., Any], found: Found) -> Callable[..., Any]:
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        for statistic in statistics_of(layer):
            statistic.assign(tf.zeros_like(statistic))  # what the layer moves from, all the way
        outputs = plain(inputs, training=True, mask=mask)
        for statistic in statistics_of(layer):
            found.setdefault(id(statistic), []).append(tf.identity(statistic))
        return outputs

    kept_as_it_is: Callable[..., Any] = tf.autograph.experimental.do_not_convert(call)
    return kept_as_it_is


def _tensor(value: Any) -> tf.Tensor:
    """A tensor of TensorFlow: Keras 3 beside it may have another backend."""
    if tf.is_tensor(value):
        return value
    import keras

    return tf.convert_to_tensor(keras.ops.convert_to_numpy(value))
