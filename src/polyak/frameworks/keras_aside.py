"""What layers of Keras 3 hold beside their weights: variables of TensorFlow's or PyTorch's own.

Keras 3 counts what ``add_weight`` made, and variables of its own. A ``tf.Variable`` in an attribute, which was a weight
in Keras 2, is in no list of the model's weights and in no file that Keras writes, and neither is a ``tf.Module`` or a
PyTorch module: nobody averages it and nobody hands it over, so it has to be said.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

from polyak.frameworks.keras_anatomy import Flavour, user_attributes
from polyak.frameworks.walk import leaves


def aside(model: Any, flavour: Flavour) -> list[str]:
    """The variables in a built model that are no weights of it to Keras, in words."""
    weights = {id(held) for v in model.variables for held in (v, getattr(v, "_value", None))}
    return [
        f"{path!r} of {type(layer).__name__} {layer.name!r} is a {kind}, which Keras 3 does not count among the weights"
        for layer in model._flatten_layers()
        for path, held in _held(layer, flavour)
        for kind, variables in _foreign(held)
        if any(id(v) not in weights for v in variables)
    ]


def _held(layer: Any, flavour: Flavour) -> Iterator[tuple[str, Any]]:
    """What the attributes of a layer hold that is no layer. On PyTorch it keeps parameters beside its attributes."""
    attributes = [*user_attributes(layer, flavour.own_names), *dict(vars(layer).get("_parameters") or {}).items()]
    for key, value in attributes:
        yield from ((path, leaf) for path, leaf in leaves(key, value) if not flavour.is_layer(leaf))


def _foreign(held: Any) -> Iterator[tuple[str, list[Any]]]:
    """What something is to a framework below Keras, and its variables."""
    tf, torch = sys.modules.get("tensorflow"), sys.modules.get("torch")
    if tf is not None and isinstance(held, tf.Variable):
        yield "tf.Variable", [held]
    elif tf is not None and isinstance(held, tf.Module):
        yield "tf.Module", list(held.variables)
    elif torch is not None and isinstance(held, torch.nn.Parameter):
        yield "torch.nn.Parameter", [held]
    elif torch is not None and isinstance(held, torch.nn.Module):
        yield "torch.nn.Module", list(held.parameters())
