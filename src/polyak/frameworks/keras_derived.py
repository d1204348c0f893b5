"""Constants that Keras layers compute from their weights once: they do not follow what is written to the weights."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np

from polyak.errors import ModelError

_COMPILED = ("train", "test", "predict")


def settle(model: Any) -> None:
    """Make the constants of a model anew from its weights, and the functions in which they were compiled.

    A layer that was adapted to data keeps mean and variance so. Keras makes them anew where it loads a file, and leaves
    functions as they are that were compiled with the old ones.
    """
    changed = [_changed(layer) for layer in _adapted(model)]
    if any(changed):
        for name in _COMPILED:
            if vars(model).get(f"{name}_function") is not None:
                getattr(model, f"make_{name}_function")(force=True)


def refuse_others(model: Any, read: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]) -> None:
    """Raise ModelError where an average holds other statistics than those of which a layer has made its constants.

    Args:
        read: gives the model's variables, and the values of the average for them, by path. Asked where it matters.
    """
    statistics = [(v, c) for layer in _adapted(model) for v, c in _made_of(layer)]
    variables, values = read() if statistics else ({}, {})
    paths = {id(variable): path for path, variable in variables.items()}
    for variable, constant in statistics:
        path = paths.get(id(variable))
        if path is not None and _bytes(keras.ops.cast(values[path], constant.dtype)) != _bytes(constant):
            raise ModelError(
                f"weight {path!r}: expected the statistics that the layer was adapted to, received others, which it "
                "would not compute with: it keeps constants that were made of its own",
                hint="transfer into the model first, and then into its average",
            )


def _adapted(model: Any) -> list[Any]:
    """Layers that hold statistics of data. Those that were given them as arguments have no weights."""
    layers = (x for x in model._flatten_layers() if isinstance(x, keras.layers.Normalization))
    return [x for x in layers if x.built and x.input_mean is None]


def _made_of(layer: Any) -> list[tuple[Any, Any]]:
    return [(layer.adapt_mean, layer.mean), (layer.adapt_variance, layer.variance)]


def _bytes(array: Any) -> bytes:
    return np.asarray(keras.ops.convert_to_numpy(array)).tobytes()


def _changed(layer: Any) -> bool:
    before = _constants(layer)
    layer.finalize_state()
    return before != _constants(layer)


def _constants(layer: Any) -> list[bytes]:
    return [_bytes(constant) for _, constant in _made_of(layer)]
