"""Where TensorFlow's object graph has each weight of a live Keras 3 model, whatever backend the model runs on.

Keras gives TensorFlow the layers and variables that lie in attributes, and the numbered list of the layers of a
Sequential or functional model; what lies in lists and dictionaries it leaves out. The tests hold this against files.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import keras

from polyak.frameworks.keras_anatomy import Flavour, paths_in, user_attributes
from polyak.transfer.places import Place

_Step = tuple[str, Any]
_NOWHERE = Place("")


def places_of(model: Any) -> Mapping[str, Place]:
    """The place of each weight by its path."""
    flavour = Flavour.keras3(keras)
    places, numbers = _places(model, flavour), {id(v): i for i, v in enumerate(model.trainable_variables)}
    return {
        path: replace(places.get(variable, _NOWHERE), number=numbers.get(variable, -1))
        for variable, path in paths_in(model, flavour).items()
    }


def _places(model: Any, flavour: Flavour) -> Mapping[int, Place]:
    """The place of each variable by its id, the nearest to the root where there are several."""
    places: dict[int, Place] = {}
    seen = {id(model)}
    queue: deque[tuple[str, tuple[str, ...], Any]] = deque([("", (), model)])
    while queue:
        at, names, layer = queue.popleft()
        owner = layer.name if flavour.explicit_name(layer) is None else ""
        for step, held in (*_numbered(layer, flavour), *_attributes(layer, flavour)):
            path = f"{at}/{step}" if at else step
            if isinstance(held, keras.Variable):
                places.setdefault(id(held), Place(path, owner, names))
            elif flavour.is_layer(held) and id(held) not in seen:
                seen.add(id(held))
                name = flavour.explicit_name(held)
                queue.append((path, names if name is None else (*names, name), held))
    return places


def _numbered(layer: Any, flavour: Flavour) -> Iterator[_Step]:
    if flavour.is_chain(layer):
        operations = getattr(getattr(layer, "_functional", None) or layer, "_operations", None) or layer._layers
        yield from ((f"#{i}", held) for i, held in enumerate(operations))


def _attributes(layer: Any, flavour: Flavour) -> Iterator[_Step]:
    for key, held in user_attributes(layer, flavour.own_names):
        yield key.lstrip("_"), held
