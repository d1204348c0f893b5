"""The moving statistics of batch normalisation anew: the equal mean, in float64, of what each batch would give."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import keras

from polyak.errors import ModelError, UnbuiltModel
from polyak.frameworks.batch_statistics import Found, Means, Told, as_in_training, statistics_of, trained
from polyak.frameworks.described import describe, described
from polyak.frameworks.keras_anatomy import Flavour, found_in, is_complete
from polyak.frameworks.keras_data import Batches
from polyak.frameworks.keras_wrapped import tensors_of
from polyak.snapshot import Array

Values = Mapping[str, Any]


def _refuse_modules(model: Any) -> None:
    """Raise ModelError for a module of PyTorch with such statistics, which Keras cannot run with others."""
    held = ((x.name, name) for x in model._flatten_layers() for name in tensors_of(x))
    found = next((layer for layer, name in held if name.endswith("running_mean")), None)
    if found is not None:
        raise ModelError(
            f"{describe(model)}: expected batch normalisation of Keras, received PyTorch's in {found!r}",
            hint="transfer the average to another instance, and there: "
            "torch.optim.swa_utils.update_bn(batches, layer.module)",
        )


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
            ModelError: it has no such layer, one that renormalises, or one in a module of PyTorch.
        """
        if not is_complete(model):
            raise UnbuiltModel(
                f"{describe(model)}: expected a built model, received one without weights yet",
                hint="call it once on a batch",
            )
        _refuse_modules(model)
        held = described(model, list(found_in(model, Flavour.keras3(keras))), list(model.variables), {}, {})
        paths = {id(v): path for path, v in held.variables.items()}
        normalising = [x for x in model._flatten_layers() if isinstance(x, keras.layers.BatchNormalization)]
        layers = trained(held.label, normalising)
        own = {id(s): paths[id(s)] for layer in layers for s in statistics_of(layer)}
        return cls(model, held.label, held.variables, layers, own)

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
        # Only what is not given is read: on JAX fit keeps the model's own values in its compiled step.
        known = {**{path: v.value for path, v in self.variables.items() if path not in values}, **values}
        state = [known[path] for path in self.variables]
        means = Means(self.label)
        with as_in_training(self.layers, _noting) as found:
            step = _compiled(self._step(found), self.model)
            for done, inputs in enumerate(batches):
                told("batches", done, batches.total)
                calls = step(state, inputs)
                means.add({path: [keras.ops.convert_to_numpy(v) for v in values] for path, values in calls.items()})
        dtypes = {path: keras.backend.standardize_dtype(self.variables[path].dtype) for path in self.paths.values()}
        return {path: mean.astype(dtypes[path]) for path, mean in means.result().items()}

    def _step(self, found: Found) -> Callable[[Any, Any], Any]:
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


def _noting(layer: Any, plain: Callable[..., Any], found: Found) -> Callable[..., Any]:
    def call(inputs: Any, training: Any = None, mask: Any = None) -> Any:
        outputs = plain(inputs, training=True, mask=mask)
        for statistic in statistics_of(layer):
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
