"""What a model gives away of its own weights when it is called with other values in their place."""

from __future__ import annotations

import copy
from typing import Any

import keras


def values_of(found: Any, scope: keras.StatelessScope) -> Any:
    """What a call in a scope has given, a nest, with copies of what its variables held there in their place.

    A variable reads as the scope's value only within it. On TensorFlow also ``ops.convert_to_tensor`` of a variable is
    the variable itself.
    """
    if isinstance(found, keras.Variable):
        return _value_of(found, scope)
    if isinstance(found, (list, tuple)):
        return _rebuilt(found, list(found), [values_of(one, scope) for one in found])
    if isinstance(found, dict):
        return _rebuilt(found, list(found.values()), [values_of(one, scope) for one in found.values()])
    return found


def _rebuilt(found: Any, old: list[Any], new: list[Any]) -> Any:
    """The container with new parts, in its order, or itself where all are the same. Keras' own walk sorts keys."""
    if all(a is b for a, b in zip(old, new, strict=True)):
        return found
    if isinstance(found, dict):
        made = copy.copy(found)
        made.update(zip(found, new, strict=True))
        return made
    return type(found)(*new) if isinstance(found, tuple) and type(found) is not tuple else type(found)(new)


def _value_of(one: keras.Variable, scope: keras.StatelessScope) -> Any:
    held = scope.get_current_value(one)
    return keras.ops.copy(one.value if held is None else held)
