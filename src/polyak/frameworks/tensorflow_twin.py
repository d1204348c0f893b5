"""A copy of a model that keeps up with the settings of the model which it was made of."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import tensorflow as tf

# Settings in attributes. Anything else may belong to the model alone.
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_TRACKED = ("_self_", "_tf_", "_TF_", "_obj_")

Modules = dict[tuple[Any, ...], tf.Module]


class Twin:
    """A copy of a model, made once because copies are costly.

    Args:
        original: the model; it is not held.
        model: its copy.
    """

    def __init__(self, original: Any, model: Any) -> None:
        self.model = model
        self._classes = _classes(modules_of(original))

    def is_of(self, original: Any) -> bool:
        """Whether the model has the modules still that it had when it was copied."""
        return self._classes == _classes(modules_of(original))

    def follow(self, original: Any) -> None:
        """Take over the numbers, strings and truth values in the attributes of the model's modules."""
        mine = modules_of(self.model)
        for path, module in modules_of(original).items():
            if type(mine.get(path)) is type(module):
                vars(mine[path]).update(_settings(module, vars(mine[path])))


def modules_of(model: Any) -> Modules:
    """A model and the modules within it, by the attributes that lead to them."""
    within = model._flatten(predicate=lambda one: isinstance(one, tf.Module), with_path=True)
    return {(): model, **dict(within)}


def _classes(modules: Modules) -> dict[tuple[Any, ...], type]:
    return {path: type(module) for path, module in modules.items()}


def _settings(module: tf.Module, mine: Mapping[str, Any]) -> dict[str, Any]:
    """What is other in the module than in its copy. What a layer of Keras notes of itself is its own affair."""
    own = _TRACKED if not _is_layer(module) else ("_",)
    return {
        key: value
        for key, value in vars(module).items()
        if isinstance(value, _PLAIN) and isinstance(mine.get(key), _PLAIN) and not _is_private(key, own)
    }


def _is_private(key: str, own: tuple[str, ...]) -> bool:
    return key.startswith(own) and key != "_trainable"


def _is_layer(module: tf.Module) -> bool:
    tf_keras = sys.modules.get("tf_keras")
    return tf_keras is not None and isinstance(module, tf_keras.layers.Layer)
