"""The moving statistics of batch normalisation anew: the equal mean, in float64, of what each batch would give."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError, NonFinite, UnbuiltModel
from polyak.frameworks.described import describe, described
from polyak.frameworks.keras_anatomy import Flavour, found_in
from polyak.frameworks.keras_data import Batches
from polyak.snapshot import Array

Values = Mapping[str, Any]
Told = Callable[[str, int, int], None]
_STATISTICS = ("moving_mean", "moving_variance")


@dataclass(frozen=True, slots=True)
class Normalised:
    """A model with layers of batch normalisation whose statistics can be recomputed.

    Attributes:
        model: the model.
        label: what errors call it.
        variables: all of its weights by path.
        layers: the layers.
        paths: path of each of their statistics, by the variable's id.
    """

    model: Any
    label: str
    variables: Mapping[str, Any]
    layers: tuple[Any, ...]
    paths: Mapping[int, str]

    @classmethod
    def of(cls, model: Any) -> Normalised:
        """Layers that are frozen keep their statistics, as they do in ``fit``.

        Raises:
            UnbuiltModel: the model has no weights yet.
            ModelError: it has no such layer, or one that renormalises.
        """
        if not model.built:
            raise UnbuiltModel(
                f"{describe(model)}: expected a built model, received one without weights yet",
                hint="call it once on a batch",
            )
        held = described(model, list(found_in(model, Flavour.keras3(keras))), list(model.variables), {}, {})
        paths = {id(v): path for path, v in held.variables.items()}
        normalising = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
        layers = [x for x in normalising if x.trainable and x.built]
        _refuse(held.label, layers, normalising)
        own = {id(s): paths[id(s)] for layer in layers for s in _statistics(layer)}
        return cls(model, held.label, held.variables, tuple(layers), own)

    def recomputed(self, batches: Batches, values: Values, told: Told) -> dict[str, Array]:
        """New statistics by path, in their own dtypes; the model's own weights are not touched.

        Every other layer runs as in inference, these layers as in training. A layer that runs several times on one
        batch counts each time; one that does not run keeps its statistics and is not in the result.

        Args:
            values: weights by path that take the place of the model's own.

        Raises:
            ModelError: there are no batches, fewer than asked for, or no layer ran.
            NonFinite: a statistic is NaN or infinite.
        """
        state = [values.get(path, v.value) for path, v in self.variables.items()]
        sums: dict[str, Any] = {}
        seen: dict[str, int] = {}
        with self._as_in_training() as found:
            step = _compiled(self._step(found), self.model)
            for done, inputs in enumerate(batches):
                told("batches", done, batches.total)
                for path, calls in step(state, inputs).items():
                    for value in calls:
                        sums[path] = sums.get(path, 0.0) + np.asarray(keras.ops.convert_to_numpy(value), np.float64)
                        seen[path] = seen.get(path, 0) + 1
        return self._means(sums, seen)

    def _step(self, found: dict[int, list[Any]]) -> Callable[[Any, Any], Any]:
        variables = list(self.variables.values())

        def step(state: Any, inputs: Any) -> Any:
            found.clear()
            # Momentum is zero meanwhile: what a layer moves from must only not be NaN.
            held = [
                keras.ops.zeros_like(value) if id(v) in self.paths else value
                for v, value in zip(variables, state, strict=True)
            ]
            with keras.StatelessScope(state_mapping=list(zip(variables, held, strict=True))):
                self.model(inputs, training=False)
            return {self.paths[i]: list(calls) for i, calls in found.items()}

        return step

    @contextmanager
    def _as_in_training(self) -> Iterator[dict[int, list[Any]]]:
        """These layers alone run as in training, and what they find in each call is noted by the statistic's id."""
        found: dict[int, list[Any]] = {}
        momenta = [layer.momentum for layer in self.layers]
        try:
            for layer in self.layers:
                layer.momentum = 0.0
                layer.call = _noting(layer, layer.call, found)
            yield found
        finally:
            for layer, momentum in zip(self.layers, momenta, strict=True):
                layer.momentum = momentum
                vars(layer).pop("call", None)

    def _means(self, sums: Mapping[str, Any], seen: Mapping[str, int]) -> dict[str, Array]:
        if not sums:
            raise ModelError(
                f"{self.label}: expected a layer of batch normalisation to run on the batches, none did",
                hint="give the data that the model is called on",
            )
        means = {path: np.asarray(total / seen[path]) for path, total in sums.items()}
        for path, mean in means.items():
            if not np.isfinite(mean).all():
                raise NonFinite(
                    f"weight {path!r} of {self.label}: expected finite statistics, received NaN or infinity",
                    hint="look for NaN in the data or the weights",
                )
        return {
            path: mean.astype(keras.backend.standardize_dtype(self.variables[path].dtype))
            for path, mean in means.items()
        }


def _statistics(layer: Any) -> list[Any]:
    return [getattr(layer, name) for name in _STATISTICS]


def _refuse(label: str, layers: list[Any], normalising: list[Any]) -> None:
    if not layers:
        frozen = f", of {len(normalising)} that it has all are frozen" if normalising else ""
        raise ModelError(
            f"{label}: expected a layer of batch normalisation to recalibrate, received none{frozen}",
            hint="set layer.trainable = True first" if normalising else "without one nothing needs to be recalibrated",
        )
    for layer in layers:
        if getattr(layer, "renorm", False):  # since Keras 3.14
            raise ModelError(
                f"{label}: expected plain batch normalisation, received {layer.name!r} with renorm=True, whose "
                "statistics depend on those before",
                hint="run a few batches with training=True instead",
            )


def _noting(layer: Any, plain: Callable[..., Any], found: dict[int, list[Any]]) -> Callable[..., Any]:
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        outputs = plain(inputs, training=True, mask=mask)
        for statistic in _statistics(layer):
            found.setdefault(id(statistic), []).append(statistic.value)
        return outputs

    return call


def _compiled(step: Callable[[Any, Any], Any], model: Any) -> Callable[[Any, Any], Any]:
    """The step as one program, where the backend makes one and the model allows it."""
    backend = keras.backend.backend()
    if backend == "torch":
        import torch

        return torch.no_grad()(step)  # type: ignore[no-any-return]
    if getattr(model, "run_eagerly", False):
        return step
    if backend == "jax":
        import jax

        return jax.jit(step)  # type: ignore[no-any-return]
    import tensorflow as tf

    return tf.function(step, reduce_retracing=True, autograph=False)  # type: ignore[no-any-return]
