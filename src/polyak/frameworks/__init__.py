"""Live models. A framework is looked up among the modules that the caller has imported; none is imported here."""

from __future__ import annotations

import sys
from collections.abc import Mapping, ValuesView
from importlib import import_module
from pathlib import Path

from polyak.errors import ModelError
from polyak.frameworks.base import Average, Framework, snapshot_of

__all__ = ["Average", "Framework", "framework_of", "snapshot_of"]

# The first column must be loaded already for the second to be asked.
# Keras comes first: on the backend of PyTorch its models are modules, too.
_FRAMEWORKS = (
    ("keras", "polyak.frameworks.keras"),
    ("tensorflow", "polyak.frameworks.tensorflow"),
    ("torch", "polyak.frameworks.torch"),
)

_OF_JAX = ("jax", "jaxlib", "flax", "haiku", "equinox")


def framework_of(model: object) -> Framework:
    """The framework that a model belongs to.

    Raises:
        ModelError: no loaded framework knows the object.
    """
    for loaded, ours in _FRAMEWORKS:
        if sys.modules.get(loaded) is not None:
            framework: Framework = import_module(ours).FRAMEWORK
            if framework.owns(model):
                return framework
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ModelError(
        f"expected a Keras model, a keras layer, a tf.Module or a torch module, received {kind}",
        hint=_meant(model),
    )


def _meant(received: object) -> str:
    """What to give in the place of something that is no model."""
    if isinstance(received, (str, Path)):
        return "open a file with polyak.open(path)"
    if isinstance(received, Mapping) and received and all(isinstance(one, Average) for one in received.values()):
        return f"give one of the averages, such as averages[{next(iter(received))!r}]"
    if isinstance(received, (int, float)):
        return f'give the model first; a rule alone is polyak.rules.EMA({received}), or "ema:{received}"'
    if _is_of_jax(received):
        return (
            "modules and trees of JAX are not tracked: their values are a snapshot by polyak.Snapshot.from_arrays"
            '({"a/b": array}), and their files, of Orbax or flax.serialization, are read by polyak.open(path)'
        )
    if _is_state_of_torch(received):
        return (
            "give the module, with module.load_state_dict(state) first where that is what it is to hold; or "
            "torch.save(state, path), and give the path"
        )
    if _may_hold_variables(received):
        return (
            "give the model itself; of what is none, such as a loaded SavedModel, put the variables into a module, "
            "each under its path: module = tf.Module(); module.kernel = loaded.kernel"
        )
    return "give the model itself"


def _is_of_jax(received: object) -> bool:
    """Whether it is an array, a module or a state of JAX and its libraries, or a tree of such."""
    if any(base.__module__.partition(".")[0] in _OF_JAX for base in type(received).__mro__):
        return True
    parts = received.values() if isinstance(received, Mapping) else received
    return isinstance(parts, (list, tuple, ValuesView)) and any(map(_is_of_jax, parts))


def _is_state_of_torch(received: object) -> bool:
    """Whether it is what ``state_dict()`` of a module gives."""
    torch = sys.modules.get("torch")
    values = received.values() if isinstance(received, Mapping) else ()
    return torch is not None and any(isinstance(value, torch.Tensor) for value in values)


def _may_hold_variables(received: object) -> bool:
    """Whether TensorFlow would look for variables in it. What is a model was asked before."""
    tensorflow = sys.modules.get("tensorflow")
    if tensorflow is None:
        return False
    first = received[0] if isinstance(received, (list, tuple)) and received else received
    return isinstance(first, tensorflow.__internal__.tracking.Trackable)
