"""Constants that Keras layers compute from their weights once: they do not follow what is written to the weights."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from polyak.snapshot import Array

_COMPILED = ("train", "test", "predict")


def settle(held: Sequence[Any]) -> None:
    """Make the constants of layers anew from their weights, and the functions of models in which they were compiled.

    A layer that was adapted to data keeps mean and variance so. Keras makes them anew where it loads a file, and leaves
    functions as they are that were compiled with the old ones.

    Args:
        held: a model and all that is in it.
    """
    changed = [_changed(layer) for layer in _adapted(held)]
    for model in held if any(changed) else ():
        for name in _COMPILED:
            if vars(model).get(f"{name}_function") is not None:
                setattr(model, f"{name}_function", None)  # not force=True, which a user's own maker may not know
                getattr(model, f"make_{name}_function")()


def strangers(
    layers: Iterable[Any], read: Callable[[], tuple[Mapping[str, Any], Mapping[str, Any]]]
) -> dict[str, bytes]:
    """Statistics in an average that are not those of which a layer has made its constants: it computes with others.

    Args:
        read: gives the model's variables, and the values of the average for them, by path. Asked where it matters.
    """
    statistics = [made for layer in _adapted(layers) for made in _made_of(layer)]
    variables, values = read() if statistics else ({}, {})
    paths = {id(variable): path for path, variable in variables.items()}
    found = {}
    for variable, constant in statistics:
        path, made = paths.get(id(variable), ""), _numpy(constant)
        if path in values and (held := _numpy(values[path]).astype(made.dtype).tobytes()) != made.tobytes():
            found[path] = held
    return found


def _adapted(layers: Iterable[Any]) -> list[Any]:
    """Layers that hold statistics of data. Those that were given them as arguments have no weights."""
    packages = (sys.modules.get(name) for name in ("keras", "tf_keras"))
    kinds = tuple(package.layers.Normalization for package in packages if package is not None)
    return [x for x in layers if isinstance(x, kinds) and x.built and x.input_mean is None]


def _made_of(layer: Any) -> list[tuple[Any, Any]]:
    return [(layer.adapt_mean, layer.mean), (layer.adapt_variance, layer.variance)]


def _numpy(array: Any) -> Array:
    keras = sys.modules.get("keras")
    return np.asarray(array if keras is None else keras.ops.convert_to_numpy(array))


def _changed(layer: Any) -> bool:
    before = _constants(layer)
    layer.finalize_state()
    return before != _constants(layer)


def _constants(layer: Any) -> list[bytes]:
    return [_numpy(constant).tobytes() for _, constant in _made_of(layer)]
