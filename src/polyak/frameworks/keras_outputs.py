"""What a model gives away of its own weights when it is called with other values in their place."""

from __future__ import annotations

from typing import Any

import keras


def values_of(found: Any, scope: keras.StatelessScope) -> Any:
    """What a call in a scope has given, a nest, with copies of what its variables held there in their place.

    A variable reads as the scope's value only within it. On TensorFlow also ``ops.convert_to_tensor`` of a variable is
    the variable itself.
    """
    if not any(isinstance(one, keras.Variable) for one in keras.tree.flatten(found)):
        return found
    return keras.tree.map_structure(lambda one: _value_of(one, scope), found)


def _value_of(one: Any, scope: keras.StatelessScope) -> Any:
    if not isinstance(one, keras.Variable):
        return one
    held = scope.get_current_value(one)
    return keras.ops.copy(one.value if held is None else held)
