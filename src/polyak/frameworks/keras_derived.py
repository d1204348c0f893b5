"""Constants that Keras layers compute from their weights once: they do not follow what is written to the weights."""

from __future__ import annotations

from typing import Any

import keras
import numpy as np

_COMPILED = ("train", "test", "predict")


def settle(model: Any) -> None:
    """Make the constants of a model anew from its weights, and the functions in which they were compiled.

    A layer that was adapted to data keeps mean and variance so. Keras makes them anew where it loads a file, and leaves
    functions as they are that were compiled with the old ones.
    """
    adapted = [x for x in model._flatten_layers() if isinstance(x, keras.layers.Normalization) and x.built]
    changed = [_changed(layer) for layer in adapted]
    if any(changed):
        for name in _COMPILED:
            if vars(model).get(f"{name}_function") is not None:
                getattr(model, f"make_{name}_function")(force=True)


def _changed(layer: Any) -> bool:
    before = _constants(layer)
    layer.finalize_state()
    return before != _constants(layer)


def _constants(layer: Any) -> list[bytes]:
    held = (layer.mean, layer.variance)
    return [np.asarray(keras.ops.convert_to_numpy(constant)).tobytes() for constant in held]
