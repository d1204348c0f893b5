"""Live models. A framework is looked up among the modules that the caller has imported; none is imported here."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

from polyak.errors import ModelError
from polyak.frameworks.base import Average, Framework, snapshot_of

__all__ = ["Average", "Framework", "framework_of", "snapshot_of"]

# The first column must be loaded already for the second to be asked.
_FRAMEWORKS = (("keras", "polyak.frameworks.keras"), ("tensorflow", "polyak.frameworks.tensorflow"))


def framework_of(model: object) -> Framework:
    """The framework that a model belongs to.

    Raises:
        ModelError: no loaded framework knows the object.
    """
    _refuse_other_backend(model)
    for loaded, ours in _FRAMEWORKS:
        if loaded in sys.modules:
            framework: Framework = import_module(ours).FRAMEWORK
            if framework.owns(model):
                return framework
    kind = f"{type(model).__module__}.{type(model).__qualname__}"
    raise ModelError(
        f"expected a Keras model, a keras layer or a tf.Module, received {kind}",
        hint="open a file with polyak.open(path)" if isinstance(model, (str, Path)) else "give the model itself",
    )


def _refuse_other_backend(model: object) -> None:
    """Keras runs on several frameworks, and its objects look the same on all of them."""
    keras = sys.modules.get("keras")
    if keras is None or not isinstance(model, keras.layers.Layer) or keras.backend.backend() == "tensorflow":
        return
    raise ModelError(
        f"{type(model).__name__}: expected a Keras model on TensorFlow, received one on {keras.backend.backend()}",
        hint="set KERAS_BACKEND=tensorflow before Keras is imported; other backends are not supported yet",
    )
